"""Interactions on the device, of all users or of one shard."""

import math
from collections.abc import Callable
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.errors import UserError

MOST = 2**31 - 1  # interactions: their indices are int32
FEW = 2**18  # interactions: arrays are as long as those of any other users would be
SHORT = 512  # items of a user, for whose number alone nothing is compiled


def leaf(x: np.ndarray) -> jax.Array:
    """Casts a host array to the type that it has once on the devices."""
    return cast(jax.Array, x)


class UserItems(flax.struct.PyTreeNode):
    """The items of each user as CSR on the device: of all users, or of one shard.

    Attributes:
      start_U1: row offsets, (U + 1,).
      item_E: item indices, ascending for each user.
      first_user: index of the first user of this shard.
      first: index of the first interaction of this shard.
      n_items: I.
      longest: most items of a user.
      total: E, over all devices.
      sharded: whether users are sharded.
    """

    start_U1: jax.Array
    item_E: jax.Array
    first_user: jax.Array
    first: jax.Array
    n_items: int = flax.struct.field(pytree_node=False)
    longest: int = flax.struct.field(pytree_node=False)
    total: int = flax.struct.field(pytree_node=False)
    sharded: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_array) -> "UserItems":
        """From CSR (U, I) with sorted indices, as host arrays."""
        whole = cls.parts(matrix, 1, range(1))
        return jax.tree.map(lambda x: x[0], whole).replace(sharded=False)

    @classmethod
    def parts(cls, matrix: scipy.sparse.csr_array, n: int, own: range) -> "UserItems":
        """The shards `own` of n with equally many users, on a leading axis, as host arrays."""
        n_users, n_items = matrix.shape
        if matrix.nnz > MOST:
            raise UserError(f"{matrix.nnz:,} interactions are more than the {MOST:,} that fit.")
        share = math.ceil(n_users / n)
        user_P = share * np.array(own)
        bound_P1 = matrix.indptr[np.minimum(share * np.arange(n + 1), n_users)]
        first_P, last_P = bound_P1[own], bound_P1[own.start + 1 : own.stop + 1]
        start_PxU1 = matrix.indptr[np.minimum(user_P[:, None] + np.arange(share + 1), n_users)]
        # At least one entry, so that gathers can clamp to it.
        item_PxE = np.zeros((len(own), max(1, np.diff(bound_P1).max())), np.int32)
        for item_E, first, last in zip(item_PxE, first_P, last_P, strict=True):
            item_E[: last - first] = matrix.indices[first:last]
        arrays = start_PxU1 - first_P[:, None], item_PxE, user_P, first_P
        start_PxU1, item_PxE, user_P, first_P = (leaf(x.astype(np.int32)) for x in arrays)
        longest = int(np.diff(matrix.indptr).max(initial=1))
        total = max(1, matrix.nnz)
        return cls(start_PxU1, item_PxE, user_P, first_P, n_items, longest, total, sharded=True)

    @classmethod
    def rows(cls, matrix: scipy.sparse.csr_array, longest: int) -> "UserItems":
        """Of a few users, by row of `matrix`; padded, so that few programs are compiled.

        Args:
          matrix: CSR of these users.
          longest: most items of any user.
        """
        longest = devices.padded_size(max(longest, SHORT))
        most = devices.padded_size(matrix.shape[0]) * longest
        size = most if most <= FEW else devices.padded_size(matrix.nnz)
        item_E = np.zeros(size, np.int32)
        item_E[: matrix.nnz] = matrix.indices
        start_U1, zero = leaf(matrix.indptr.astype(np.int32)), leaf(np.zeros((), np.int32))
        return cls(start_U1, leaf(item_E), zero, zero, matrix.shape[1], longest, 0)

    def start(self, user: jax.Array) -> jax.Array:
        """Offset of a user's first item in `item_E`."""
        return self.start_U1[user - self.first_user]

    def count(self, user: jax.Array) -> jax.Array:
        """Number of a user's items."""
        return self.start(user + 1) - self.start(user)

    def at(self, index: jax.Array) -> jax.Array:
        """Items of interactions, by index over all shards."""
        if not self.sharded:
            return self.item_E[index]
        own = index - self.first
        is_here = (own >= 0) & (own < self.start_U1[-1])
        return devices.psum(jnp.where(is_here, self.item_E[own], 0))

    def users(self) -> jax.Array:
        """User indices (E,) of the interactions."""
        count_U = jnp.diff(self.start_U1)
        return jnp.repeat(
            jnp.arange(len(count_U)), count_U, total_repeat_length=self.item_E.shape[0]
        )

    def search(
        self, user: jax.Array, goes_right: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> jax.Array:
        """Binary search: the first offset in a user's items with not `goes_right(item, offset)`.

        The predicate must be True up to some offset and False from there on.
        """
        start = self.start(user)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            right = goes_right(self.item_E[start + middle], middle) & (low < high)
            return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

        bounds = (jnp.zeros_like(user), self.count(user))
        return jax.lax.fori_loop(0, self.longest.bit_length(), halve, bounds)[0]

    def find(self, user: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(offset of an item in a user's items, whether the user has it)."""
        offset = self.search(user, lambda other, _: other < item)
        has = (offset < self.count(user)) & (self.item_E[self.start(user) + offset] == item)
        return offset, has


class Positives(flax.struct.PyTreeNode):
    """The E positives (user, item) of an epoch: all, or those of one shard.

    Attributes:
      user_E: user indices.
      item_E: item indices.
      first: index of the first positive of this shard.
      count: number of positives of this shard.
      total: E, over all devices.
      weight_E: what each counts in the loss; None: once.
    """

    user_E: jax.Array
    item_E: jax.Array
    first: jax.Array
    count: jax.Array
    total: int = flax.struct.field(pytree_node=False)
    weight_E: jax.Array | None = None

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_array) -> "Positives":
        """The nonzeros of CSR (U, I), as host arrays; values but booleans are weights."""
        return jax.tree.map(lambda x: x[0], cls.parts(matrix, 1, range(1)))

    @classmethod
    def parts(cls, matrix: scipy.sparse.csr_array, n: int, own: range) -> "Positives":
        """As `UserItems.parts`."""
        cells = UserItems.parts(matrix, n, own)
        users = []
        for start_U1, first_user in zip(cells.start_U1, cells.first_user, strict=True):
            user_N = first_user + np.repeat(np.arange(len(start_U1) - 1), np.diff(start_U1))
            users.append(np.pad(user_N, (0, cells.item_E.shape[1] - len(user_N))))
        count = cells.start_U1[:, -1]
        user_PxE = leaf(np.array(users, np.int32))
        weight_PxE = None
        if matrix.dtype != bool:
            weight_PxE = leaf(np.zeros(user_PxE.shape, np.float32))
            for weight_E, first, n in zip(weight_PxE, cells.first, count, strict=True):
                weight_E[:n] = matrix.data[first : first + n]
        return cls(user_PxE, cells.item_E, cells.first, count, matrix.nnz, weight_PxE)

    def at(self, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | float, jax.Array]:
        """(user, item, weight, whether it is in this shard) of a positive, by index over all."""
        own = index - self.first
        is_here = (own >= 0) & (own < self.count)
        weight = 1.0 if self.weight_E is None else self.weight_E[own]
        return self.user_E[own], self.item_E[own], weight, is_here
