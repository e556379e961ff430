"""The prepared data set: a CSR matrix for each part, and the original ids."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax.data.account import EMPTY, Account

PARTS = ("train", "valid", "test", "history")
USERS_PER_COUNT = 2**16  # users whose items are counted at a time
FEW = 1000  # ids that are looked up one by one


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions of U users with I items.

    Attributes:
      train: boolean CSR (U, I), column indices ascending in each row, as in all parts.
      valid: interactions to choose models on.
      test: interactions to report on, once.
      history: interactions of held-out users, known at evaluation but not trained on.
      user_ids: original ids by user index.
      item_ids: original ids by item index.
      titles: titles by item index, or None.
      categories: lists of categories by item index, or None.
      weights: what each interaction counts in training, float32 CSR (U, I) over all parts; or None.
      fresh: of a run that continues another, the interactions that it did not have; or None.
      account: what the preparation took away, and its warnings.
    """

    train: scipy.sparse.csr_array
    valid: scipy.sparse.csr_array
    test: scipy.sparse.csr_array
    history: scipy.sparse.csr_array
    user_ids: pl.Series
    item_ids: pl.Series
    titles: pl.Series | None = None
    categories: pl.Series | None = None
    weights: scipy.sparse.csr_array | None = None
    fresh: scipy.sparse.csr_array | None = None
    account: Account = EMPTY

    @property
    def n_users(self) -> int:
        return self.train.shape[0]

    @property
    def n_interactions(self) -> int:
        """Interactions over all parts."""
        return self.train.nnz + self.valid.nnz + self.test.nnz + self.history.nnz

    @property
    def n_items(self) -> int:
        return self.train.shape[1]

    @property
    def size(self) -> str:
        """Counts of users, items and interactions, for the console."""
        return (
            f"{self.n_users:,} users, {self.n_items:,} items, {self.n_interactions:,} interactions"
        )

    def known(self, part: str) -> "Known":
        """The users' histories when `part` is predicted: for test all other parts."""
        parts = self.train, self.history
        return Known(parts if part == "valid" else (*parts, self.valid))

    def seen(self) -> "Known":
        """All that users have in the data, of which nothing is recommended to them."""
        return Known((self.train, self.history, self.valid, self.test))

    def with_all_in_training(self) -> "Dataset":
        """With validation in the training part."""
        nothing = scipy.sparse.csr_array(self.valid.shape, dtype=bool)
        return dataclasses.replace(self, train=self.train + self.valid, valid=nothing)

    def weighted_train(self) -> scipy.sparse.csr_array:
        """The training part with its weights, float32; as it is, boolean, without any."""
        return self.train if self.weights is None else self.weights.multiply(self.train).tocsr()

    def fingerprint(self) -> str:
        """Hash of all interactions; a run can only be resumed with the same data."""
        digest = hashlib.sha256(str(self.train.shape).encode())
        for part in PARTS:
            digest.update(getattr(self, part).indptr.astype(np.int64).tobytes())
            digest.update(getattr(self, part).indices.astype(np.int64).tobytes())
        if self.weights is not None:
            digest.update(self.weights.data.tobytes())
        if self.fresh is not None:
            digest.update(self.fresh.indices.astype(np.int64).tobytes())
        return digest.hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Known:
    """The users' histories: the union of disjoint parts, built only for the requested users.

    Attributes:
      parts: CSR matrices (U, I).
    """

    parts: tuple[scipy.sparse.csr_array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    @property
    def indptr(self) -> np.ndarray:
        """Row offsets of the union as CSR, (U + 1,)."""
        return sum((part.indptr for part in self.parts[1:]), start=self.parts[0].indptr)

    def __getitem__(self, users: slice | Sequence[int] | np.ndarray) -> scipy.sparse.csr_array:
        """CSR of some users, by user indices or a slice."""
        return sum((part[users] for part in self.parts[1:]), start=self.parts[0][users])


def count_items(known: Known | scipy.sparse.csr_array) -> np.ndarray:
    """Number of users of each item, (I,)."""
    n_users, n_items = known.shape
    count_I = np.zeros(n_items, np.int64)
    for start in range(0, n_users, USERS_PER_COUNT):
        count_I += np.bincount(known[start : start + USERS_PER_COUNT].indices, minlength=n_items)
    return count_I


def places(ids: pl.Series, wanted: pl.Series) -> pl.Series:
    """Index among the ids, of the same type, of each wanted one; null where there is none."""
    table = pl.DataFrame({"id": ids}).with_row_index("index")
    asked = pl.DataFrame({"id": wanted})
    return asked.join(table, on="id", how="left", maintain_order="left")["index"]


class Lookup:
    """The places of a few ids at a time among many, which are sorted once.

    Args:
      ids: all ids, distinct.
    """

    def __init__(self, ids: pl.Series):
        self.ids = ids

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, pl.Series]:
        order = self.ids.arg_sort()
        return order.to_numpy(), self.ids.gather(order)

    def __call__(self, wanted: pl.Series) -> np.ndarray:
        """Index of each wanted id, of the same type; -1 where there is none."""
        if len(wanted) > FEW:
            return places(self.ids, wanted).fill_null(-1).to_numpy().astype(np.int64)
        if not len(self.ids):
            return np.full(len(wanted), -1)
        order, sorted_ids = self._sorted
        place = np.minimum(sorted_ids.search_sorted(wanted).to_numpy(), len(order) - 1)
        found = sorted_ids.gather(place).to_list()
        is_there = [one == other for one, other in zip(found, wanted.to_list(), strict=True)]
        return np.where(is_there, order[place].astype(np.int64), -1)


def to_csr(
    user_E: np.ndarray, item_E: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Boolean CSR of distinct pairs, column indices ascending in each row."""
    ones = np.ones(len(user_E), bool)
    matrix = scipy.sparse.csr_array((ones, (user_E, item_E)), shape=shape)
    matrix.sum_duplicates()
    return matrix
