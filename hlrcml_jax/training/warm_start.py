"""Vectors to begin with: from another run or from a file, matched by the original ids."""

import pathlib
from collections.abc import Collection

import numpy as np
import polars as pl
import rich

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices
from hlrcml_jax.errors import UserError
from hlrcml_jax.runs.build import Run
from hlrcml_jax.runs.workdir import best_checkpoint, open_run
from hlrcml_jax.training.step import TrainState


def begin(run: Run, state: TrainState) -> TrainState:
    """The state with the tables that the config's `pretrained` section takes from elsewhere.

    Each source is a workdir, whose best checkpoint is read; an `.npz` with `vectors` (N, D) and
    `ids` (N,); or an `.npy` (N, D) with a row for each id in ascending order. Rows that the source
    does not have stay as they were drawn.

    Raises:
      UserError: a source that cannot be read, does not fit, or has nothing in common.
    """
    ids = {"users": run.dataset.user_ids, "items": run.dataset.item_ids}
    trusted = [path for _, path in config_lib.code_paths(config_lib.flatten(run.config))]
    tables = {}
    for name, wanted in ids.items():
        path = getattr(run.config.pretrained, name)
        if path:
            table = np.array(devices.to_host(state.params[name])[: len(wanted)])
            tables[name] = place(
                f"pretrained.{name}={path}", read_vectors(path, name, trusted), wanted, table
            )
    return state.replace(params=state.params | tables)


def read_vectors(
    path: str, name: str, trusted: Collection[str] = ()
) -> tuple[pl.Series | None, np.ndarray]:
    """(ids as text or None, vectors) of a source; `name` is its key.

    Of a workdir's config, only code with a trusted dotted path is imported.
    """
    source = pathlib.Path(path).expanduser()
    if source.is_dir():
        other = open_run(config_files.from_workdir(path, trusted=trusted), source)
        ids = {"users": other.dataset.user_ids, "items": other.dataset.item_ids}[name]
        params = best_checkpoint(other).params
        if name not in params:
            raise UserError(f"pretrained.{name}={path}: this run made its {name} of their items.")
        return ids.cast(pl.String), devices.to_host(params[name])[: len(ids)]
    try:
        with source.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return None, found
            return pl.Series(found["ids"]).cast(pl.String), found["vectors"]
    except Exception as error:  # numpy raises many kinds
        raise UserError(f"pretrained.{name}={path}: cannot be read ({error}).") from None


def place(key: str, source, wanted: pl.Series, table: np.ndarray) -> np.ndarray:
    """The table with a source's vectors in the rows of their ids; `key` names what is at fault."""
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
    place = dict(zip(ids, range(len(ids)), strict=True))
    row_N = np.array([place.get(id, -1) for id in wanted.cast(pl.String)])
    known_N = row_N >= 0
    if not known_N.any():
        raise UserError(f"{key}: none of its {len(ids):,} ids is in the data.")
    table[known_N] = vectors[row_N[known_N]]
    rich.print(f"{key}: {known_N.sum():,} of {len(table):,} rows.")
    return table
