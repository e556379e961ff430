"""The only module that knows about devices.

Everything else is written for one device and an axis name. On the devices, arrays have a leading
axis over this process's devices: of copies if replicated, of different rows if sharded.
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
    """Caches compiled programs in a folder for later processes, if it is writable.

    `JAX_COMPILATION_CACHE_DIR`, if set, takes precedence.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None and os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # With a size bound jax locks the folder, so that no process reads a half-written file.
        jax.config.update("jax_compilation_cache_max_size", 2**31)


def device_count() -> int:
    """Number of devices, over which batches and evaluated users are split."""
    return jax.device_count()


def workers() -> int:
    """Threads that keep the device busy: on a CPU, one program's loops use one core."""
    if not on_cpu() or device_count() > 1:
        return 1
    # Where the system says so, only those cores that this process may use.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def host_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def on_cpu() -> bool:
    """Whether to loop over blocks that fit in a core's cache; other devices take all at once."""
    return jax.default_backend() == "cpu"


def training_block_bytes() -> float:
    """Bytes of preference rows in a block of training examples; on a CPU they fit in cache."""
    return 1e6 if on_cpu() else math.inf


def ranking_block() -> tuple[int, int, int]:
    """(users related to a block of targets together, users scored at a time, most targets of a
    block); on a CPU one user's part of a block fits in cache."""
    return (64, 1, 64) if on_cpu() else (2048, 2048, 128)


def padded_size(n: int, base: int = 2) -> int:
    """The smallest power of the base that is at least n.

    Arrays of any number of rows are padded to such a size, so that few programs are compiled.
    """
    size = 1
    while size < n:
        size *= base
    return size


def described() -> str:
    """Number and kind of the devices, for the console."""
    return f"{device_count()} {jax.default_backend()} device(s)"


def side_by_side() -> int:
    """How many runs to train in one program: a small one leaves much of a GPU idle."""
    return 1 if on_cpu() else 8


def replicate(tree: Tree) -> Tree:
    """A copy of every array on each device of this process."""
    n = jax.local_device_count()
    return put(jax.tree.map(lambda x: np.broadcast_to(x, (n, *np.shape(x))), tree))


def shard(tree: Tree) -> Tree:
    """Puts host arrays with a leading axis of all devices on this process's devices."""
    own = own_devices()
    return put(jax.tree.map(lambda x: x[own.start : own.stop], tree))


def own_devices() -> range:
    """Indices of this process's devices among all."""
    n = jax.local_device_count()
    return range(jax.process_index() * n, (jax.process_index() + 1) * n)


def put(tree: Tree) -> Tree:
    """Puts host arrays with a leading axis of this process's devices on them."""
    return jax.device_put(tree, _over(jax.local_devices()))


def _over(devices: list) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def first(tree: Tree) -> Tree:
    """Host copies of the first device's arrays."""
    return jax.tree.map(lambda x: np.array(jax.device_get(x.addressable_shards[0].data))[0], tree)


def all_parts(tree: Tree) -> Tree:
    """Sharded arrays, or results of a mapped function, as host arrays over all devices."""
    tree = jax.device_get(tree)
    several = jax.process_count() > 1
    return multihost_utils.process_allgather(tree, tiled=True) if several else tree


def table_name(path: tuple[Any, ...]) -> str | None:
    """The table a leaf is, or is an optimizer moment of: "users", "items" or None."""
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return names[-1] if names and names[-1] in ("users", "items") and "model" not in names else None


def map_tables(map_table: Callable[[Any], Any], map_rest: Callable[[Any], Any], tree: Tree) -> Tree:
    """Maps one function over the tables of a tree and their moments, another over the rest."""

    def apply(path, x):
        return map_rest(x) if table_name(path) is None else map_table(x)

    return jax.tree.map_with_path(apply, tree)


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """An array that is replicated or sharded over all processes, as a whole on this host."""
    if isinstance(x, np.ndarray) or jax.process_count() == 1:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


