"""The only place that knows about devices.

Everything else is written for one device and an axis name. A replicated tree has a leading axis
with one copy for each local device; a sharded one has a leading axis whose parts differ.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
TABLES = ("replicated", "sharded")

Tree = Any


def keep_compiled(folder: pathlib.Path) -> None:
    """Keeps compiled programs in a folder, so that the next process need not compile them.

    A folder that the user has set (`JAX_COMPILATION_CACHE_DIR`) stays.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # A bound makes jax lock the folder, so that no process reads what another writes.
        jax.config.update("jax_compilation_cache_max_size", 2**31)


def device_count() -> int:
    """Number of devices; the batch and the evaluated users are divided between them."""
    return jax.device_count()


def workers() -> int:
    """Threads that keep the device busy: a CPU runs the loops of one program on one core."""
    on_one_cpu = jax.default_backend() == "cpu" and device_count() == 1
    return (os.cpu_count() or 1) if on_one_cpu else 1


def replicate(tree: Tree) -> Tree:
    """A copy of every array on each device."""
    n = device_count()
    return shard(jax.tree.map(lambda x: np.broadcast_to(x, (n, *np.shape(x))), tree))


def shard(tree: Tree) -> Tree:
    """Places host arrays whose leading axis is the devices."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def first(tree: Tree) -> Tree:
    """The first device's copy, as host arrays that nothing else refers to."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def table_name(path: tuple) -> str | None:
    """Which table a leaf is of, or is a moment of: that under the key `users` or `items`."""
    last = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
    return last if last in ("users", "items") else None


def split_rows(tree: Tree) -> Tree:
    """Each table's rows divided over the devices, (devices, R / devices, D); of the rest copies.

    Tables are filled up with rows of zeros until they divide evenly.
    """
    n = device_count()

    def split(path, x):
        if table_name(path) is None:
            return np.broadcast_to(x, (n, *np.shape(x)))
        filled = np.pad(x, ((0, -len(x) % n), (0, 0)))
        return filled.reshape(n, -1, x.shape[1])

    return shard(jax.tree.map_with_path(split, tree))


def join_rows(tree: Tree, n_rows: dict[str, int]) -> Tree:
    """What `split_rows` divided, as host arrays.

    Args:
      tree: on the devices.
      n_rows: of the tables `users` and `items`.
    """

    def join(path, x):
        table = table_name(path)
        if table is None:
            return first(x)
        return np.array(x).reshape(-1, x.shape[-1])[: n_rows[table]]

    return jax.tree.map_with_path(join, tree)


def own_rows(row_N: jax.Array, n_own: int) -> jax.Array:
    """Where some rows of a divided table are in this device's part; n_own for those that are not.

    Args:
      row_N: row numbers, or a mask of all rows.
      n_own: rows of the part.
    """
    if row_N.dtype == bool:
        row_N = jnp.where(row_N, jnp.arange(len(row_N)), len(row_N))
    place_N = row_N - index() * n_own
    return jnp.where((place_N >= 0) & (place_N < n_own), place_N, n_own)


def psum_tables(params: Tree) -> Tree:
    """Parameters with the sum of all devices' tables, inside a mapped function."""
    tables = {name: table for name, table in params.items() if name != "model"}
    return params | psum(tables)


def gather_rows(part_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
    """Rows of a divided table, from wherever they are; the same rows on all devices."""
    return psum(part_RxD.at[own_rows(row_N, len(part_RxD))].get(mode="fill", fill_value=0))


def pmap(function: Callable, donate: tuple[int, ...] = ()) -> Callable:
    """Runs a function on all devices, over the leading axis of every argument."""
    return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)


def psum(tree: Tree) -> Tree:
    """Sum over the devices, inside a mapped function."""
    # Even of one device the compiler would make a copy.
    return tree if device_count() == 1 else jax.lax.psum(tree, AXIS)


def all_gather(x: jax.Array) -> jax.Array:
    """The arrays of all devices, (devices, ...), inside a mapped function."""
    return jax.lax.all_gather(x, AXIS)


def index() -> jax.Array:
    """This device's number, inside a mapped function."""
    return jax.lax.axis_index(AXIS)
