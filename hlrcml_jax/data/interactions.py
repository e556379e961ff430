"""The data set as everything else sees it: one CSR matrix a part, and the original ids."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import polars as pl
import scipy.sparse

PARTS = ("train", "valid", "test", "history")


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
    def n_items(self) -> int:
        return self.train.shape[1]

    def known(self, part: str) -> scipy.sparse.csr_array:
        """What may be known when `part` is predicted: for test all but test itself."""
        known = self.train + self.history
        return known if part == "valid" else known + self.valid

    def fingerprint(self) -> str:
        """Hash of all interactions, to tell whether a run goes on with the data it began with."""
        digest = hashlib.sha256(str(self.train.shape).encode())
        for part in PARTS:
            digest.update(getattr(self, part).indptr.astype(np.int64).tobytes())
            digest.update(getattr(self, part).indices.astype(np.int64).tobytes())
        return digest.hexdigest()[:32]

    def save(self, folder: pathlib.Path) -> None:
        """Writes the data set into an existing folder; nothing is pickled."""
        for part in PARTS:
            scipy.sparse.save_npz(folder / f"{part}.npz", getattr(self, part))
        self.user_ids.alias("id").to_frame().write_parquet(folder / "users.parquet")
        items = self.item_ids.alias("id").to_frame()
        for name in ("titles", "categories"):
            if getattr(self, name) is not None:
                items = items.with_columns(getattr(self, name).alias(name))
        items.write_parquet(folder / "items.parquet")

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Dataset":
        """Reads what `save` wrote."""
        parts = {part: scipy.sparse.load_npz(folder / f"{part}.npz") for part in PARTS}
        items = pl.read_parquet(folder / "items.parquet")
        named = {name: items[name] for name in ("titles", "categories") if name in items.columns}
        users = pl.read_parquet(folder / "users.parquet")
        return cls(**parts, user_ids=users["id"], item_ids=items["id"], **named)


def to_csr(user_E: np.ndarray, item_E: np.ndarray, shape: tuple[int, int]):
    """Boolean CSR of distinct pairs, column indices ascending in each row."""
    ones = np.ones(len(user_E), bool)
    matrix = scipy.sparse.csr_array((ones, (user_E, item_E)), shape=shape)
    matrix.sum_duplicates()
    return matrix
