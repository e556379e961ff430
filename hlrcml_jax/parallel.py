"""The only place that knows about devices.

Everything else is written for one device and an axis name. A replicated tree has a leading axis
with one copy for each local device; a sharded one has a leading axis whose parts differ.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

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
    """Number of local devices; the batch and the evaluated users are divided between them."""
    return jax.local_device_count()


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
