"""Relations against brute force, and matching against planted kinds."""

import jax
import numpy as np
import polars as pl
import pytest
import scipy.sparse

from hlrcml_jax import analyse
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.training.step import init_params

CATEGORIES = [["a"], ["a", "b"], ["b"], None, ["c"], ["c", "d"]]


def csr(rows):
    return scipy.sparse.csr_array(np.array(rows, bool))


@pytest.fixture
def dataset():
    """Three users and six items; only user 2 has no category in common with its test item."""
    train = csr([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]])
    test = csr([[0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0]])
    empty = csr(np.zeros((3, 6)))
    ids = pl.Series(range(3)), pl.Series(range(6))
    categories = pl.Series(CATEGORIES, dtype=pl.List(pl.String))
    return Dataset(train, empty, test, empty, *ids, categories=categories)


def test_top_categories_are_the_most_frequent(dataset):
    assert analyse.top_categories(dataset) == [{"a"}, {"b", "c"}, {"b"}]
    many = pl.Series([["x", "y", "z", "w"], ["w", "z"], ["w"], ["y"], [], []])
    dense = np.zeros((1, 6))
    dense[0, :4] = 1
    crowded = Dataset(csr(dense), *[csr(dense * 0)] * 3, None, None, categories=many)
    # w 3 times, y and z twice, x once.
    assert analyse.top_categories(crowded) == [{"w", "y", "z"}]


def test_relations_of_interactions_that_share_a_category(dataset):
    model = LRML(dim=5, memory_slots=3)
    params = init_params(jax.random.key(0), model, 3, 6, 5)
    scorer = Scorer(model, dataset.known("test"), 1, "uniform", 64, key=jax.random.key(0))
    found = analyse.relations(model, params, scorer, dataset, 100, seed=0)
    assert list(zip(found.user_N, found.item_N, strict=True)) == [(0, 1), (1, 1), (1, 5)]
    assert found.shared_N == [{"a"}, {"b"}, {"c"}]
    memory = params["model"]["memory"]
    for user, item, vector in zip(found.user_N, found.item_N, found.vector_NxD, strict=True):
        weights = jax.nn.softmax(params["users"][user] * params["items"][item] @ memory["keys"])
        np.testing.assert_allclose(vector, weights @ memory["values"], rtol=1e-5, atol=1e-6)
    fewer = analyse.relations(model, params, scorer, dataset, 2, seed=0)
    assert len(fewer.user_N) == len(fewer.vector_NxD) == len(fewer.shared_N) == 2


def test_what_cannot_be_analysed_says_why(dataset):
    params = init_params(jax.random.key(0), CML(), 3, 6, 5)
    scorer = Scorer(CML(), dataset.known("test"), 1, "uniform", 64, key=jax.random.key(0))
    with pytest.raises(UserError, match="CML has no relations"):
        analyse.relations(CML(), params, scorer, dataset, 9, seed=0)
    bare = Dataset(*[csr(np.zeros((1, 1)))] * 4, None, None)
    with pytest.raises(UserError, match=r"data.titles.categories"):
        analyse.relations(CML(), params, scorer, bare, 9, seed=0)


@pytest.mark.parametrize("n", [2, 511, 512, 1100])
def test_the_nearest_is_that_of_brute_force(n):
    vectors = np.random.default_rng(n).normal(size=(n, 7)).astype(np.float32)
    vectors = (5 + 1e-3 * vectors).astype(np.float32)  # relations hardly differ
    exact = vectors.astype(np.longdouble)
    unit = exact / np.sqrt(np.sum(exact**2, axis=1, keepdims=True))
    cosine = np.array([unit @ row for row in unit])
    np.fill_diagonal(cosine, -np.inf)
    np.testing.assert_array_equal(analyse.nearest(vectors), cosine.argmax(axis=1))


def test_planted_kinds_are_found_and_random_pairs_are_by_chance():
    """Three kinds of 100, 200 and 300, each around a direction of its own."""
    rng = np.random.default_rng(0)
    kind_N = np.repeat([0, 1, 2], [100, 200, 300])
    vectors = np.eye(3)[kind_N] + 0.05 * rng.normal(size=(600, 3))
    shared = [frozenset("xyz"[kind]) for kind in kind_N]
    relations = analyse.Relations(kind_N, kind_N, vectors.astype(np.float32), shared)
    found = analyse.matching(relations, seed=1)
    assert list(found) == ["all", "z", "y", "x"]
    assert all(row["nearest"] == 1.0 for row in found.values())
    assert [row["interactions"] for row in found.values()] == [600, 300, 200, 100]
    by_chance = sum(n * (n - 1) for n in (100, 200, 300)) / (600 * 599)
    np.testing.assert_allclose(found["all"]["random"], by_chance, atol=0.06)


def test_two_dimensions_keep_a_plane():
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 9)) * 1e-6 + 5.0
    points, variance = analyse.in_two_dimensions(plane)
    np.testing.assert_allclose(variance.sum(), 1.0, atol=1e-9)
    distance = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distance(points), distance(plane), atol=1e-9)
