"""Solved models against the library, against least squares, and through the product's ranking."""

import sys

import implicit.als
import implicit.nearest_neighbours
import jax
import numpy as np
import pytest
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data import synthetic
from hlrcml_jax.data.dataset import to_csr
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import closed_form as solved
from hlrcml_jax.models.closed_form import ALS, EASE, ItemKNN
from hlrcml_jax.ranking.scorer import Scorer

K = 10


@pytest.fixture(scope="module")
def train():
    table = synthetic.generate(80, 60, 1500, seed=2)
    return to_csr(table["user"].to_numpy(), table["item"].to_numpy(), (80, 60))


def csr_matrix(train):
    return scipy.sparse.csr_matrix(train, dtype=np.float32)


def ranked(model, train):
    """The product's lists: items and scores of every user, known items left out."""
    scorer = Scorer(model, train, 1, "uniform", 64, key=jax.random.key(0))
    params = devices.replicate(model.fit(train, seed=3))
    (ranking,) = scorer.rank(params, np.arange(train.shape[0]), K)
    return ranking.item_CxK, ranking.score_CxK


def assert_same_ranking(found, library, train):
    """Scores agree place by place, and items wherever no other item has the same score."""
    items, scores = found
    users = np.arange(train.shape[0])
    expected_items, expected_scores = library.recommend(users, csr_matrix(train), N=K)
    # The library fills places that cannot be filled with scores of the lowest float or of zero.
    real = (items >= 0) & (expected_scores > -1e30)
    assert real.mean() > 0.9
    np.testing.assert_allclose(scores[real], expected_scores[real], rtol=1e-4, atol=1e-5)
    # What follows the last place is unknown, and may have its score.
    gap = np.abs(np.diff(scores, axis=1, prepend=np.inf, append=scores[:, -1:]))
    alone = real & (gap[:, :-1] > 1e-4) & (gap[:, 1:] > 1e-4)
    assert alone.sum() > 300
    np.testing.assert_array_equal(items[alone], expected_items[alone])


def test_als_ranks_as_the_library_does(train):
    library = implicit.als.AlternatingLeastSquares(
        factors=8, regularization=0.1, iterations=5, random_state=3
    )
    library.fit(csr_matrix(train), show_progress=False)
    assert_same_ranking(ranked(ALS(8, 0.1, 5), train), library, train)


@pytest.mark.parametrize(
    ("similarity", "library"),
    [
        ("cosine", implicit.nearest_neighbours.CosineRecommender),
        ("tfidf", implicit.nearest_neighbours.TFIDFRecommender),
        ("bm25", implicit.nearest_neighbours.BM25Recommender),
    ],
)
def test_item_knn_ranks_as_the_library_does(train, similarity, library):
    fitted = library(K=7)
    fitted.fit(csr_matrix(train), show_progress=False)
    assert_same_ranking(ranked(ItemKNN(similarity, 7), train), fitted, train)


def test_ease_is_constrained_least_squares(train):
    """Each column of W by itself: ridge regression of an item on all others."""
    l2, x = 20.0, train.toarray().astype(float)
    found = EASE(l2).fit(train, seed=0)["items"].T
    for item in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), item)
        gram = x[:, others].T @ x[:, others] + l2 * np.eye(len(others))
        expected = np.linalg.solve(gram, x[:, others].T @ x[:, item])
        np.testing.assert_allclose(found[others, item], expected, rtol=1e-5, atol=1e-7)
        assert found[item, item] == 0


@pytest.mark.parametrize("block", [1, 7, 60, 1024])
def test_the_inverse_by_blocks(train, block):
    x = train.toarray().astype(float)
    matrix = x.T @ x + 5.0 * np.eye(60)
    found = solved.inverse(matrix.copy(), block)
    np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "limit", [(solved, "MAX_ITEMS", 59), (devices, "host_memory", lambda: 71_999)]
)
@pytest.mark.parametrize("model", [EASE(), ItemKNN()])
def test_too_many_items_for_all_pairs(train, monkeypatch, model, limit):
    """60 items have 3,600 pairs of 20 bytes."""
    monkeypatch.setattr(*limit)
    with pytest.raises(UserError, match="60 items take 0 GB"):
        model.fit(train, seed=0)


def test_more_neighbours_than_items(train):
    few, many = (ItemKNN("cosine", n).fit(train, seed=0)["items"] for n in (60, 2**31 - 1))
    np.testing.assert_array_equal(few, many)


def test_without_the_library_its_models_say_what_to_install(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    with pytest.raises(UserError, match=r"pip install implicit\."):
        ALS(8).fit(train, seed=0)
