"""Models solved in closed form or by a library, which score by an inner product."""

import contextlib
import dataclasses
import importlib
import warnings
from typing import Any, ClassVar, cast

import numpy as np
import scipy.linalg
import scipy.sparse
import threadpoolctl

from hlrcml_jax import devices, schema
from hlrcml_jax.errors import UserError
from hlrcml_jax.keys import field_of
from hlrcml_jax.models.base import Model, Spec
from hlrcml_jax.models.distances import cosine, products

MAX_ITEMS = 50_000
BYTES_PER_PAIR = 20  # of items: a weight in float64, and its copies in float32
BLOCK = 1024  # rows of a matrix that are inverted, or filled, at a time

_SPEC = Spec(ball=False, closed_form=True, users_from_items=False, sharded=False)
_HISTORY_SPEC = dataclasses.replace(_SPEC, rows_are_histories=True)


class ClosedForm(Model):
    """score(u, t) = <u, t> with rows that `fit` computes from the training interactions.

    With `rows_are_histories` a user's row is its history, 0 or 1 per item (I,), an item's row is
    its column of a matrix W (I, I), and the table of users is not used.
    """

    spec: ClassVar[Spec] = _SPEC

    def fit(self, train: scipy.sparse.csr_array, seed: int) -> dict[str, Any]:
        """The parameters as host arrays: `users`, `items` and an empty `model`.

        Args:
          train: CSR (U, I), boolean, or of the interactions' weights.
          seed: of any random start.
        """
        raise TypeError(f"{type(self).__name__} has no fit")

    def widths(self, n_items: int) -> tuple[int, int]:
        """(length of a user row, length of an item row)."""
        return (1, n_items) if self.spec.rows_are_histories else (1, 1)

    def fold_in(self, items_IxD: np.ndarray, histories: scipy.sparse.csr_array) -> np.ndarray:
        """Rows (N, D) of new users, from their histories, CSR (N, I)."""
        if not self.spec.rows_are_histories:
            raise TypeError(f"{type(self).__name__} has no fold_in")
        return np.zeros((histories.shape[0], 1))  # unused: the history is the row

    def closeness(self, moved_BxTxD, target_BxTxD):
        return products(moved_BxTxD, target_BxTxD)

    def user_factors(self, user_BxD):
        return user_BxD

    def item_similarity(self, items_IxD, item_T):
        """Cosine of the rows; with `rows_are_histories`, the weights W."""
        return items_IxD.T[item_T] if self.spec.rows_are_histories else cosine(items_IxD, item_T)


def closed_form(model: Model) -> ClosedForm | None:
    """The model, if it is solved and not trained; else None."""
    return cast(ClosedForm, model) if model.spec.closed_form else None


class Popularity(ClosedForm):
    """score(u, t) = number of training interactions of t."""

    def fit(self, train, seed):
        return {
            "users": np.ones((train.shape[0], 1), np.float32),
            "items": _counts(train)[:, None],
            "model": {},
        }

    def fold_in(self, items_IxD, histories):
        return np.ones((histories.shape[0], 1))


class ALS(ClosedForm):
    """Weighted matrix factorisation by alternating least squares (Hu et al., ICDM 2008).

    Solved by the library `implicit`.
    """

    dim: int
    regularization: float = field_of(schema.ALS, "regularization")
    iterations: int = field_of(schema.ALS, "iterations")

    def widths(self, n_items):
        return self.dim, self.dim

    def fit(self, train, seed):
        library = _implicit("als")
        with _quietly():
            als = library.AlternatingLeastSquares(
                factors=self.dim,
                regularization=self.regularization,
                iterations=self.iterations,
                random_state=seed,
                use_gpu=False,
            )
            als.fit(scipy.sparse.csr_matrix(train, dtype=np.float32), show_progress=False)
        return {"users": als.user_factors, "items": als.item_factors, "model": {}}

    def fold_in(self, items_IxD, histories):
        """Least squares for each user with fixed items (the paper's equation 4)."""
        gram_DxD = items_IxD.T @ items_IxD + self.regularization * np.eye(self.dim)
        return np.linalg.solve(gram_DxD, (histories.astype(np.float32) @ items_IxD).T).T


