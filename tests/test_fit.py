"""From a frame to a recommender in a few lines of Python."""

import json
import pathlib
import pickle
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

import hlrcml_jax as hlr
from hlrcml_jax import sources
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError

QUICK = {"train__epochs": 2, "train__batch_size": 100, "model__dim": 8, "negatives__candidates": 20}


@pytest.fixture(scope="module")
def table():
    return synthetic.generate(60, 40, 2400, seed=1).select("user", "item")


@pytest.fixture(scope="module")
def recommender(table):
    return hlr.fit(table, **QUICK)


def as_file(folder, table):
    table.write_csv(folder / "own.csv")
    return folder / "own.csv"


SAME = {
    "lazy": lambda folder, table: table.lazy(),
    "categories": lambda folder, table: table.cast(pl.String).cast(pl.Categorical),
    "pandas": lambda folder, table: pd.DataFrame(table.to_dict(as_series=False)),
    "pandas, text": lambda folder, table: pd.DataFrame(
        table.cast(pl.String).to_dict(as_series=False)
    ),
    "pandas, missing": lambda folder, table: pd.DataFrame(
        {"user": [*table["user"], None], "item": [*table["item"], None]}
    ).dropna(),
    "a path": as_file,
    "a text": lambda folder, table: str(as_file(folder, table)),
    "a matrix": lambda folder, table: matrix(table),
    "an old matrix": lambda folder, table: scipy.sparse.lil_matrix(matrix(table)),
}


def matrix(table):
    pairs = (table["user"].to_numpy(), table["item"].to_numpy())
    return scipy.sparse.csr_array((np.ones(len(table)), pairs))


@pytest.mark.parametrize("kind", SAME)
def test_whatever_holds_the_interactions_the_model_is_the_same(table, recommender, tmp_path, kind):
    found = hlr.fit(SAME[kind](tmp_path, table), **QUICK)
    assert found.recommend([3, 5]).equals(recommender.recommend([3, 5]))


