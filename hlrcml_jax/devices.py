"""The only place that knows about devices.

Everything else is written for one device and an axis name. A replicated tree has a leading axis
with one copy for each device of this process; a sharded one has a leading axis whose parts differ.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

Tree = Any


def keep_compiled(folder: pathlib.Path) -> None:
    """Keeps compiled programs in a folder, so that the next process need not compile them.

    A folder that the user has set (`JAX_COMPILATION_CACHE_DIR`) stays.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # A bound makes jax lock the folder, so that no process reads what another writes.
        jax.config.update("jax_compilation_cache_max_size", 2**31)


def device_count() -> int:
    """Number of devices; the batch and the evaluated users are divided between them."""
    return jax.device_count()


def workers() -> int:
    """Threads that keep the device busy: a CPU runs the loops of one program on one core."""
    return (os.cpu_count() or 1) if on_cpu() and device_count() == 1 else 1


def on_cpu() -> bool:
    """Whether loops over what stays in a core's cache are best; other devices want all at once."""
    return jax.default_backend() == "cpu"


def training_block_bytes() -> float:
    """Size of the preferences' rows of a block of examples; a core keeps them at hand."""
    return 2e6 if on_cpu() else math.inf


def ranking_block() -> tuple[int, int, int]:
    """(users whose relations with a block of targets are computed together, those of them that are
    scored at a time, most targets of the block): a CPU keeps one user's part of it in its cache."""
    return (64, 1, 64) if on_cpu() else (2048, 2048, 128)


def described() -> str:
    """How many devices of which kind there are."""
    return f"{device_count()} {jax.default_backend()} device(s)"


def side_by_side() -> int:
    """How many runs are best trained in one program: small ones leave much of a GPU idle."""
    return 1 if on_cpu() else 8


def replicate(tree: Tree) -> Tree:
    """A copy of every array on each device of this process."""
    n = jax.local_device_count()
    return put(jax.tree.map(lambda x: np.broadcast_to(x, (n, *np.shape(x))), tree))


def shard(tree: Tree) -> Tree:
    """Places host arrays whose leading axis is all devices; a process takes its own part."""
    own = own_devices()
    return put(jax.tree.map(lambda x: x[own.start : own.stop], tree))


def own_devices() -> range:
    """The numbers of this process's devices."""
    n = jax.local_device_count()
    return range(jax.process_index() * n, (jax.process_index() + 1) * n)


def put(tree: Tree) -> Tree:
    """Places host arrays whose leading axis is this process's devices."""
    return jax.device_put(tree, _over(jax.local_devices()))


def _over(devices: list) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def first(tree: Tree) -> Tree:
    """The first device's copy, as host arrays that nothing else refers to."""
    return jax.tree.map(lambda x: np.array(jax.device_get(x.addressable_shards[0].data))[0], tree)


def all_parts(tree: Tree) -> Tree:
    """What `shard` placed, or a mapped function made, as host arrays of all devices."""
    tree = jax.device_get(tree)
    several = jax.process_count() > 1
    return multihost_utils.process_allgather(tree, tiled=True) if several else tree


def table_name(path: tuple[Any, ...]) -> str | None:
    """Which table a leaf is of, or is a moment of: that under the key `users` or `items`."""
    last = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
    return last if last in ("users", "items") else None


def map_tables(of_table: Callable[[Any], Any], of_rest: Callable[[Any], Any], tree: Tree) -> Tree:
    """The tree with one function applied to its tables and their moments, another to the rest."""

    def apply(path, x):
        return of_rest(x) if table_name(path) is None else of_table(x)

    return jax.tree.map_with_path(apply, tree)


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """An array that all processes have or share, on this host."""
    if isinstance(x, np.ndarray) or jax.process_count() == 1:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