class Placement(Protocol):
    """Where the rows of tables are: `REPLICATED` on every device, or `SHARDED` over all of them.

    A tree of parameters, or a state, has two forms: placed, for mapped functions, with a leading
    axis of this process's devices; and kept, for initialisation and checkpoints.
    """

    @property
    def parts(self) -> tuple[int, range] | None:
        """(number of shards of tables and interactions, indices of this process's); or None."""
        ...

    def place(self, tree: Tree) -> Tree:
        """The placed form of a kept tree, or of host arrays."""
        ...

    def keep(self, tree: Tree) -> Tree:
        """The kept form of a placed tree: host arrays, and each sharded table as one array."""
        ...

    def make(self, function: Callable[[], Tree]) -> Tree:
        """The result of a function in the kept form; each device computes its own rows."""
        ...

    def target(self, shapes: Tree) -> Tree:
        """Zeros in the kept form, or shapes with shardings, to restore a checkpoint into."""
        ...

    def fill_up(self, params: Tree) -> Tree:
        """Parameters with zero rows appended to tables until they divide over the devices."""
        ...

    # Inside mapped functions:

    def n_rows(self, table_RxD: jax.Array) -> int:
        """Rows of a table over all devices."""
        ...

    def own(self, rows: jax.Array, n_own: int) -> jax.Array:
        """Row indices in this device's shard of a table; n_own for rows of other shards.

        Args:
          rows: row indices (N,), or a mask (R,) of all rows.
          n_own: rows of the shard.
        """
        ...

    def gather(self, table_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
        """Rows (N, D) of a table, whichever device has them; `row_N` is the same on all devices."""
        ...

    def sum_tables(self, params: Tree) -> Tree:
        """Parameters with tables summed over devices, each holding its own rows and zeros."""
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

    def own(self, rows: jax.Array, n_own: int) -> jax.Array:
        return rows

    def gather(self, table_RxD: jax.Array, row_N: jax.Array) -> jax.Array:
        return table_RxD[row_N]

    def sum_tables(self, params: Tree) -> Tree:
        return params


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Each device has an equal share of the rows.

    Placed, a table is (devices, R / devices, D); kept, it is one array (R, D) over the devices of
    all processes. Zero rows are appended until it divides evenly.
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
        def sharded(table):
            sharding = _over(jax.devices())
            return jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=sharding)

        return map_tables(sharded, _zeros, shapes)

    def fill_up(self, params: Tree) -> Tree:
        def fill(table_RxD):
            return jnp.pad(table_RxD, ((0, -len(table_RxD) % device_count()), (0, 0)))

        return map_tables(fill, lambda x: x, params)

    def n_rows(self, table_RxD: jax.Array) -> int:
        return device_count() * len(table_RxD)

    def own(self, rows: jax.Array, n_own: int) -> jax.Array:
        if rows.dtype == bool:
            rows = jnp.where(rows, jnp.arange(len(rows)), len(rows))
        own_N = rows - index() * n_own
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


def exact(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function with float32 matrix products, even where the device would round their factors.

    For what is compiled; `pmap` includes it.
    """

    @functools.wraps(function)
    def exact(*args):
        with jax.default_matmul_precision("float32"):
            return function(*args)

    return exact


def pmap(function: Callable[..., Tree], donate: tuple[int, ...] = ()) -> jax.stages.Wrapped:
    """`jax.pmap` over the leading axis of every argument."""
    return jax.pmap(exact(function), axis_name=AXIS, donate_argnums=donate)


def compiled(
    function: Callable[..., Tree], arguments: tuple[Tree, ...], donate: tuple[int, ...] = ()
) -> Callable[..., Tree]:
    """As `pmap`, compiled ahead for arguments like these."""
    mapped = pmap(function, donate)
    # With several processes jax compiles for the arguments of all, and then refuses one's.
    return mapped if jax.process_count() > 1 else mapped.lower(*arguments).compile()


def psum(tree: Tree) -> Tree:
    """Sum over the devices, inside a mapped function."""
    # With one device the compiler would still make a copy.
    return tree if device_count() == 1 else jax.lax.psum(tree, AXIS)


def all_gather(x: jax.Array) -> jax.Array:
    """The arrays of all devices, (devices, ...), inside a mapped function."""
    return jax.lax.all_gather(x, AXIS)


def index() -> jax.Array:
    """This device's index, inside a mapped function."""
    return jax.lax.axis_index(AXIS)
