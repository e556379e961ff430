"""What is exported is used without the package, and gives the model's scores."""

import subprocess
import sys

import jax
import jax.export
import numpy as np
import polars as pl
import pytest

from hlrcml_jax import config_files, export
from hlrcml_jax.config import make_config
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.recommender import Recommender
from hlrcml_jax.runs import build, experiment
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

ALONE = """
import sys
import jax, numpy as np
arrays = np.load(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    score = jax.export.deserialize(bytearray(file.read())).call
np.save(sys.argv[3], score(*(arrays[name] for name in ("user", "item", "prefs", "mask"))))
assert not any(name.startswith(("hlrcml_jax", "flax")) for name in sys.modules)
"""


@pytest.mark.parametrize(
    ("model", "users"),
    [("hlr-r", "vectors"), ("hlr++", "items"), ("transcf", "vectors"), ("popularity", "vectors")],
)
def test_the_exported_function_gives_the_scores(tmp_path, model, users, monkeypatch):
    """One of them for all platforms, which takes as many times longer."""
    if model != "hlr-r":
        monkeypatch.setattr(export, "PLATFORMS", ("cpu",))
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    values = {"data.path": str(tmp_path / "own.csv"), "data.cache_dir": str(tmp_path / "cache")}
    values |= {"model.name": model, "model.users": users, "model.dim": 8, "train.epochs": 1}
    config = make_config(values)
    run = experiment.fit(config, tmp_path / "run")
    best = best_checkpoint(run)
    folder = experiment.export(best)
    exported = jax.export.deserialize(bytearray((folder / "score.jax").read_bytes()))
    assert exported.platforms == (("cpu", "cuda", "tpu") if model == "hlr-r" else ("cpu",))

    items = pl.read_parquet(folder / "items.parquet")
    item_IxD = items["vector"].to_numpy()
    assert items["item_id"].equals(run.dataset.item_ids)
    user = 7
    if users == "vectors":
        user_D = pl.read_parquet(folder / "users.parquet")["vector"].to_numpy()[user]
    else:
        assert not (folder / "users.parquet").exists()
        user_D = np.zeros(8, np.float32)
    if model.startswith("hlr"):
        with np.load(folder / "memory.npz") as memory:
            assert (memory["keys"].shape, memory["values"].shape) == ((8, 20), (20, 8))
    prefs, mask = build.make_scorer(run, "test").preferences(np.array([user]))
    if prefs.shape[1] == 0:  # at least one slot is asked for
        prefs, mask = np.zeros((1, 1), int), np.zeros((1, 1), bool)
    n = len(item_IxD)
    arrays = {
        "user": np.tile(user_D, (n, 1)),
        "item": item_IxD,
        "prefs": np.repeat(item_IxD[prefs], n, axis=0),
        "mask": np.repeat(mask, n, axis=0),
    }
    np.savez(tmp_path / "arrays.npz", **arrays)
    paths = [tmp_path / "arrays.npz", folder / "score.jax", tmp_path / "scores.npy"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, paths)], check=True, cwd=tmp_path)
    found = Recommender(best).scores(run.dataset.user_ids[user], run.dataset.item_ids)
    np.testing.assert_allclose(np.load(paths[2]), found["score"], rtol=1e-4, atol=1e-5)


def test_a_model_without_vectors_says_so(tmp_path):
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    values = {"data.path": str(tmp_path / "own.csv"), "data.cache_dir": str(tmp_path / "cache")}
    config = make_config(values | {"model.name": "ease"})
    run = experiment.fit(config, tmp_path / "run")
    with pytest.raises(UserError, match="EASE has no embeddings"):
        experiment.export(best_checkpoint(run))


def test_an_export_may_have_nothing_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PLATFORMS", ("cpu",))
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    values = {"data.path": str(tmp_path / "own.csv"), "data.cache_dir": str(tmp_path / "cache")}
    workdir = tmp_path / "run"
    experiment.fit(make_config(values | {"model.name": "popularity"}), workdir)
    names = []
    for users in (True, False):
        config = config_files.from_workdir(
            workdir, {"export.users": users, "data.cache_dir": values["data.cache_dir"]}
        )
        folder = experiment.export(best_checkpoint(open_run(config, workdir)))
        names.append({path.name for path in folder.iterdir()})
    assert names[0] - names[1] == {"users.parquet"}
    assert names[1] == {"items.parquet", "score.jax"}
