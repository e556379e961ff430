"""Pretrained embeddings, from a file or another run, matched by original ids."""

import pathlib

import jax
import numpy as np
import optax
import polars as pl
import rich
from rich.text import Text

from hlrcml_jax.data.files import check_regular
from hlrcml_jax.errors import UserError, printable
from hlrcml_jax.training.step import TrainState

Vectors = tuple[pl.Series | None, np.ndarray]  # (ids as text or None, vectors (N, D))


def read_vectors(key: str, path: pathlib.Path) -> Vectors:
    """The embeddings in a file.

    Args:
      key: config key and file, for error messages.
      path: an `.npz` with `vectors` (N, D) and `ids` (N,); or an `.npy` (N, D) with a row for each
        id in ascending order.

    Raises:
      UserError: when it cannot be read.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return None, content
            return pl.Series(content["ids"]).cast(pl.String), content["vectors"]
    except Exception as error:  # numpy raises many kinds
        raise UserError(
            f"{key}: cannot be read ({error}); give a workdir, an .npz with `vectors` and `ids`, "
            "or an .npy."
        ) from None


def warm_start(
    key: str, source: Vectors, wanted: pl.Series, table: np.ndarray, dim: int
) -> np.ndarray:
    """The table with rows replaced by the source's vectors of the same ids.

    Rows whose id is not in the source are unchanged, and so are the biases that rows of some
    models end with, where the source has vectors alone.

    Args:
      key: config key and source, for error messages.
      source: ids and vectors.
      wanted: id of each row of the table.
      table: (R, W); it is modified.
      dim: D, of the vectors; W or less.

    Raises:
      UserError: when the source does not fit the table, or shares no id.
    """
    ids, vectors = source
    if vectors.ndim != 2 or vectors.shape[1] not in (dim, table.shape[1]):
        raise UserError(
            f"{key}: its vectors have the shape {vectors.shape}, and the model needs "
            f"(any number, {dim}); change model.dim, or choose another source."
        )
    width = vectors.shape[1]
    if not np.isfinite(vectors).all():
        raise UserError(f"{key}: its vectors have NaN or infinite values; choose another source.")
    if ids is None:
        if len(vectors) != len(table):
            raise UserError(
                f"{key}: it has {len(vectors):,} rows, and the data {len(table):,}; add ids."
            )
        table[:, :width] = vectors
        return table
    if len(ids) != len(vectors):
        raise UserError(f"{key}: it has {len(ids):,} ids for {len(vectors):,} vectors.")
    row_of = dict(zip(ids, range(len(ids)), strict=True))
    row_R = np.array([row_of.get(id, -1) for id in wanted.cast(pl.String)])
    matched_R = row_R >= 0
    if not matched_R.any():
        raise UserError(f"{key}: none of its {len(ids):,} ids is in the data.")
    table[matched_R, :width] = vectors[row_R[matched_R]]
    rich.print(Text(printable(f"{key}: initialised {matched_R.sum():,} of {len(table):,} rows.")))
    return table


def carried_over(fresh: TrainState, before: TrainState) -> TrainState:
    """A fresh state with the parameters and Adam's moments of one before.

    Where tables are longer now, the rows of those before come first. Schedules begin anew.
    """

    def carry(new, old):
        if not np.ndim(new):
            return old
        longer, old = np.array(new), np.asarray(old)
        longer[: len(old)] = old
        return longer

    def is_adam(part):
        return isinstance(part, optax.ScaleByAdamState)

    adams = filter(is_adam, jax.tree.leaves(before.opt_state, is_leaf=is_adam))
    adam = next(adams)

    def carry_adam(part):
        return jax.tree.map(carry, part, adam) if is_adam(part) else part

    return fresh.replace(
        params=jax.tree.map(carry, fresh.params, before.params),
        opt_state=jax.tree.map(carry_adam, fresh.opt_state, is_leaf=is_adam),
    )
