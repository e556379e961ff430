"""Sampling of negatives and preferences on the device, from device-resident interactions.

Each example has its own key, from the seed, the epoch and the example's index in the epoch, so it
draws the same on any number of devices and in a resumed run. All draws are exact, without rejection
and in static shapes: negatives by rank among the items a user does not have, subsets by Floyd's
algorithm.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data.dataset import Known, count_items
from hlrcml_jax.training.batch import Batch, Example
from hlrcml_jax.training.interactions import Positives, UserItems, leaf

# Draws N items of the catalogue, independent of the user: (key, N, number of users (I,) of each
# item, at least 1) to (item indices (N,), log probabilities (N,)).
CandidateSampler = Callable[[jax.Array, int, jax.Array], tuple[jax.Array, jax.Array]]
MOST_BITS = 2**31  # users times items, 256 MB: looking a pair up is cheaper than a search
CandidateWeights = Literal["uniform", "popularity"] | CandidateSampler
SHUFFLE_ROUNDS = 4  # pairs of them


def uniform(key: jax.Array, n: int, count_I: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Uniform over the catalogue; a `CandidateSampler`."""
    item_N = jax.random.randint(key, (n,), 0, len(count_I))
    return item_N, jnp.full(n, -math.log(len(count_I)))


class Sampler(flax.struct.PyTreeNode):
    """Samples the negatives and preferences of examples.

    Attributes:
      known: the users' items: never negatives, and the source of preferences.
      log_weight_I: log weights of items as preferences, for "unpop".
      max_prefs: S; 0 for a model that uses none.
      candidates: N, negatives per example.
      weights: of preferences, "uniform" or "unpop" (weight 1 / popularity).
      candidate_weights: of negatives, "uniform", "popularity" or a custom sampler.
      shared: whether the examples of a batch share their negatives.
      correction: logQ correction of the negatives' weights, for sampled softmax.
      unseen_N: items without a user, which sampling by popularity takes for items of one user: what
        is never drawn would keep its initial score.
      bits_UxW: of small data, `known` as one bit for each user and item; else (0, 0).
    """

    known: UserItems
    log_weight_I: jax.Array
    max_prefs: int = flax.struct.field(pytree_node=False)
    candidates: int = flax.struct.field(pytree_node=False, default=1)
    weights: str = flax.struct.field(pytree_node=False, default="uniform")
    candidate_weights: CandidateWeights = flax.struct.field(pytree_node=False, default="uniform")
    shared: bool = flax.struct.field(pytree_node=False, default=False)
    correction: bool = flax.struct.field(pytree_node=False, default=False)
    unseen_N: jax.Array = flax.struct.field(default_factory=lambda: leaf(np.zeros(0, np.int32)))
    bits_UxW: jax.Array = flax.struct.field(
        default_factory=lambda: leaf(np.zeros((0, 0), np.uint8))
    )

    @classmethod
    def of(
        cls,
        known: scipy.sparse.csr_array,
        max_prefs: int,
        parts: tuple[int, range] | None = None,
        **how: Any,
    ) -> "Sampler":
        """From interactions (U, I), as host arrays.

        With `parts` users are sharded, see `UserItems.parts`; `how` are further attributes.
        """
        items = UserItems.parts(known, *parts) if parts else UserItems.of(known)
        count_I = count_items(known)
        unseen_N = leaf(np.flatnonzero(count_I == 0).astype(np.int32))
        bits_UxW = np.zeros((0, 0), np.uint8)
        if parts is None and how.get("shared") and math.prod(known.shape) <= MOST_BITS:
            bits_UxW = _bits(known)
        arrays = {"unseen_N": unseen_N, "bits_UxW": leaf(bits_UxW)}
        return cls(items, leaf(_rarity(count_I)), max_prefs, **arrays, **how)

    def place(self) -> "Sampler":
        """The sampler on the devices, for mapped functions."""
        put = devices.put if self.known.sharded else devices.replicate
        names = ("log_weight_I", "unseen_N", "bits_UxW")
        placed = devices.replicate({name: getattr(self, name) for name in names})
        return self.replace(known=put(self.known), **placed)

    def negatives(self, key: jax.Array, user: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N negatives for a user, with replacement, and their log weights, each (N,).

        Uniform ones are drawn among the items that the user does not have: the r-th of those is
        r + the number of the user's items before it. For a user with all items the result is
        meaningless (see `example`). Other samplers may draw any item (see `log_weights`).
        """
        if self.candidate_weights != "uniform":
            item_N, log_q_N = self.any_items(key)
            return item_N, self.log_weights(user, item_N, log_q_N)
        n_free = jnp.maximum(self.known.n_items - self.known.count(user), 1)
        rank_N = jax.random.randint(key, (self.candidates,), 0, n_free)

        def nth_free(rank):
            return rank + self.known.search(user, lambda item, offset: item - offset <= rank)

        item_N = jnp.minimum(jax.vmap(nth_free)(rank_N), self.known.n_items - 1)
        return item_N, self._corrected(jnp.full(item_N.shape, -jnp.log(n_free)))

    def any_items(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N items from the full catalogue, and their log probabilities, each (N,)."""
        if self.candidate_weights == "popularity":
            # The item of a uniform interaction has probability proportional to popularity.
            seen, n_unseen = self.known.total, self.unseen_N.shape[0]
            index_N = jax.random.randint(key, (self.candidates,), 0, seen + n_unseen)
            item_N = self.known.at(jnp.minimum(index_N, seen - 1))
            if n_unseen:
                unseen_N = self.unseen_N[jnp.maximum(index_N - seen, 0)]
                item_N = jnp.where(index_N < seen, item_N, unseen_N)
            return item_N, -self.log_weight_I[item_N] - math.log(seen + n_unseen)
        draw = uniform if self.candidate_weights == "uniform" else self.candidate_weights
        return draw(key, self.candidates, jnp.round(jnp.exp(-self.log_weight_I)))

    def log_weights(self, user: jax.Array, item_N: jax.Array, log_q_N: jax.Array) -> jax.Array:
        """Log weights (N,) of items as negatives; -inf for items of the user."""
        if self.bits_UxW.size:
            bit_N = (item_N % 8).astype(jnp.uint8)
            has_N = (self.bits_UxW[user, item_N // 8] >> bit_N) & 1 != 0
        else:
            has_N = jax.vmap(lambda item: self.known.find(user, item)[1])(item_N)
        return jnp.where(has_N, -jnp.inf, self._corrected(log_q_N))

    def _corrected(self, log_q_N: jax.Array) -> jax.Array:
        """Log weights of negatives that were drawn with probabilities q.

        With the logQ correction they are -log(N q), so that the weighted sum over negatives is an
        estimate of the sum over the catalogue; else 0.
        """
        return -math.log(self.candidates) - log_q_N if self.correction else jnp.zeros_like(log_q_N)

    def preferences(
        self, key: jax.Array, user: jax.Array, left_out: jax.Array, is_left_out: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """At most S of a user's items, drawn without replacement.

        Args:
          key: of this draw.
          user: user index.
          left_out: offset in the user's items of one that must not be drawn.
          is_left_out: whether there is one.

        Returns:
          (item indices (S,), mask (S,)); masked items are arbitrary.
        """
        if self.max_prefs == 0:
            return jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
        n = self.known.count(user) - is_left_out
        if self.weights == "uniform":
            offset_S, mask_S = uniform_subset(key, n, self.max_prefs)
        else:
            offset_S, mask_S = self._weighted_subset(key, user, left_out, is_left_out)
        offset_S = offset_S + (is_left_out & (offset_S >= left_out))
        return self.known.item_E[self.known.start(user) + offset_S], mask_S

    def example(
        self,
        key: jax.Array,
        user: jax.Array,
        item: jax.Array,
        shared: tuple[jax.Array, jax.Array] | None = None,
    ) -> Example:
        """The example of a positive, with its negatives and preferences.

        Its weight is 0 for a user who has all items, because there is no negative.
        """
        negative_key, preference_key = jax.random.split(key)
        if shared is None:
            negative_N, log_weight_N = self.negatives(negative_key, user)
        else:
            negative_N, log_weight_N = shared[0], self.log_weights(user, *shared)
        # Of a validation example, the positive is not among the user's items.
        log_weight_N = jnp.where(negative_N == item, -jnp.inf, log_weight_N)
        prefs_S, mask_S = self.preferences(preference_key, user, *self.known.find(user, item))
        weight = (self.known.count(user) < self.known.n_items).astype(jnp.float32)
        uniform = jax.random.uniform(jax.random.fold_in(key, 2))
        return Example(user, item, negative_N, log_weight_N, prefs_S, mask_S, weight, uniform)

    def _weighted_subset(self, key, user, left_out, is_left_out):
        """Weighted sampling without replacement: the top of log weight + Gumbel noise."""
        offset_L = jnp.arange(self.known.longest)
        n = self.known.count(user) - is_left_out
        shifted_L = offset_L + (is_left_out & (offset_L >= left_out))
        item_L = self.known.item_E[self.known.start(user) + shifted_L]
        noisy_L = self.log_weight_I[item_L] + jax.random.gumbel(key, offset_L.shape)
        size = min(self.max_prefs, self.known.longest)
        noisy_S, offset_S = jax.lax.top_k(jnp.where(offset_L < n, noisy_L, -jnp.inf), size)
        pad = (0, self.max_prefs - size)
        return jnp.pad(offset_S, pad), jnp.pad(noisy_S > -jnp.inf, pad)


def uniform_subset(key: jax.Array, n: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """A uniform subset of min(n, size) of the integers below n, (size,), and its mask.

    Floyd's algorithm takes draw k from 0..last_k with last_k growing to n - 1, and last_k itself
    where the draw was taken before. A draw was taken before if an earlier draw is equal, or if it
    is the last_j of an earlier step j that had to take it; these chains are followed by doubling.
    """
    step_S = jnp.arange(size)
    first = jnp.maximum(n - size, 0)
    last_S = first + step_S
    draw_S = jax.random.randint(key, (size,), 0, last_S + 1)
    earlier_SxS = step_S[None, :] < step_S[:, None]
    taken_S = jnp.any((draw_S[None, :] == draw_S[:, None]) & earlier_SxS, axis=1)
    depends_S = jnp.where(draw_S >= first, draw_S - first, step_S)
    for _ in range(size.bit_length()):
        taken_S = taken_S | taken_S[depends_S]
        depends_S = depends_S[depends_S]
    return jnp.where(taken_S, last_S, draw_S), step_S < n


def draw_batch(
    sampler: Sampler,
    positives: Positives,
    epoch_key: jax.Array,
    index_B: jax.Array,
    step: jax.Array | int = 0,
) -> Batch:
    """The examples of an epoch with some indices: its positives in shuffled order.

    With sharded interactions all devices get all examples, and must pass the same indices.

    Args:
      sampler: of negatives and preferences.
      positives: of the epoch.
      epoch_key: of this epoch.
      index_B: indices of examples in the epoch; past its end they have weight 0.
      step: index of the batch in the epoch, for negatives that its examples share.
    """
    n = positives.total
    order_key, draw_key = jax.random.split(epoch_key)
    # Keys of steps follow those of examples.
    step_key = jax.random.fold_in(draw_key, n + step)
    shared = sampler.any_items(step_key) if sampler.shared else None

    def draw(index, place):
        user, item, weight, is_here = positives.at(place)
        example = sampler.example(jax.random.fold_in(draw_key, index), user, item, shared)
        example = example._replace(weight=weight * example.weight * (index < n))
        if not sampler.known.sharded:
            return example
        example = jax.tree.map(lambda x: jnp.where(is_here, x, jnp.zeros_like(x)), example)
        return devices.psum(example._replace(mask_S=example.mask_S.astype(jnp.int32)))

    place_B = shuffled(order_key, jnp.minimum(index_B, n - 1), n)
    batch = Batch.of(jax.vmap(draw)(index_B, place_B))
    batch = batch.replace(mask_BxS=batch.mask_BxS.astype(bool))
    if shared is None:
        return batch
    return batch.replace(negative_BxN=shared[0][None], shared=True)


def shuffled(key: jax.Array, index_B: jax.Array, n: int) -> jax.Array:
    """The places (B,) of some of the n elements in a random order, which is never built.

    A Feistel network permutes the integers of as many bits as n - 1 has (Luby and Rackoff, 1988);
    what falls past n is permuted again until it does not (Black and Rogaway, 2002). Sorting random
    numbers, as `jax.random.permutation` does, takes longer than many a model's epoch.

    Args:
      key: of the order.
      index_B: indices below n.
      n: number of elements.
    """
    if n < 1:
        raise ValueError(f"there is no order of {n} elements")
    n_bits = max(2, (n - 1).bit_length())
    low, high = jnp.uint32(n_bits // 2), jnp.uint32(n_bits - n_bits // 2)
    key_R = jax.random.bits(key, (2 * SHUFFLE_ROUNDS,), jnp.uint32)

    def permute(x_B):
        """Rounds in pairs, so that the two parts, of unlike lengths, are back in their places."""
        low_B, high_B = x_B & ((1 << low) - 1), x_B >> low
        for low_key, high_key in key_R.reshape(-1, 2):
            high_B ^= _mix(low_B ^ low_key) >> (32 - high)
            low_B ^= _mix(high_B ^ high_key) >> (32 - low)
        return (high_B << low) | low_B

    def is_past(x_B):
        return jnp.any(x_B >= n)

    def again(x_B):
        return jnp.where(x_B >= n, permute(x_B), x_B)

    # Whatever the index, its bits are among those that are permuted, so that the loop ends.
    index_B = index_B.astype(jnp.uint32) & jnp.uint32((1 << n_bits) - 1)
    x_B = jax.lax.while_loop(is_past, again, permute(index_B))
    return x_B.astype(jnp.int32)


def _mix(x: jax.Array) -> jax.Array:
    """Spreads every bit over all (the finalizer of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))


def rarity(known: Known | scipy.sparse.csr_array) -> np.ndarray:
    """Log weights (I,) of items, inverse to popularity."""
    return _rarity(count_items(known))


def _rarity(count_I: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(count_I, 1)).astype(np.float32)


def evaluation_preferences(
    sampler: Sampler, key: jax.Array, user_B: jax.Array, row_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Preferences (B, S) and mask (B, S); those of a user depend on the seed only.

    Args:
      sampler: of these users.
      key: of all draws.
      user_B: user indices.
      row_B: their rows in the sampler's interactions.
    """

    def draw(row, user):
        nothing = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return sampler.preferences(jax.random.fold_in(key, user), row, *nothing)

    return jax.vmap(draw)(row_B, user_B)


def _bits(known: scipy.sparse.csr_array) -> np.ndarray:
    """CSR (U, I) as bits (U, ceil(I / 8)), the lowest bit of a byte first."""
    n_users, n_items = known.shape
    bits_UxW = np.zeros((n_users, math.ceil(n_items / 8)), np.uint8)
    user_E, item_E = np.repeat(np.arange(n_users), np.diff(known.indptr)), known.indices
    np.bitwise_or.at(bits_UxW, (user_E, item_E // 8), (1 << item_E % 8).astype(np.uint8))
    return bits_UxW
