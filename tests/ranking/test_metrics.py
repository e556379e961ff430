"""Metrics against hand arithmetic, the paper's program, and two other libraries."""

import json
import pathlib

import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ranx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hlrcml_jax.ranking import metrics
from hlrcml_jax.registry import METRICS

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


def by_name(hits_BxK, relevant_B, cutoffs, definitions):
    measure = jax.jit(metrics.user_metrics, static_argnums=(2, 3))
    found = measure(jnp.asarray(hits_BxK, float), jnp.asarray(relevant_B), cutoffs, definitions)
    return {name: np.asarray(value, float) for name, value in found.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Hits at ranks 2 and 3 of 4, three relevant items.
        ("ndcg", (1 / np.log2(3) + 1 / np.log2(4)) / (1 + 1 / np.log2(3) + 1 / np.log2(4))),
        ("map", (1 / 2 + 2 / 3) / 3),
        ("mrr", 1 / 2),
        ("precision", 2 / 4),
        ("recall", 2 / 3),
        ("hit_rate", 1.0),
    ],
)
def test_standard_by_hand(name, expected):
    found = by_name([[0, 1, 1, 0]], [3], (4,), "standard")
    np.testing.assert_allclose(found[f"{name}@4"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg_local", (1 / np.log2(3) + 1 / np.log2(4)) / (1 + 1 / np.log2(3))),
        ("map", (1 / 2 + 2 / 3) / 4),
        ("mrr", 1 / 2 + 1 / 3),
        ("hit_rate", 2 / 3),
    ],
)
def test_paper_by_hand(name, expected):
    found = by_name([[0, 1, 1, 0]], [3], (4,), "paper")
    np.testing.assert_allclose(found[f"{name}@4"], expected, rtol=1e-6)


def test_paper_definitions_agree_with_the_papers_program():
    with np.load(FIXTURES / "metrics.npz", allow_pickle=False) as arrays:
        recommended, relevant = arrays["recommended"], arrays["relevant"]
        popularity = arrays["popularity"]
    expected = json.loads((FIXTURES / "metrics.json").read_text())
    hits_BxK = np.array(
        [
            np.isin(items, wanted[wanted >= 0])
            for items, wanted in zip(recommended, relevant, strict=False)
        ]
    )
    found = by_name(hits_BxK, (relevant >= 0).sum(axis=1), (1, 5, 10, 20), "paper")
    names = {"ndcg_global": "ndcg", "hitrate": "hit_rate"}
    assert len(expected) == 29
    for key, value in expected.items():
        if key == "median_rank":
            assert metrics.median_rank(recommended[:, :10], popularity) == value
            continue
        name, k = key.split("@")
        mean = np.nanmean(found[f"{names.get(name, name)}@{k}"])
        np.testing.assert_allclose(mean, value, rtol=1e-5, err_msg=key)


def random_lists(seed, n_users=40, n_items=80, length=30):
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(n_items)[:length] for _ in range(n_users)])
    relevant = [rng.permutation(n_items)[: rng.integers(1, 25)] for _ in range(n_users)]
    hits = np.array([np.isin(a, b) for a, b in zip(lists, relevant, strict=True)])
    # Strictly decreasing scores: libraries break ties in different ways.
    qrels = {f"u{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(relevant)}
    run = {
        f"u{u}": {f"i{i}": float(length - rank) for rank, i in enumerate(items)}
        for u, items in enumerate(lists)
    }
    return hits, np.array([len(items) for items in relevant]), qrels, run


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_standard_definitions_agree_with_trec_eval(seed, k):
    hits, relevant, qrels, run = random_lists(seed)
    found = by_name(hits, relevant, (k,), "standard")
    oracle = {
        "ndcg": ir_measures.nDCG @ k,
        "map": ir_measures.AP @ k,
        "mrr": ir_measures.RR @ k,
        "precision": ir_measures.P @ k,
        "recall": ir_measures.R @ k,
        "hit_rate": ir_measures.Success @ k,
    }
    assert set(oracle) == set(METRICS)
    for value in ir_measures.iter_calc(list(oracle.values()), qrels, run):
        name = next(name for name, measure in oracle.items() if measure == value.measure)
        user = int(value.query_id[1:])
        np.testing.assert_allclose(found[f"{name}@{k}"][user], value.value, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_standard_definitions_agree_with_ranx(k):
    hits, relevant, qrels, run = random_lists(2)
    found = by_name(hits, relevant, (k,), "standard")
    names = {name: f"{name}@{k}" for name in ("ndcg", "map", "mrr", "precision", "recall")}
    names["hit_rate"] = f"hit_rate@{k}"
    expected = ranx.evaluate(
        ranx.Qrels(qrels), ranx.Run(run), list(names.values()), make_comparable=True
    )
    for name, label in names.items():
        np.testing.assert_allclose(found[f"{name}@{k}"].mean(), expected[label], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.bool_, (4, 12)), st.sampled_from([1, 2, 7, 12]), st.integers(0, 8))
def test_definitions_are_linked(hits, k, missed):
    relevant = np.maximum(hits.sum(axis=1) + missed, 1)
    standard = by_name(hits, relevant, (k,), "standard")
    paper = by_name(hits, relevant, (k,), "paper")
    np.testing.assert_allclose(paper[f"map@{k}"] * k, standard[f"map@{k}"] * relevant, rtol=1e-5)
    np.testing.assert_array_equal(standard[f"hit_rate@{k}"] > 0, standard[f"mrr@{k}"] > 0)
    np.testing.assert_array_equal(paper[f"hit_rate@{k}"], standard[f"recall@{k}"])
    for name in METRICS:
        assert (standard[f"{name}@{k}"] >= 0).all()
        assert (standard[f"{name}@{k}"] <= 1 + 1e-6).all()


def test_places_that_could_not_be_filled_are_misses():
    """A list that is shorter than k holds the whole catalogue."""
    short = by_name([[1, 0]], [2], (4,), "standard")
    full = by_name([[1, 0, 0, 0]], [2], (4,), "standard")
    for name, value in full.items():
        np.testing.assert_allclose(short[name], value, rtol=1e-6, err_msg=name)


def test_median_rank_and_coverage_count_distinct_items():
    lists = np.array([[0, 1], [0, 3], [0, -1]])
    rank_I = np.array([1, 2, 3, 10])
    assert metrics.median_rank(lists, rank_I) == 2  # of 1, 2 and 10
    assert metrics.coverage(lists, 4) == 3 / 4


def test_tables_show_ten_or_the_smallest_cutoff():
    assert metrics.shown((5, 10, 20)) == 10
    assert metrics.shown((20, 5, 0)) == 5
    assert metrics.shown((0,)) == 1
