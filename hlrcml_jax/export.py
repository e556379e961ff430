"""A trained model as files that are used without this package.

`users.parquet` and `items.parquet` have the vectors by id, `memory.npz` the memory's keys and
values, and `score.jax` the scoring function, which any program with jax can run:

    score = jax.export.deserialize(open("score.jax", "rb").read()).call
    score(user_BxD, item_BxD, prefs_BxSxD, mask_BxS)   # (B,), higher is better

It is compiled for CPU, CUDA and TPU, for any B and S from 1 on, and has the memory inside; users
that are made of their items are given as zeros. Who runs it installs flatbuffers beside jax.
"""

import pathlib
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import polars as pl

from hlrcml_jax import storage
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.frames import named
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import from_items, own_scores

PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: pathlib.Path, model: Model, params: dict[str, Any], dataset: Dataset) -> None:
    """Writes all files of a model.

    Args:
      folder: where they go; it is made.
      model: the model.
      params: host arrays, tables with the model's constants, if it has any.
      dataset: for ids and titles.
    """
    names = {"item": named(np.arange(dataset.n_items), dataset)}
    names["user"] = {"user_id": dataset.user_ids}
    for kind, columns in names.items():
        if f"{kind}s" in params:
            vectors_RxD = np.asarray(params[f"{kind}s"], np.float32)[: len(columns[f"{kind}_id"])]
            table = pl.DataFrame({**columns, "vector": vectors_RxD})
            storage.write(folder / f"{kind}s.parquet", table.write_parquet)
    memory = params["model"].get("memory", {})
    if memory:
        arrays = {name: np.asarray(array) for name, array in memory.items()}
        storage.write(folder / "memory.npz", lambda path: _savez(path, arrays))
    data = bytes(scoring_function(model, params).serialize())
    storage.write(folder / "score.jax", lambda path: path.write_bytes(data))


def _savez(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # numpy would put an ending behind the name
        # To its types, any name could be that of its option `allow_pickle`.
        np.savez(file, **cast(dict[str, Any], arrays))


def scoring_function(model: Model, params: dict[str, Any]) -> jax.export.Exported:
    """The scores of pairs as a function of rows, to be serialized; see the module."""
    of_items = "users" not in params

    def score(user_BxD, item_BxD, prefs_BxSxD, mask_BxS):
        if of_items:
            user_BxD = from_items(prefs_BxSxD, mask_BxS)
        variables = {"params": params["model"]}
        with jax.default_matmul_precision("float32"):
            rows = (user_BxD, item_BxD, prefs_BxSxD, mask_BxS)
            return model.apply(variables, *rows, method=own_scores)

    b, s = jax.export.symbolic_shape("B, S")
    width = params["items"].shape[1]
    user_width = width if of_items else params["users"].shape[1]
    shapes = ((b, user_width), (b, width), (b, s, width))
    rows = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = jax.ShapeDtypeStruct((b, s), jnp.bool)
    return jax.export.export(jax.jit(score), platforms=PLATFORMS)(*rows, mask)
