"""Time and memory of preparing a large file, from text and again from the cache.

python experiments/large_file.py --rows=50000000 --folder=runs/large

Writes a synthetic file of play counts with the shape of Echonest (long text ids), once. Then, in a
process of its own: read, threshold, 10-core, split and cache; and again from the cache. Prints one
JSON line per step.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import polars as pl
from absl import app, flags

from hlrcml_jax.config import default_config, validate
from hlrcml_jax.data.prepare import prepare

_ROWS = flags.DEFINE_integer("rows", 50_000_000, "Number of rows.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder for the file and the cache.", required=True)
_STEP = flags.DEFINE_enum("step", "all", ["all", "prepare"], "Step that this process runs.")

CHUNK = 2_000_000


def write_file(path: pathlib.Path, rows: int) -> None:
    """Users, items and counts drawn from long tails; users in order, as such files are."""
    rng = np.random.default_rng(0)
    n_users, n_items = max(rows // 50, 2), max(rows // 150, 2)
    ids = [
        pl.Series([f"{digest:0{length}x}" for digest in rng.integers(0, 2**60, n)])
        for n, length in ((n_users, 40), (n_items, 18))
    ]
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            user = (start + np.arange(n)) * n_users // rows
            item = np.minimum((n_items * rng.random(n) ** 3).astype(np.int64), n_items - 1)
            table = {
                "user": ids[0].gather(user),
                "item": ids[1].gather(item),
                "plays": rng.geometric(0.25, n),
            }
            pl.DataFrame(table).write_csv(file, separator="\t", include_header=False)


def main(_) -> None:
    folder = pathlib.Path(_FOLDER.value)
    path = folder / "train_triplets.txt"
    if _STEP.value == "prepare":
        config = default_config()
        config.data.path, config.data.cache_dir = str(path), str(folder / "cache")
        config.data.threshold, config.data.split.kind = 2.0, "random"
        config.data.min_per_user = config.data.min_per_item = 10
        started = time.perf_counter()
        dataset = prepare(validate(config).data)
        print(
            json.dumps(
                {
                    "seconds": round(time.perf_counter() - started, 1),
                    "peak_gb": round(
                        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2
                    ),
                    "users": dataset.n_users,
                    "items": dataset.n_items,
                    "interactions": dataset.train.nnz + dataset.valid.nnz + dataset.test.nnz,
                }
            )
        )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        started = time.perf_counter()
        write_file(path, _ROWS.value)
        print(json.dumps({"step": "write", "seconds": round(time.perf_counter() - started, 1),
                          "gb": round(path.stat().st_size / 1e9, 2)}))  # fmt: skip
    for step in ("first", "from the cache"):
        command = [sys.executable, __file__, f"--folder={folder}", "--step=prepare"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(json.dumps({"step": step} | json.loads(done.stdout)))


if __name__ == "__main__":
    app.run(main)
