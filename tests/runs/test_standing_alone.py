"""A run needs nothing but its workdir, and believes nothing in it."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from test_hostile import Touch

import hlrcml_jax as hlr
from hlrcml_jax import config as config_lib
from hlrcml_jax.data import saved, synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.runs import experiment, lists
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

LISTS = """
import sys, hlrcml_jax as hlr
hlr.load(sys.argv[1]).recommend(["u1", "u2"], k=3).write_parquet(sys.argv[2])
"""


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """(config values, workdir, folder of the files) of a run whose files may be removed."""
    folder = tmp_path_factory.mktemp("files")
    table = synthetic.generate(60, 40, 2400, seed=1)
    ids = {"user": pl.format("u{}", "user"), "item": pl.format("00{}", "item")}
    table.with_columns(**ids).write_csv(folder / "own.csv")
    titles = {"item": [f"00{item}" for item in range(40)], "title": [f"T{n}" for n in range(40)]}
    pl.DataFrame(titles).write_csv(folder / "titles.csv")
    values = small | {
        "data.path": str(folder / "own.csv"),
        "data.titles.path": str(folder / "titles.csv"),
        "data.cache_dir": str(folder / "cache"),
        "train.epochs": 1,
    }
    workdir = tmp_path_factory.mktemp("run") / "run"
    experiment.train_and_evaluate(config_lib.make_config(values), workdir)
    return values, workdir, folder


def without_files(made, tmp_path) -> tuple[dict, pathlib.Path]:
    """(config values, a copy of the workdir) after the files were removed."""
    values, workdir, _ = made
    gone = {key: str(tmp_path / "gone" / key) for key in ("data.path", "data.titles.path")}
    gone["data.cache_dir"] = str(tmp_path / "cache")
    moved = shutil.copytree(workdir, tmp_path / "else" / "where")
    text = (moved / "config.json").read_text()
    for key, path in gone.items():
        text = text.replace(f'"{values[key]}"', f'"{path}"')
    (moved / "config.json").write_text(text)
    return values | gone, moved


def test_it_serves_and_goes_on_without_its_files(made, tmp_path):
    _, workdir, folder = made
    expected = hlr.load(workdir, data__cache_dir=str(folder / "cache")).recommend(["u1", "u2"], k=3)
    assert expected["title"][0].startswith("T")
    assert expected["item_id"][0].startswith("00")
    values, moved = without_files(made, tmp_path)
    command = [sys.executable, "-c", LISTS, moved, tmp_path / "lists.parquet"]
    subprocess.run(command, check=True)
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(expected)
    config = config_lib.make_config(values | {"train.epochs": 2})
    for mode in (experiment.test, lists.write_reasons, experiment.export):
        mode(best_checkpoint(open_run(config, moved)))
    assert experiment.train_and_evaluate(config, moved)["ndcg@10"]["mean"] > 0
    assert (moved / "checkpoints" / "2").is_dir()


def test_keys_of_other_versions(made, tmp_path):
    """Those that were renamed are read, and others named in a sentence."""
    moved = shutil.copytree(made[1], tmp_path / "run")
    path = moved / "config.json"
    content = json.loads(path.read_text())
    for new, old in (("user_vectors", "users"), ("item_vectors", "items")):
        content["config"][f"pretrained.{old}"] = content["config"].pop(f"pretrained.{new}")
    path.write_text(json.dumps(content))
    assert hlr.load(moved).recommend("u1", k=3).height == 3
    content["config"]["model.of_tomorrow"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run: .*'model.of_tomorrow'.*version"):
        hlr.load(moved)


def test_other_titles_and_changed_files_are_noticed(made, tmp_path):
    values, workdir, folder = made
    moved = shutil.copytree(workdir, tmp_path / "run")
    other = pl.read_csv(folder / "titles.csv", infer_schema=False).with_columns(title=pl.lit("Z"))
    other.write_csv(tmp_path / "other.csv")
    found = hlr.load(moved, data__titles__path=str(tmp_path / "other.csv"))
    assert set(found.recommend("u1")["title"]) == {"Z"}
    changed = pl.read_csv(folder / "own.csv", infer_schema=False)[:-9]
    changed.write_csv(tmp_path / "own.csv")
    with pytest.raises(UserError, match="made with other data"):
        experiment.fit(
            config_lib.make_config(values | {"data.path": str(tmp_path / "own.csv")}), moved
        )


def test_a_run_of_before_says_what_it_lacks(made, tmp_path):
    values, moved = without_files(made, tmp_path)
    shutil.rmtree(moved / "data")
    with pytest.raises(UserError, match=r"where: it holds no data of its own, and .*data.path: No"):
        hlr.load(moved, data__cache_dir=values["data.cache_dir"])
    # Resuming one whose files are there gives it the data.
    values, workdir, _ = made
    old = shutil.copytree(workdir, tmp_path / "old")
    shutil.rmtree(old / "data")
    experiment.fit(config_lib.make_config(values), old)
    assert saved.load(old / "data").fingerprint() == saved.load(workdir / "data").fingerprint()


def test_what_is_kept_is_that_of_the_last_training(made, tmp_path):
    """Other titles and damage are written again; of other ids it is another run."""
    values, workdir, folder = made
    run = shutil.copytree(workdir, tmp_path / "run")
    titles = pl.read_csv(folder / "titles.csv", infer_schema=False).with_columns(title=pl.lit("Z"))
    titles.write_csv(tmp_path / "titles.csv")
    renamed = {"data.titles.path": str(tmp_path / "titles.csv")}
    experiment.fit(config_lib.make_config(values | renamed), run)
    assert set(saved.load(run / "data").titles) == {"Z"}
    (run / "data" / "items.parquet").write_bytes(b"x")
    experiment.fit(config_lib.make_config(values), run)
    assert "Z" not in set(saved.load(run / "data").titles)
    rows = pl.read_csv(folder / "own.csv", infer_schema=False)
    rows.with_columns(user="x" + pl.col("user")).write_csv(tmp_path / "own.csv")
    with pytest.raises(UserError, match="of other ids"):
        experiment.fit(
            config_lib.make_config(values | {"data.path": str(tmp_path / "own.csv")}), run
        )


def with_array(name, change):
    def damage(folder):
        path = folder / name
        np.save(path, change(np.load(path)))

    return damage


def with_column(name, column):
    def damage(folder):
        pl.read_parquet(folder / name).with_columns(column).write_parquet(folder / name)

    return damage


def with_code(folder):
    np.save(folder / "train.indices.npy", np.array([Touch(folder / "touched")]), allow_pickle=True)


DAMAGES = {
    "indices out of range": with_array("train.indices.npy", lambda x: x + 39),
    "negative indices": with_array("valid.indices.npy", lambda x: x - 40),
    "descending indices": with_array("train.indices.npy", lambda x: x[::-1].copy()),
    "fractions": with_array("train.indices.npy", lambda x: x.astype(float)),
    "a matrix": with_array("test.indices.npy", lambda x: x[None]),
    "offsets that fall": with_array("train.indptr.npy", lambda x: np.r_[x[:1], x[:0:-1]]),
    "an offset too many": with_array("train.indptr.npy", lambda x: np.r_[x, x[-1]]),
    "code": with_code,
    "a user less": lambda folder: with_users(folder, pl.read_parquet(folder / "users.parquet")[1:]),
    "fractions as ids": with_column("users.parquet", pl.lit(0.5).alias("id")),
    "no ids": with_column("items.parquet", pl.lit(None).cast(pl.String).alias("id")),
    "numbers as titles": with_column("items.parquet", pl.lit(1).alias("titles")),
    "an account of texts": lambda folder: (folder / "account.json").write_text(
        '{"steps": [{"name": "x", "taken": {"rows": "a", "users": 1, "items": 1}}], "warnings": []}'
    ),
}


def with_users(folder, table):
    table.write_parquet(folder / "users.parquet")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_data_of_a_stranger_is_checked(made, tmp_path, damage):
    folder = shutil.copytree(made[1] / "data", tmp_path / "data")
    damage(folder)
    with pytest.raises(UserError, match="this data set is damaged .its files are not those"):
        saved.load(folder)
    names = [path.name for path in folder.iterdir() if path.name != saved.DIGESTS]
    digests = {name: saved.digest(folder / name) for name in names if name != "touched"}
    (folder / saved.DIGESTS).write_text(str(digests).replace("'", '"'))
    with pytest.raises(UserError, match="this data set is damaged") as found:
        saved.load(folder)
    assert "not those that were saved" not in str(found.value)
    assert not (folder / "touched").exists()
