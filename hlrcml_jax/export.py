"""Exporting a trained model to files for use without this package.

`users.parquet` and `items.parquet` hold the embeddings by id, `memory.npz` the memory's keys and
values, and `score.jax` the scoring function, which any program with jax can run:

    score = jax.export.deserialize(open("score.jax", "rb").read()).call
    score(user_BxD, item_BxD, prefs_BxSxD, mask_BxS)   # (B,), higher is better

It is exported for CPU, CUDA and TPU and any B, S >= 1, and includes the memory. For a model that
represents users by their items, pass zeros as user_BxD. Running it needs jax and flatbuffers.
"""

import pathlib
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import polars as pl

from hlrcml_jax import devices, storage
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.frames import item_columns
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import own_scores

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    folder: pathlib.Path,
    model: Model,
    params: dict[str, Any],
    dataset: Dataset,
    users: bool = True,
) -> None:
    """Writes all files of a model.

    Args:
      folder: of the files; created if missing.
      model: the model.
      params: host arrays; tables include the model's constants, if any.
      dataset: for ids and titles.
      users: whether to write those of users; else they are removed, if they are there.
    """
    names = {"item": item_columns(np.arange(dataset.n_items), dataset)}
    if users:
        names["user"] = {"user_id": dataset.user_ids}
    else:
        (folder / "users.parquet").unlink(missing_ok=True)
    for kind, columns in names.items():
        if f"{kind}s" in params:
            vectors_RxD = np.asarray(params[f"{kind}s"], np.float32)[: len(columns[f"{kind}_id"])]
            table = pl.DataFrame({**columns, "vector": vectors_RxD})
            storage.write(folder / f"{kind}s.parquet", table.write_parquet)
    if model.spec.memory:
        arrays = {name: np.asarray(x) for name, x in params["model"]["memory"].items()}
        storage.write(folder / "memory.npz", lambda path: _savez(path, arrays))
    data = bytes(scoring_function(model, params).serialize())
    storage.write(folder / "score.jax", lambda path: path.write_bytes(data))


def _savez(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # np.savez would append .npz to a path
        # The cast: to the type checker, any key could be the option `allow_pickle`.
        np.savez(file, **cast(dict[str, Any], arrays))


def scoring_function(model: Model, params: dict[str, Any]) -> jax.export.Exported:
    """The exported function from rows to scores of pairs; see the module."""
    of_items = "users" not in params

    def score(user_BxD, *rows):
        rows = (None if of_items else user_BxD, *rows)
        return model.apply({"params": params["model"]}, *rows, method=own_scores)

    b, s = jax.export.symbolic_shape("B, S")
    width = params["items"].shape[1]
    user_width = width if of_items else params["users"].shape[1]
    shapes = ((b, user_width), (b, width), (b, s, width))
    rows = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = jax.ShapeDtypeStruct((b, s), jnp.bool)
    return jax.export.export(jax.jit(devices.exact(score)), platforms=PLATFORMS)(*rows, mask)