class Placement(Protocol):
    """Where the rows of tables are: `REPLICATED` on every device, or `SHARDED` over all of them.

    A tree of parameters, or a state, has two forms: placed, for mapped functions, with a leading
    axis of this process's devices; and kept, to be made, saved and restored.
    """

    @property
    def parts(self) -> tuple[int, range] | None:
        """(into how many parts tables and interactions are sharded, which are this process's)."""
        ...

    def place(self, tree: Tree) -> Tree:
        """The placed form of a kept one, or of host arrays."""
        ...

    def keep(self, tree: Tree) -> Tree:
        """The kept form of a placed one: host arrays, and sharded tables as a whole."""
        ...

    def make(self, function: Callable[[], Tree]) -> Tree:
        """What a function makes, in the kept form; each device makes its own rows."""
        ...

    def target(self, shapes: Tree) -> Tree:
        """Zeros of the kept form, or shapes with their sharding, to restore a checkpoint into."""
        ...

    def fill_up(self, params: Tree) -> Tree:
        """Parameters whose tables have as many rows of zeros as let them be sharded."""
        ...

    # Inside mapped functions:

    def n_rows(self, table_RxD: jax.Array) -> int:
        """Rows of a table on all devices together."""
        ...

    def own(self, row_N: jax.Array, n_own: int) -> jax.Array:
        """Where rows are in this device's part of a table; n_own for those that are not.

        Args:
          row_N: row numbers, or a mask of all rows.
          n_own: rows of the part.
        """
        ...

    def gather(self, table_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
        """Rows of a table, from whichever device has them; the same rows on all devices."""
        ...

    def sum_tables(self, params: Tree) -> Tree:
        """Parameters whose tables have rows from every device that has them, zeros from others."""
        ...


@dataclasses.dataclass(frozen=True)
class Replicated:
    """Every device has all rows."""

    parts: None = None

    def place(self, tree: Tree) -> Tree:
        return replicate(tree)

    def keep(self, tree: Tree) -> Tree:
        return first(tree)

    def make(self, function: Callable[[], Tree]) -> Tree:
        return jax.device_get(jax.jit(function)())

    def target(self, shapes: Tree) -> Tree:
        return jax.tree.map(_zeros, shapes)

    def fill_up(self, params: Tree) -> Tree:
        return params

    def n_rows(self, table_RxD: jax.Array) -> int:
        return len(table_RxD)

    def own(self, row_N: jax.Array, n_own: int) -> jax.Array:
        return row_N

    def gather(self, table_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
        return table_RxD[row_N]

    def sum_tables(self, params: Tree) -> Tree:
        return params


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Each device has as many rows as any other.

    Placed, a table is (devices, R / devices, D); kept, it is one array (R, D) over the devices of
    all processes, filled up with rows of zeros until it divides evenly.
    """

    @property
    def parts(self) -> tuple[int, range]:
        return device_count(), own_devices()

    def place(self, tree: Tree) -> Tree:
        def split(x):
            if isinstance(x, np.ndarray):
                n = device_count()
                return shard(np.pad(x, ((0, -len(x) % n), (0, 0))).reshape(n, -1, x.shape[1]))
            parts = [part.data[None] for part in x.addressable_shards]
            shape = (len(parts), *parts[0].shape[1:])
            over = _over(jax.local_devices())
            return jax.make_array_from_single_device_arrays(shape, over, parts)

        return map_tables(split, replicate, tree)

    def keep(self, tree: Tree) -> Tree:
        def join(x):
            parts = [part.data[0] for part in x.addressable_shards]
            rows, width = parts[0].shape
            shape = (rows * device_count(), width)
            return jax.make_array_from_single_device_arrays(shape, _over(jax.devices()), parts)

        return map_tables(join, first, tree)

    def make(self, function: Callable[[], Tree]) -> Tree:
        tables = _over(jax.devices())
        rest = NamedSharding(tables.mesh, PartitionSpec())
        shapes = jax.eval_shape(function)
        shardings = map_tables(lambda _: tables, lambda _: rest, shapes)
        made = jax.jit(function, out_shardings=shardings)()
        return map_tables(lambda table: table, np.asarray, made)

    def target(self, shapes: Tree) -> Tree:
        def of_all(table):
            sharding = _over(jax.devices())
            return jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=sharding)

        return map_tables(of_all, _zeros, shapes)

    def fill_up(self, params: Tree) -> Tree:
        def fill(table_RxD):
            return jnp.pad(table_RxD, ((0, -len(table_RxD) % device_count()), (0, 0)))

        return map_tables(fill, lambda x: x, params)

    def n_rows(self, table_RxD: jax.Array) -> int:
        return device_count() * len(table_RxD)

    def own(self, row_N: jax.Array, n_own: int) -> jax.Array:
        if row_N.dtype == bool:
            row_N = jnp.where(row_N, jnp.arange(len(row_N)), len(row_N))
        own_N = row_N - index() * n_own
        return jnp.where((own_N >= 0) & (own_N < n_own), own_N, n_own)

    def gather(self, table_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
        own_N = self.own(row_N, len(table_RxD))
        return psum(table_RxD.at[own_N].get(mode="fill", fill_value=0))

    def sum_tables(self, params: Tree) -> Tree:
        tables = {name: table for name, table in params.items() if name != "model"}
        return params | psum(tables)


REPLICATED: Placement = Replicated()
SHARDED: Placement = Sharded()
PLACEMENTS = {"replicated": REPLICATED, "sharded": SHARDED}


def _zeros(x) -> np.ndarray:
    return np.zeros(x.shape, x.dtype)


def pmap(function: Callable[..., Tree], donate: tuple[int, ...] = ()) -> jax.stages.Wrapped:
    """Runs a function on all devices, over the leading axis of every argument.

    Products are exact to float32 also where the device would round their factors.
    """

    @functools.wraps(function)
    def exact(*args):
        with jax.default_matmul_precision("float32"):
            return function(*args)

    return jax.pmap(exact, axis_name=AXIS, donate_argnums=donate)


def compiled(
    function: Callable[..., Tree], arguments: tuple[Tree, ...], donate: tuple[int, ...] = ()
) -> Callable[..., Tree]:
    """As `pmap`, ready to be called with arguments like these."""
    mapped = pmap(function, donate)
    # Of several processes, jax compiles for the arguments of all and then refuses those of one.
    return mapped if jax.process_count() > 1 else mapped.lower(*arguments).compile()


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