class ItemKNN(ClosedForm):
    """score(u, t) = sum of the similarities of t to the user's items (Sarwar et al., WWW 2001).

    Similarities are kept for nearest neighbours only. Solved by the library `implicit`.
    """

    spec: ClassVar[Spec] = _HISTORY_SPEC

    similarity: str = field_of(schema.ItemKNN, "similarity")
    neighbours: int = field_of(schema.ItemKNN, "neighbours")

    def fit(self, train, seed):
        library = _implicit("nearest_neighbours")
        kinds = {
            "cosine": library.CosineRecommender,
            "tfidf": library.TFIDFRecommender,
            "bm25": library.BM25Recommender,
        }
        knn = kinds[self.similarity](K=min(self.neighbours, train.shape[1]))
        with _quietly():
            knn.fit(scipy.sparse.csr_matrix(train, dtype=np.float32), show_progress=False)
        return _from_weights(train, lambda: knn.similarity.toarray())


class EASE(ClosedForm):
    """x_u W, where W is the least-squares solution with zero diagonal (Steck, WWW 2019).

    W = -P / diag(P) off the diagonal, with P = (X'X + l2 I)^-1 in float64.
    """

    spec: ClassVar[Spec] = _HISTORY_SPEC

    l2: float = field_of(schema.EASE, "l2")

    def fit(self, train, seed):
        def weights():
            inverse_IxI = inverse(_gram(train, self.l2))
            inverse_IxI /= -np.diag(inverse_IxI)
            np.fill_diagonal(inverse_IxI, 0.0)
            return inverse_IxI

        return _from_weights(train, weights)


def _gram(train: scipy.sparse.csr_array, l2: float) -> np.ndarray:
    """X'X + l2 I, (I, I), in float64."""
    x_UxI = train.astype(np.float64)
    x_IxU, n = x_UxI.T.tocsr(), train.shape[1]
    gram_IxI = np.empty((n, n))
    for start in range(0, n, BLOCK):
        gram_IxI[start : start + BLOCK] = (x_IxU[start : start + BLOCK] @ x_UxI).toarray()
    gram_IxI[np.diag_indices(n)] += l2
    return gram_IxI


def inverse(matrix_IxI: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """The inverse of a symmetric positive definite matrix, in its place.

    LAPACK inverts blocks of the diagonal only, because its 32-bit indices overflow in a matrix of
    many rows; the rest are products (Gauss and Jordan, by blocks).

    Args:
      matrix_IxI: float64; it is overwritten.
      block: rows of a block.
    """
    n = len(matrix_IxI)
    for start in range(0, n, block):
        own = slice(start, start + block)
        factor = scipy.linalg.cho_factor(matrix_IxI[own, own])
        inverse_BxB = scipy.linalg.cho_solve(factor, np.eye(len(factor[0])))
        column_IxB = matrix_IxI[:, own].copy()
        column_IxB[own] = 0.0
        solved_IxB = column_IxB @ inverse_BxB
        for first in range(0, n, block):
            rows = slice(first, first + block)
            matrix_IxI[rows] -= solved_IxB[rows] @ column_IxB.T
        matrix_IxI[:, own] = solved_IxB
        matrix_IxI[own] = solved_IxB.T
        matrix_IxI[own, own] = -inverse_BxB
    return np.negative(matrix_IxI, out=matrix_IxI)


def _from_weights(train, weights) -> dict[str, Any]:
    n = train.shape[1]
    n_bytes, there = BYTES_PER_PAIR * n**2, devices.host_memory()
    if n > MAX_ITEMS or n_bytes > there:
        raise UserError(
            f"this model has a weight for each pair of items, and {n:,} items take "
            f"{n_bytes / 1e9:,.0f} GB; there may be {MAX_ITEMS:,} items and are {there / 1e9:,.0f} "
            "GB of memory. Raise data.min_per_item, or choose another model.name."
        )
    return {
        "users": np.zeros((train.shape[0], 1), np.float32),
        "items": np.ascontiguousarray(weights().T, np.float32),
        "model": {},
    }


def _counts(train) -> np.ndarray:
    return np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)


def _implicit(module: str):
    """A module of the optional library `implicit`."""
    try:
        return importlib.import_module(f"implicit.{module}")
    except ImportError:
        raise UserError(
            "this model is solved by the library implicit, which is not installed; "
            "run pip install implicit."
        ) from None


@contextlib.contextmanager
def _quietly():
    """Limits BLAS to one thread, since `implicit` has its own, and hides its warnings."""
    with threadpoolctl.threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
