"""A data set as a folder of files: in the cache, and in each workdir, so that a run needs no other.

A workdir may come from someone else, so everything is checked before it is used. Nothing is
unpickled.
"""

import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse

from hlrcml_jax import storage
from hlrcml_jax.data import account
from hlrcml_jax.data.dataset import PARTS, Dataset
from hlrcml_jax.errors import UserError, shortened

ARRAYS = ("indices", "indptr")  # of a CSR matrix
OPTIONAL = {"weights": (*ARRAYS, "data"), "fresh": ARRAYS}  # matrices that some data sets have
USERS, ITEMS = "users.parquet", "items.parquet"
DIGESTS = "digests.json"  # SHA-256 of the other files; written last
TEXTS = {"titles": pl.String, "categories": pl.List(pl.String)}


def save(dataset: Dataset, folder: pathlib.Path) -> None:
    """Writes a data set into a folder, which may be in a bucket."""
    digests = {}

    def write(name: str, writer: Callable[[pathlib.Path], object]) -> None:
        def write_and_digest(path: pathlib.Path) -> None:
            writer(path)
            digests[name] = digest(path)

        storage.write(folder / name, write_and_digest)

    for name, arrays in (dict.fromkeys(PARTS, ARRAYS) | OPTIONAL).items():
        matrix = getattr(dataset, name)
        for array in arrays if matrix is not None else ():
            content = getattr(matrix, array)
            write(f"{name}.{array}.npy", functools.partial(np.save, arr=content))
    texts = {name: getattr(dataset, name) for name in TEXTS if getattr(dataset, name) is not None}
    write(USERS, pl.DataFrame({"id": dataset.user_ids}).write_parquet)
    write(ITEMS, pl.DataFrame({"id": dataset.item_ids} | texts).write_parquet)
    write(account.FILE, lambda path: path.write_text(dataset.account.to_json()))
    storage.write_text(folder / DIGESTS, json.dumps(digests))


def exists(folder: pathlib.Path) -> bool:
    """Whether a whole data set was saved in a folder."""
    return (folder / DIGESTS).exists()


def load(folder: pathlib.Path) -> Dataset:
    """Loads what `save` wrote; interactions are memory-mapped.

    Raises:
      UserError: when a file is missing, damaged, or not of a data set.
    """
    names = [f"{part}.{array}.npy" for part, array in itertools.product(PARTS, ARRAYS)]
    names += [USERS, ITEMS, account.FILE, DIGESTS]
    for name, arrays in OPTIONAL.items():
        if (folder / f"{name}.{ARRAYS[0]}.npy").exists():
            names += [f"{name}.{array}.npy" for array in arrays]
    try:
        with storage.local([folder / name for name in names]) as paths:
            return _load(dict(zip(names, paths, strict=True)))
    except Exception as error:  # from numpy, scipy, polars or a bucket, of many kinds
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 120)
        raise UserError(f"{folder}: this data set is damaged ({reason}).") from None


def _load(path_of: dict[str, pathlib.Path]) -> Dataset:
    digests = {name: digest(path) for name, path in path_of.items() if name != DIGESTS}
    if json.loads(path_of[DIGESTS].read_text()) != digests:
        raise ValueError("its files are not those that were saved")
    users, items = (pl.read_parquet(path_of[name], glob=False) for name in (USERS, ITEMS))
    for table in (users, items):
        if table["id"].dtype not in (pl.Int64, pl.String) or table["id"].null_count():
            raise ValueError("its ids are neither integers nor texts")
    texts = {name: items[name] for name in TEXTS if name in items.columns}
    if wrong := [name for name, column in texts.items() if column.dtype != TEXTS[name]]:
        raise ValueError(f"its {wrong[0]} are not texts")
    shape = (len(users), len(items))

    def read(name: str, arrays: Sequence[str]) -> scipy.sparse.csr_array:
        # Copy-on-write, since some libraries require writable arrays.
        paths = (path_of[f"{name}.{array}.npy"] for array in arrays)
        return _matrix(shape, *(np.load(path, mmap_mode="c") for path in paths))

    train, valid, test, history = (read(part, ARRAYS) for part in PARTS)
    named: dict[str, Any] = {"user_ids": users["id"], "item_ids": items["id"], **texts}
    for name, arrays in OPTIONAL.items():
        if f"{name}.{ARRAYS[0]}.npy" in path_of:
            named[name] = read(name, arrays)
    weights = named.get("weights")
    if weights is not None and weights.multiply(train).nnz != train.nnz:
        raise ValueError("its weights are not those of its interactions")
    found = account.Account.from_json(path_of[account.FILE].read_text())
    return Dataset(train, valid, test, history, **named, account=found)


def _matrix(shape, indices, indptr, data: np.ndarray | None = None) -> scipy.sparse.csr_array:
    """A CSR of booleans or of positive float32, after checking that it is one.

    scipy's products trust its indices.
    """
    if data is None:
        data = np.ones(len(indices), bool)
    elif data.dtype != np.float32 or not (np.isfinite(data) & (data > 0)).all():
        raise ValueError("its weights are not positive numbers")
    for array in (indices, indptr):
        if array.ndim != 1 or array.dtype not in (np.int32, np.int64):
            raise ValueError(f"its indices have the type {array.dtype}")
    matrix = scipy.sparse.csr_array((data, indices, indptr), shape=shape)
    matrix.check_format(full_check=True)
    if not matrix.has_canonical_format:
        raise ValueError("the items of a user are not in ascending order")
    return matrix


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file; it reads about 1 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
