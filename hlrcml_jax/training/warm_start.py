"""Vectors to start from: of a file, or of another run, matched by the original ids."""

import pathlib

import numpy as np
import polars as pl
import rich

from hlrcml_jax.errors import UserError

Vectors = tuple[pl.Series | None, np.ndarray]  # (ids as text or None, vectors (N, D))


def read_vectors(key: str, path: pathlib.Path) -> Vectors:
    """The vectors of a file.

    Args:
      key: names the file in the sentence of a mistake.
      path: an `.npz` with `vectors` (N, D) and `ids` (N,); or an `.npy` (N, D) with a row for each
        id in ascending order.

    Raises:
      UserError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return None, found
            return pl.Series(found["ids"]).cast(pl.String), found["vectors"]
    except Exception as error:  # numpy raises many kinds
        raise UserError(f"{key}: cannot be read ({error}).") from None


def warm_start(key: str, source: Vectors, wanted: pl.Series, table: np.ndarray) -> np.ndarray:
    """The table with the vectors of a source in the rows of their ids.

    Rows that the source does not have stay as they are.

    Args:
      key: names the source in the sentence of a mistake.
      source: ids and vectors.
      wanted: the id of each row.
      table: (R, D); it is written to.

    Raises:
      UserError: when the source does not fit, or has nothing in common.
    """
    ids, vectors = source
    if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
        raise UserError(
            f"{key}: its vectors have the shape {vectors.shape}, and the model needs "
            f"(any number, {table.shape[1]}); change model.dim, or take other vectors."
        )
    if not np.isfinite(vectors).all():
        raise UserError(f"{key}: its vectors are not all finite.")
    if ids is None:
        if len(vectors) != len(table):
            raise UserError(f"{key}: it has {len(vectors):,} rows, and the data {len(table):,}.")
        return vectors.astype(table.dtype)
    if len(ids) != len(vectors):
        raise UserError(f"{key}: it has {len(ids):,} ids for {len(vectors):,} vectors.")
    row_of = dict(zip(ids, range(len(ids)), strict=True))
    row_N = np.array([row_of.get(id, -1) for id in wanted.cast(pl.String)])
    known_N = row_N >= 0
    if not known_N.any():
        raise UserError(f"{key}: none of its {len(ids):,} ids is in the data.")
    table[known_N] = vectors[row_N[known_N]]
    rich.print(f"{key}: {known_N.sum():,} of {len(table):,} rows.")
    return table
