"""The data set as everything else sees it: one CSR matrix a part, and the original ids."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl
import scipy.sparse

PARTS = ("train", "valid", "test", "history")
ARRAYS = ("data", "indices", "indptr")  # of a CSR matrix
USERS = 2**16  # whose items are counted at a time


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Interactions of U users with I items.

    Attributes:
      train: boolean CSR (U, I), column indices ascending in each row, as in all parts.
      valid: what models are chosen on.
      test: what is reported once.
      history: known at evaluation but not trained on (held-out users), else empty.
      user_ids: the original ids, by row.
      item_ids: the original ids, by column.
      titles: the items' titles by column, or None.
      categories: the items' categories by column, each a list of text, or None.
    """

    train: scipy.sparse.csr_array
    valid: scipy.sparse.csr_array
    test: scipy.sparse.csr_array
    history: scipy.sparse.csr_array
    user_ids: pl.Series
    item_ids: pl.Series
    titles: pl.Series | None = None
    categories: pl.Series | None = None

    @property
    def n_users(self) -> int:
        return self.train.shape[0]

    @property
    def n_interactions(self) -> int:
        """Of all parts."""
        return self.train.nnz + self.valid.nnz + self.test.nnz + self.history.nnz

    @property
    def n_items(self) -> int:
        return self.train.shape[1]

    @property
    def size(self) -> str:
        """How large it is, in a few words."""
        return (
            f"{self.n_users:,} users, {self.n_items:,} items, {self.n_interactions:,} interactions"
        )

    def known(self, part: str) -> "Known":
        """What may be known when `part` is predicted: for test all but test itself."""
        known = self.train, self.history
        return Known(known if part == "valid" else (*known, self.valid))

    def fingerprint(self) -> str:
        """Hash of all interactions, to tell whether a run goes on with the data it began with."""
        digest = hashlib.sha256(str(self.train.shape).encode())
        for part in PARTS:
            digest.update(getattr(self, part).indptr.astype(np.int64).tobytes())
            digest.update(getattr(self, part).indices.astype(np.int64).tobytes())
        return digest.hexdigest()[:32]

    def save(self, folder: pathlib.Path) -> None:
        """Writes the data set into an existing folder; nothing is pickled."""
        for part, name in itertools.product(PARTS, ARRAYS):
            np.save(folder / f"{part}.{name}.npy", getattr(getattr(self, part), name))
        self.user_ids.alias("id").to_frame().write_parquet(folder / "users.parquet")
        items = self.item_ids.alias("id").to_frame()
        for name in ("titles", "categories"):
            if getattr(self, name) is not None:
                items = items.with_columns(getattr(self, name).alias(name))
        items.write_parquet(folder / "items.parquet")

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Dataset":
        """What `save` wrote; interactions stay in their files until they are looked at."""
        items = pl.read_parquet(folder / "items.parquet")
        named = {name: items[name] for name in ("titles", "categories") if name in items.columns}
        users = pl.read_parquet(folder / "users.parquet")
        shape = (len(users), len(items))

        def read(part: str) -> scipy.sparse.csr_array:
            paths = [folder / f"{part}.{name}.npy" for name in ARRAYS]
            # Libraries want to be allowed to write; what they wrote would stay in memory.
            data, indices, indptr = (np.load(path, mmap_mode="c") for path in paths)
            return scipy.sparse.csr_array((data, indices, indptr), shape=shape)

        train, valid, test, history = map(read, PARTS)
        return cls(train, valid, test, history, users["id"], items["id"], **named)


@dataclasses.dataclass(frozen=True)
class Known:
    """The union of matrices that share no cell, made for the users that are asked for.

    Attributes:
      parts: CSR (U, I) each.
    """

    parts: tuple[scipy.sparse.csr_array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    @property
    def indptr(self) -> np.ndarray:
        """Where the items of each user would begin, (U + 1,)."""
        return sum((part.indptr for part in self.parts[1:]), start=self.parts[0].indptr)

    def __getitem__(self, users: slice | Sequence[int] | np.ndarray) -> scipy.sparse.csr_array:
        """CSR of some users, by their numbers or a slice."""
        return sum((part[users] for part in self.parts[1:]), start=self.parts[0][users])


def count_items(known: Known | scipy.sparse.csr_array) -> np.ndarray:
    """How many users have each item, (I,)."""
    n_users, n_items = known.shape
    count_I = np.zeros(n_items, np.int64)
    for start in range(0, n_users, USERS):
        count_I += np.bincount(known[start : start + USERS].indices, minlength=n_items)
    return count_I


def to_csr(
    user_E: np.ndarray, item_E: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Boolean CSR of distinct pairs, column indices ascending in each row."""
    ones = np.ones(len(user_E), bool)
    matrix = scipy.sparse.csr_array((ones, (user_E, item_E)), shape=shape)
    matrix.sum_duplicates()
    return matrix
