"""Sparse matrices of users x items as interactions, checked before anything is built of them.

`scipy.sparse.load_npz` trusts the indices in a file, and writes out of bounds where they are wrong.
"""

import pathlib
import zipfile

import numpy as np
import polars as pl

from hlrcml_jax.data.files import most_bytes
from hlrcml_jax.errors import UserError, shortened

MAX_SIZE = 2**31 - 1  # indices are int32
MAX_EMPTY = 10**7  # rows or columns beyond a hundred for each entry


def read_matrix(path: pathlib.Path) -> tuple[pl.DataFrame, tuple[int, int]]:
    """The entries of a matrix saved by `scipy.sparse.save_npz`; nothing is unpickled.

    Args:
      path: of the file; the matrix is in one of the formats csr, csc and coo.

    Returns:
      Columns `user`, `item` (Int64) and `value` (Float64); and the shape (users, items).

    Raises:
      UserError: when the file is no such matrix, an index is out of range, or a value is no
        finite real number.
    """
    try:
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > most_bytes(path):
            raise _Wrong(f"it expands to {size:,} bytes")
        with np.load(path, allow_pickle=False) as content:
            row_E, column_E, value_E, shape = _entries({name: content[name] for name in content})
    except _Wrong as error:
        raise UserError(f"{path}: not a scipy sparse matrix of users x items: {error}.") from None
    except Exception as error:  # numpy and zipfile raise many kinds
        reason = shortened(str(error).strip() or type(error).__name__, 120)
        raise UserError(f"{path}: not a scipy sparse matrix ({reason}).") from None
    columns = {"user": row_E, "item": column_E}
    table = {name: column.astype(np.int64) for name, column in columns.items()}
    return pl.DataFrame(table | {"value": value_E.astype(np.float64)}), shape


class _Wrong(Exception):
    """What is wrong with a matrix."""


def _entries(arrays: dict[str, np.ndarray]):
    """(row, column and value (E,) of each entry, shape)."""
    kind = arrays["format"].item()
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr", "csc", "coo"):
        raise _Wrong(f"its format is {shortened(kind, 20)!r}; save it as csr, csc or coo")
    shape = tuple(_integers(arrays, "shape").tolist())
    if len(shape) != 2 or not all(0 <= size <= MAX_SIZE for size in shape):
        raise _Wrong(f"its shape is {shape}")
    value_E = arrays["data"]
    if max(shape) > MAX_EMPTY + 100 * len(value_E):
        raise _Wrong(f"its shape is {shape} for {len(value_E):,} entries")
    if value_E.ndim != 1 or value_E.dtype.kind not in "biuf":
        raise _Wrong(f"its values have the type {value_E.dtype} and {value_E.ndim} dimensions")
    not_finite_E = ~np.isfinite(value_E)
    if not_finite_E.any():
        raise _Wrong(f"value {not_finite_E.argmax():,} is {value_E[not_finite_E.argmax()]}")
    if kind == "coo":
        names = ("row", "col") if "row" in arrays else ("coords_0", "coords_1")
        row_E, column_E = (_indices(arrays, name, len(value_E)) for name in names)
    else:
        minor_E = _indices(arrays, "indices", len(value_E))
        start_R = _integers(arrays, "indptr")
        n_major = shape[kind == "csc"]
        if len(start_R) != n_major + 1 or start_R[0] != 0 or start_R[-1] != len(value_E):
            raise _Wrong(f"its indptr does not fit {n_major:,} {kind} rows")
        length_R = np.diff(start_R)
        if (start_R[1:] < start_R[:-1]).any():
            raise _Wrong("its indptr decreases")
        major_E = np.repeat(np.arange(n_major), length_R)
        row_E, column_E = (major_E, minor_E) if kind == "csr" else (minor_E, major_E)
    for name, index_E, size in zip(("row", "column"), (row_E, column_E), shape, strict=True):
        outside_E = (index_E < 0) | (index_E >= size)
        if outside_E.any():
            raise _Wrong(
                f"{name} index {index_E[outside_E.argmax()]} is outside of 0 to {size - 1}"
            )
    return row_E, column_E, value_E, shape


def _integers(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    array = arrays[name]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise _Wrong(f"its {name} has the type {array.dtype} and {array.ndim} dimensions")
    return array


def _indices(arrays: dict[str, np.ndarray], name: str, length: int) -> np.ndarray:
    array = _integers(arrays, name)
    if len(array) != length:
        raise _Wrong(f"its {name} has {len(array):,} entries for {length:,} values")
    return array
