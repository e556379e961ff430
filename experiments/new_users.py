"""How well new users are served without training: fold-in beside a model trained with them.

python experiments/new_users.py --config=configs/quickstart.py --folder=runs/new-users

Whole users are held out (`data.split.kind=users`), each with a share of its items as its history. A
model trained without them ranks for them, with vectors at the mean of their items and folded in,
and so does one trained with their histories. Leaves `new_users.csv`.
"""

import dataclasses
import pathlib
import time

import numpy as np
import polars as pl
import scipy.sparse
from absl import flags, logging

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import run_program
from hlrcml_jax.ranking.evaluation import evaluate
from hlrcml_jax.runs import build, experiment
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

_CONFIG = flags.DEFINE_string("config", None, "FILE:ARGUMENTS.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Folder for the two runs.", required=True)
_METRIC = flags.DEFINE_string("metric", "ndcg@10", "Metric to compare.")
_ALLOW_CODE = flags.DEFINE_bool(
    "allow_code", False, "Import the custom code named in the config of a workdir you trust."
)
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the config.")


def held_out(dataset: Dataset) -> Dataset:
    """The test users alone, numbered from 0, with their histories as `train`."""
    user_N = np.flatnonzero(np.diff(dataset.test.indptr))
    empty = scipy.sparse.csr_array((len(user_N), dataset.n_items), dtype=bool)
    return dataclasses.replace(
        dataset,
        train=dataset.known("test")[user_N],
        valid=empty,
        test=dataset.test[user_N],
        history=empty,
        user_ids=dataset.user_ids.gather(user_N),
    )


def config_with_them(values: dict, dataset: Dataset, folder: pathlib.Path):
    """The config of a run that is trained with the histories of the held-out users too."""
    parts = {"train": dataset.train + dataset.history, "valid": dataset.valid, "test": dataset.test}
    changes = {"data.split.kind": "given", "data.name": "", "data.path": "", "data.format": "npz"}
    changes |= {"data.threshold": None, "data.min_per_user": 0, "data.min_per_item": 0}
    folder.mkdir(parents=True, exist_ok=True)
    for part, matrix in parts.items():
        changes[f"data.split.{part}_path"] = str(folder / f"{part}.npz")
        scipy.sparse.save_npz(folder / f"{part}.npz", matrix)
    return config_lib.make_config(values | changes)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    folder, metric = pathlib.Path(_FOLDER.value), _METRIC.value
    changes = dict(map(config_files.parse_change, _SET.value)) | {"data.split.kind": "users"}
    config = config_files.read(_CONFIG.value, changes, _ALLOW_CODE.value)
    values = config_lib.flatten(config)
    means = experiment.train_and_evaluate(config, folder / "without")
    run = open_run(config, folder / "without")
    params = best_checkpoint(run).params
    new = held_out(run.dataset)
    build.with_new_users(run, params, new.train)  # to compile
    started = time.perf_counter()
    ready = build.with_new_users(run, params, new.train)
    seconds = time.perf_counter() - started
    scorer = build.make_new_scorer(run, new.train)
    folded = evaluate(scorer, ready, new, "test", build.protocol_of(run)).summary()
    whole = config_with_them(values, run.dataset, folder / "parts")
    trained = experiment.train_and_evaluate(whole, folder / "with")
    rows = {"mean of their items": means, "folded in": folded, "trained with them": trained}
    table = pl.DataFrame(
        {
            "users": list(rows),
            metric: [100 * row[metric]["mean"] for row in rows.values()],
            "share": [row[metric]["mean"] / trained[metric]["mean"] for row in rows.values()],
        }
    )
    table.write_csv(folder / "new_users.csv")
    print(table)
    print(f"{len(new.user_ids):,} users, {1000 * seconds / len(new.user_ids):.1f} ms each.")


if __name__ == "__main__":
    run_program(main)
