"""Interactions as people have them: a frame, a matrix, a file or a name, for the `data` section."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax.errors import UserError, quoted, shortened
from hlrcml_jax.registry import DATASETS

KINDS = "a polars or pandas frame, a scipy sparse matrix, the path of a file"


@contextlib.contextmanager
def as_files(**given: Any) -> Iterator[dict[str, str]]:
    """Paths of files with some interactions; frames and matrices are written to temporary ones.

    Args:
      **given: interactions by the name of their argument.

    Raises:
      UserError: naming what is none of `KINDS`.
    """
    with tempfile.TemporaryDirectory(prefix="hlrcml-") as folder:
        paths = {name: _as_file(pathlib.Path(folder, name), value) for name, value in given.items()}
        try:
            yield paths
        except UserError as error:  # of the file, which the caller does not know
            sentence = str(error.args[0])
            for name, path in paths.items():
                sentence = sentence.replace(path, name) if path.startswith(folder) else sentence
            raise UserError(sentence) from None


def _as_file(path: pathlib.Path, value: Any) -> str:
    name = path.name
    if isinstance(value, str | os.PathLike) and str(value):
        return os.fspath(value)
    if scipy.sparse.issparse(value):
        path = path.with_suffix(".npz")
        _write(name, value, lambda matrix: scipy.sparse.save_npz(path, _without_zeros(matrix)))
        return str(path)
    if not isinstance(value, pl.LazyFrame) and not hasattr(value, "columns"):
        raise UserError(f"{name} is {quoted(value)}; it takes {KINDS}, or the name of a data set.")
    path = path.with_suffix(".parquet")
    _write(name, value, lambda frame: _as_polars(frame).write_parquet(path))
    return str(path)


def _write(name: str, value: Any, writer: Callable[[Any], object]) -> None:
    try:
        writer(value)
    except Exception as error:  # from a query of the caller's, columns of any kind, or a full disk
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 120)
        raise UserError(f"{name} cannot be read or copied ({reason}).") from None


def _without_zeros(matrix: Any) -> scipy.sparse.csr_array:
    """What a matrix has, and not the zeros that it stores."""
    found = scipy.sparse.csr_array(matrix.tocoo())
    found.eliminate_zeros()
    return found


def _as_polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        return pl.DataFrame([_as_series(column, frame[column]) for column in frame.columns])
    is_enum = pl.selectors.by_dtype(pl.Categorical, pl.Enum)
    return frame.select(~(pl.selectors.nested() | pl.selectors.object())).with_columns(
        is_enum.cast(pl.String)
    )


def _as_series(name: Any, column: Any) -> pl.Series:
    """A column of pandas; without pyarrow, which polars would need for text."""
    array = np.asarray(column)
    if array.dtype != object:
        return pl.Series(str(name), array)
    missing = np.asarray(column.isna())
    values = [None if gone else value for value, gone in zip(array.tolist(), missing, strict=True)]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 or kinds & {bool, object}:  # as numbers, large ones would be rounded
        values = [None if value is None else str(value) for value in values]
    return pl.Series(str(name), values)


def settings(interactions: Any, validation: Any, test: Any, path_of: dict[str, str]) -> dict:
    """Keys of the `data` section for `fit`.

    Args:
      interactions: as given; the training part, if validation or test are interactions.
      validation: a share of each user's interactions, or interactions.
      test: likewise.
      path_of: the files of those that are interactions, by argument.

    Raises:
      UserError: naming a combination that cannot be.
    """
    shares = {"validation": validation, "test": test}
    shares = {name: share for name, share in shares.items() if name not in path_of}
    for name, share in shares.items():
        if isinstance(share, bool | np.bool_) or not 0 <= share < 1:
            raise UserError(
                f"{name} is {quoted(share)}; it takes a share from 0 to below 1 of each user's "
                f"interactions, or {KINDS} with interactions."
            )
    values = {"data.split.valid": float(shares.get("validation", 0.0))}
    if path_of.keys() == {"interactions"}:
        is_name = isinstance(interactions, str) and interactions in DATASETS
        key = "data.name" if is_name else "data.path"
        return values | {key: path_of["interactions"], "data.split.test": float(shares["test"])}
    if shares.get("test"):
        raise UserError(
            "validation is interactions, and test is a share; give both as interactions, or test=0."
        )
    keys = {"interactions": "train_path", "validation": "valid_path", "test": "test_path"}
    values |= {f"data.split.{keys[name]}": path for name, path in path_of.items()}
    return values | {"data.split.kind": "given"}
