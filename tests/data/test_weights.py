"""Weights of interactions: repeated rows and values count in training."""

import dataclasses

import numpy as np
import polars as pl
import pytest

import hlrcml_jax as hlr
from hlrcml_jax import keys, schema
from hlrcml_jax.data import synthetic
from hlrcml_jax.data.prepare import prepare, prepare_more
from hlrcml_jax.errors import UserError
from hlrcml_jax.training.interactions import Positives

QUICK = {
    "loss__weight_power": 1.0,
    "train__epochs": 6,
    "train__batch_size": 100,
    "model__dim": 8,
    "negatives__candidates": 20,
}
TOTALS = {"rows": pl.len().cast(pl.Float64), "value": pl.col("value").sum()}


@pytest.fixture(scope="module")
def table():
    """Pairs that occur up to three times, with values."""
    pairs = synthetic.generate(60, 40, 2400, seed=1).select("user", "item").unique()
    rows = pairs.sample(2 * len(pairs), with_replacement=True, seed=3)
    rng = np.random.default_rng(0)
    return rows.with_columns(value=pl.Series(rng.integers(1, 50, len(rows)) / 2))


def prepared(tmp_path, table, **changes):
    path = tmp_path / "own.parquet"
    table.write_parquet(path)
    values = {"path": str(path), "cache_dir": str(tmp_path / "cache")} | changes
    return keys.replaced(schema.Data(), values)


def weights_by_id(dataset):
    cells = dataset.weights.tocoo()
    ids = (dataset.user_ids.gather(cells.row), dataset.item_ids.gather(cells.col))
    return {(user, item): w for user, item, w in zip(*ids, cells.data, strict=True)}


def expected(table, weight):
    found = table.group_by("user", "item").agg(total=TOTALS[weight])
    return {(user, item): total for user, item, total in found.rows()}


@pytest.mark.parametrize("weight", TOTALS)
def test_a_pair_counts_as_its_rows_or_values_do(table, tmp_path, weight):
    options = prepared(tmp_path, table, weight=weight, min_per_user=5)
    dataset = prepare(options)
    found, wanted = weights_by_id(dataset), expected(table, weight)
    assert found == pytest.approx({pair: wanted[pair] for pair in found})
    assert len(found) == dataset.n_interactions
    train = dataset.weighted_train()
    assert (train.indices == dataset.train.indices).all()
    assert (train.indptr == dataset.train.indptr).all()
    assert weights_by_id(prepare(options)) == found  # from the cache


@pytest.mark.parametrize("weight", TOTALS)
def test_parts_of_a_given_split_and_what_comes_later_add_up(table, tmp_path, weight):
    parts = {"train": table[:600], "more": table[700:]}
    parts["valid"] = table[600:700].join(parts["train"], on=["user", "item"], how="anti")
    for name, part in parts.items():
        part.write_parquet(tmp_path / f"{name}.parquet")
    paths = {f"split.{name}_path": str(tmp_path / f"{name}.parquet") for name in ("train", "valid")}
    before = prepare(
        prepared(tmp_path, table[:0], weight=weight, path="", **paths | {"split.kind": "given"})
    )
    wanted = pl.concat([parts["train"], parts["valid"]])
    assert weights_by_id(before) == pytest.approx(expected(wanted, weight))
    after = prepare_more(prepared(tmp_path, parts["more"], weight=weight), before)
    wanted = pl.concat([wanted, parts["more"]])
    assert weights_by_id(after) == pytest.approx(expected(wanted, weight))
    assert len(weights_by_id(after)) == after.n_interactions


def test_equal_weights_change_nothing_and_greater_ones_pull(table):
    distinct = table.unique(["user", "item"]).sort("user", "item")
    heavy = table["item"][0]
    more = pl.when(pl.col("item") == heavy).then(100.0).otherwise(1.0)
    tables = (distinct, distinct.with_columns(value=7.0), distinct.with_columns(value=more))
    weights = ("", "value", "value")
    unweighted, equal, pulled = (
        hlr.fit(each, model="cml", test=0, data__weight=weight, **QUICK).scores([*range(60)], heavy)
        for each, weight in zip(tables, weights, strict=True)
    )
    np.testing.assert_array_equal(equal["score"], unweighted["score"])
    fans = distinct.filter(pl.col("item") == heavy)["user"]
    went_up = (pulled["score"] > unweighted["score"]).gather(fans)
    assert went_up.mean() > 0.8


def test_shards_have_the_weights_of_their_positives(table, tmp_path):
    dataset = prepare(prepared(tmp_path, table, weight="value"))
    matrix = dataset.weighted_train()
    whole = Positives.of(matrix)
    parts = Positives.parts(matrix, 3, range(3))
    found = [
        row[:n] for row, n in zip(np.asarray(parts.weight_E), np.asarray(parts.count), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(found), whole.weight_E[: matrix.nnz])
    dense = matrix.toarray()
    np.testing.assert_array_equal(
        whole.weight_E, dense[np.asarray(whole.user_E), np.asarray(whole.item_E)]
    )
    assert Positives.of(dataset.train).weight_E is None


def test_als_takes_them_for_its_confidence(table):
    distinct = table.unique(["user", "item"]).sort("user", "item")
    likes = distinct.with_columns(value=pl.when(pl.col("item") < 5).then(40.0).otherwise(1.0))
    how = {"loss__weight_power": 1.0, "model__dim": 4, "model__als__regularization": 0.1}
    light, heavy = (
        hlr.fit(likes, "als", test=0, data__weight=weight, **how) for weight in ("", "value")
    )
    pairs = likes.filter(pl.col("item") < 5).select("user", "item")
    assert error(heavy, pairs) < 0.8 * error(light, pairs)


def error(recommender, pairs):
    """Mean squared error of the scores of positives, which ALS fits to 1."""
    params, dataset = recommender._params, dataclasses.asdict(recommender._run.dataset)
    places = {
        role: {id: place for place, id in enumerate(dataset[f"{role}_ids"])}
        for role in ("user", "item")
    }
    user_N = [places["user"][user] for user in pairs["user"]]
    item_N = [places["item"][item] for item in pairs["item"]]
    score_N = (np.asarray(params["users"])[user_N] * np.asarray(params["items"])[item_N]).sum(1)
    return np.mean((score_N - 1) ** 2)


WRONG = {
    "no values": (lambda table: table.drop("value"), {}, "has no column of values"),
    "not above 0": (
        lambda table: table.with_columns(value=pl.col("value") - 10),
        {},
        "value is -.*; weights are from 1e-09 to 1e.09",
    ),
    "a model of counts": (
        lambda table: table,
        {"model": "ease"},
        "data.weight cannot be used with model.name 'ease'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_get_a_sentence(table, kind):
    change, how, sentence = WRONG[kind]
    with pytest.raises(UserError, match=sentence):
        hlr.fit(change(table), data__weight="value", **QUICK | how)
