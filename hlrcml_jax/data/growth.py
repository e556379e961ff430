"""More interactions for a data set: on top of its own, or to be predicted."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax.data import splits
from hlrcml_jax.data.account import EMPTY, Counts
from hlrcml_jax.data.dataset import Dataset, places, to_csr
from hlrcml_jax.data.weights import sums
from hlrcml_jax.errors import UserError


def extended(
    before: Dataset, table: pl.DataFrame, valid: float, seed: int, weight: str = ""
) -> Dataset:
    """A data set with more interactions; all that was there before is in its training part.

    Users and items keep their indices, and new ones follow, so that tables grow at their ends.

    Args:
      before: the data set.
      table: columns `user` and `item`, of which any may be known, and `value` for such weights.
      valid: share of each user's new interactions that is for validation.
      seed: of their draw.
      weight: one of registry.WEIGHTS, by which rows add to what they or known ones count; or "".

    Raises:
      UserError: when nothing in the table is new, or its ids are text and those before integers.
    """
    ids, index = {}, {}
    for role, known in (("user", before.user_ids), ("item", before.item_ids)):
        ids[role], index[role] = _appended(role, known, table[role])
    shape = (len(ids["user"]), len(ids["item"]))
    old = _resized(before.known("test")[:] + before.test, shape)
    new = _new(to_csr(index["user"], index["item"], shape), old)
    if not new.nnz:
        raise UserError("data.path: each of its interactions is in the run that is continued.")
    new_train, new_valid = splits.cut_validation(new, valid, seed)
    nothing = scipy.sparse.csr_array(shape, dtype=bool)
    weights = sums([table], weight, ids["user"], ids["item"])
    if weights is not None:
        known = old.astype(np.float32) if before.weights is None else before.weights
        weights += _resized(known, shape)
    texts: dict[str, Any] = {}
    if before.titles is not None:
        more = ids["item"][before.n_items :].cast(pl.String)
        texts["titles"] = pl.concat([before.titles, more.alias(before.titles.name)])
    if before.categories is not None:
        none = pl.Series([[]] * (shape[1] - before.n_items), dtype=pl.List(pl.String))
        texts["categories"] = pl.concat([before.categories, none.alias(before.categories.name)])
    rows = Counts(len(table), table["user"].n_unique(), table["item"].n_unique())
    account = EMPTY.step(
        "merging what repeats or was known",
        rows,
        dataclasses.replace(rows, rows=new.nnz),
    )
    return Dataset(
        old + new_train,
        new_valid,
        nothing,
        nothing,
        user_ids=ids["user"],
        item_ids=ids["item"],
        **texts,
        weights=weights,
        fresh=new,
        account=account,
    )


def with_test(dataset: Dataset, table: pl.DataFrame) -> tuple[Dataset, int]:
    """(a data set whose test part are new interactions, how many there are of others).

    Args:
      dataset: the data set.
      table: columns `user` and `item`; interactions of unknown ids, and known ones, are left out.
    """
    index = []
    for role, known in (("user", dataset.user_ids), ("item", dataset.item_ids)):
        index.append(places(known.cast(pl.String), table[role].cast(pl.String)))
    is_known = index[0].is_not_null() & index[1].is_not_null()
    user_E, item_E = (column.filter(is_known).to_numpy() for column in index)
    test = _new(to_csr(user_E, item_E, dataset.train.shape), dataset.known("test")[:])
    return dataclasses.replace(dataset, test=test), len(table) - test.nnz


def _new(pairs: scipy.sparse.csr_array, known: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The pairs that are not known."""
    pairs = pairs.astype(np.int8)
    new = (pairs - pairs.multiply(known.astype(np.int8))).astype(bool)
    new.eliminate_zeros()
    return new


def _appended(role: str, known: pl.Series, found: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """(known ids and then the new ones in ascending order, index among them of each found)."""
    if known.dtype == pl.String:
        found = found.cast(pl.String)
    if found.dtype != known.dtype:
        raise UserError(
            f"data.path: its {role} ids are texts, and those of the run that is continued are "
            "integers."
        )
    found = found.alias(known.name)
    new = found.filter(~found.is_in(known.implode())).unique().sort()
    ids = pl.concat([known, new])
    return ids, places(ids, found).to_numpy().astype(np.int64)


def _resized(matrix: scipy.sparse.csr_array, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    indptr = np.pad(matrix.indptr, (0, shape[0] - matrix.shape[0]), mode="edge")
    return scipy.sparse.csr_array((matrix.data, matrix.indices, indptr), shape=shape)