def test_a_folder_of_the_same_name_is_not_the_recipe(table, recommender, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hlr.fit(table, "popularity", workdir="best")
    assert hlr.fit(table, **QUICK).recommend(3).equals(recommender.recommend(3))


def test_ids_that_no_number_holds_stay_apart(table):
    large = [float(user) if user % 2 else 2**60 + user for user in table["user"]]
    rows = pd.DataFrame({"user": pd.Series(large, dtype=object), "item": table["item"]})
    assert len(hlr.fit(rows, "popularity").users) == table["user"].n_unique()


def test_stored_zeros_are_no_interactions(table):
    stored = matrix(table)
    stored.data[:50] = 0
    rows = stored.nonzero()
    found = hlr.fit(stored, "popularity", validation=0, test=0).history()
    assert len(found) == len(rows[0])


UNREADABLE = {
    "objects": lambda: pl.DataFrame({"user": [1], "item": pl.Series([object()], dtype=pl.Object)}),
    "complex": lambda: pd.DataFrame({"user": [1], "item": [1j]}),
    "a broken matrix": lambda: broken(scipy.sparse.csr_array(np.eye(3))),
}


def broken(matrix):
    matrix.indices[0] = 1000
    return matrix


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_gets_a_sentence_with_the_argument(kind):
    with pytest.raises(UserError, match="interactions") as found:
        hlr.fit(UNREADABLE[kind]())
    assert "/hlrcml-" not in str(found.value)


def test_it_is_evaluated_beside_popularity(recommender):
    found = recommender.evaluate()
    assert found.columns == ["model", "metric", "mean", "low", "high", "p", "users"]
    assert set(found["model"]) == {"hlr-r", "popularity"}
    rows = found.filter(pl.col("metric") == "ndcg@10")
    for row in rows.iter_rows(named=True):
        assert 0 <= row["low"] < row["mean"] < row["high"] <= 1
        assert 0 < row["users"] <= 60
    assert rows["p"].is_null().to_list() == [False, True]


def test_held_out_interactions_are_predicted_as_the_test_part_is(table, tmp_path, capsys):
    rows = table.unique(maintain_order=True)
    kept, valid, test = rows[:-300], rows[-300:-200], rows[-200:]
    given = hlr.fit(kept, "cml", validation=valid, test=test, **QUICK)
    alone = hlr.fit(kept, "cml", validation=valid, test=0, **QUICK)
    with pytest.raises(UserError, match="there is nothing to predict"):
        alone.evaluate()
    capsys.readouterr()
    strangers = pl.DataFrame({"user": [1000, 1], "item": [1, 1000]})
    of_alone = alone.evaluate(pl.concat([test, strangers, kept[:5]]))
    assert "7 of " in capsys.readouterr().err
    ours = of_alone.filter(pl.col("model") == "cml")
    expected = given.evaluate().filter(pl.col("model") == "cml")
    assert ours["metric"].equals(expected["metric"])
    np.testing.assert_allclose(ours["mean"], expected["mean"], rtol=1e-6)


def test_what_is_temporary_goes_and_what_is_saved_stays(table, tmp_path):
    recommender = hlr.fit(table, "ease", test=0)
    expected, folder = recommender.recommend(3), recommender._run.workdir
    again = pickle.loads(pickle.dumps(recommender))
    assert again.recommend(3).equals(expected)
    recommender.save(tmp_path / "mine")
    with pytest.raises(UserError, match="it exists already"):
        recommender.save(tmp_path / "mine")
    with pytest.raises(UserError, match="or is in the run"):
        recommender.save(folder / "inside")
    assert not (tmp_path / "mine" / ".lock").exists()
    del recommender
    assert not folder.exists()
    moved = pathlib.Path(shutil.move(tmp_path / "mine", tmp_path / "moved"))
    assert hlr.load(moved).recommend(3).equals(expected)
    # With a workdir, the same call finds what was trained.
    first = hlr.fit(table, "ease", workdir=tmp_path / "kept", test=0)
    trained = (tmp_path / "kept" / "metrics.jsonl").stat().st_mtime_ns
    assert hlr.fit(table, "ease", workdir=tmp_path / "kept", test=0).recommend(3).equals(expected)
    assert first.recommend(3).equals(expected)
    assert (tmp_path / "kept" / "metrics.jsonl").stat().st_mtime_ns == trained


def test_text_ids_keep_their_zeros(table):
    items = [f"00{item}" for item in table["item"]]
    found = hlr.fit(pd.DataFrame({"user": table["user"], "item": items}), "popularity")
    assert all(id.startswith("00") for id in found.recommend(1)["item_id"])


def test_a_name_is_that_of_a_public_data_set():
    path_of = {"interactions": "ml-100k"}
    values = sources.settings("ml-100k", 0.1, 0.2, path_of)
    assert values == {"data.name": "ml-100k", "data.split.valid": 0.1, "data.split.test": 0.2}
    assert sources.settings(pathlib.Path("ml-100k"), 0.1, 0.2, path_of)["data.path"] == "ml-100k"


class Stop(Exception):
    """What a caller raises to end a trial."""


def test_a_caller_hears_each_epoch_and_may_stop(table, tmp_path):
    quick, heard = QUICK | {"train__validate_every": 1}, []
    whole = hlr.fit(table, "cml", workdir=tmp_path / "whole", **quick)

    def stop_after_one(record):
        heard.append(record)
        raise Stop

    with pytest.raises(Stop):
        hlr.fit(table, "cml", workdir=tmp_path / "run", on_epoch=stop_after_one, **quick)
    again = hlr.fit(table, "cml", workdir=tmp_path / "run", on_epoch=heard.append, **quick)
    assert [record["epoch"] for record in heard] == [1, 2]
    assert heard[1]["ndcg@10"] > 0
    assert again.scores(1, 2).equals(whole.scores(1, 2))
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert heard == list(map(json.loads, log))
