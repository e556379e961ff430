"""Draws of negatives and preferences, on the device, from the device-resident interactions.

Each example has a key of its own, made from the seed, the epoch and the example's place in the
epoch, so that it draws the same on any number of devices and in a resumed run. All draws are
exact: negatives by ranks among the items that a user does not have, and subsets by Floyd's
algorithm, so nothing is rejected and every shape is static.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data.dataset import Known, count_items
from hlrcml_jax.training.batch import Batch

# Draws N items of the catalogue, whoever the user is, from (key, N, popularity (I,)):
# (items (N,), logarithm of the probability of each (N,)).
CandidateSampler = Callable[[jax.Array, int, jax.Array], tuple[jax.Array, jax.Array]]
CandidateWeights = Literal["uniform", "popularity"] | CandidateSampler


def uniform(key: jax.Array, n: int, count_I: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every item with the same probability; a `CandidateSampler`."""
    item_N = jax.random.randint(key, (n,), 0, len(count_I))
    return item_N, jnp.full(n, -math.log(len(count_I)))


def _leaf(x: np.ndarray) -> jax.Array:
    """A host array, as it is, where a tree has one of a device once it is placed."""
    return cast(jax.Array, x)


class UserItems(flax.struct.PyTreeNode):
    """The items of each user, as CSR on the device, or of the users that a device has.

    Attributes:
      start_U1: where the items of each user begin, (U + 1,).
      item_E: item numbers, ascending for each user.
      first_user: number of the first user here.
      first: number of its first item among those of all users.
      n_items: I.
      longest: the most items of a user.
      total: E, of all devices together.
      divided: whether each device has its own part.
    """

    start_U1: jax.Array
    item_E: jax.Array
    first_user: jax.Array
    first: jax.Array
    n_items: int = flax.struct.field(pytree_node=False)
    longest: int = flax.struct.field(pytree_node=False)
    total: int = flax.struct.field(pytree_node=False)
    divided: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_array) -> "UserItems":
        """From CSR of users x items with sorted indices; the arrays stay on the host."""
        whole = cls.parts(matrix, 1, range(1))
        return jax.tree.map(lambda x: x[0], whole).replace(divided=False)

    @classmethod
    def parts(cls, matrix: scipy.sparse.csr_array, n: int, own: range) -> "UserItems":
        """Some of n parts with equally many users, on a leading axis; nothing else is read."""
        n_users, n_items = matrix.shape
        share = math.ceil(n_users / n)
        user_P = share * np.array(own)
        bound_P1 = matrix.indptr[np.minimum(share * np.arange(n + 1), n_users)]
        first_P, last_P = bound_P1[own], bound_P1[own.start + 1 : own.stop + 1]
        start_PxU1 = matrix.indptr[np.minimum(user_P[:, None] + np.arange(share + 1), n_users)]
        # One entry where there is none, so that every gather has something to clamp to.
        item_PxE = np.zeros((len(own), max(1, np.diff(bound_P1).max())), np.int32)
        for item_E, first, last in zip(item_PxE, first_P, last_P, strict=True):
            item_E[: last - first] = matrix.indices[first:last]
        arrays = start_PxU1 - first_P[:, None], item_PxE, user_P, first_P
        start_PxU1, item_PxE, user_P, first_P = (_leaf(x.astype(np.int32)) for x in arrays)
        longest = int(np.diff(matrix.indptr).max(initial=1))
        total = max(1, matrix.nnz)
        return cls(start_PxU1, item_PxE, user_P, first_P, n_items, longest, total, divided=True)

    @classmethod
    def rows(cls, matrix: scipy.sparse.csr_array, longest: int) -> "UserItems":
        """Of a few users, numbered from 0; padded, so that few shapes are compiled.

        Args:
          matrix: CSR of these users.
          longest: the most items of any user.
        """
        item_E = np.zeros(1 << max(matrix.nnz - 1, 0).bit_length(), np.int32)
        item_E[: matrix.nnz] = matrix.indices
        start_U1, zero = _leaf(matrix.indptr.astype(np.int32)), _leaf(np.zeros((), np.int32))
        return cls(start_U1, _leaf(item_E), zero, zero, matrix.shape[1], longest, 0)

    def start(self, user: jax.Array) -> jax.Array:
        """Where the items of a user begin."""
        return self.start_U1[user - self.first_user]

    def count(self, user: jax.Array) -> jax.Array:
        """How many items a user has."""
        return self.start(user + 1) - self.start(user)

    def at(self, number: jax.Array) -> jax.Array:
        """The items with some numbers among those of all users, wherever they are."""
        if not self.divided:
            return self.item_E[number]
        place = number - self.first
        is_here = (place >= 0) & (place < self.start_U1[-1])
        return devices.psum(jnp.where(is_here, self.item_E[place], 0))

    def users(self) -> jax.Array:
        """The user of each item in `item_E`, (E,)."""
        count_U = jnp.diff(self.start_U1)
        return jnp.repeat(
            jnp.arange(len(count_U)), count_U, total_repeat_length=self.item_E.shape[0]
        )

    def search(
        self, user: jax.Array, goes_right: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> jax.Array:
        """The first place among a user's items at which `goes_right(item, place)` is False.

        The predicate must be True up to some place and False from there on.
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
        """(place of an item among a user's, whether it is there)."""
        place = self.search(user, lambda other, _: other < item)
        found = (place < self.count(user)) & (self.item_E[self.start(user) + place] == item)
        return place, found


class Positives(flax.struct.PyTreeNode):
    """The E (user, item) pairs that examples are drawn from, or those that a device has.

    Attributes:
      user_E: user numbers.
      item_E: item numbers.
      first: number of the first pair here.
      count: of pairs here.
      total: E, of all devices together.
    """

    user_E: jax.Array
    item_E: jax.Array
    first: jax.Array
    count: jax.Array
    total: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_array) -> "Positives":
        """The cells of a CSR matrix; the arrays stay on the host."""
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
        user_PxE = _leaf(np.array(users, np.int32))
        return cls(user_PxE, cells.item_E, cells.first, count, matrix.nnz)

    def at(self, pair: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(user, item, whether they are here) of the pair with a number."""
        place = pair - self.first
        is_here = (place >= 0) & (place < self.count)
        return self.user_E[place], self.item_E[place], is_here


class Sampler(flax.struct.PyTreeNode):
    """What an example is drawn from, and how.

    Attributes:
      known: the items that a user has: never negatives, and the source of preferences.
      log_weight_I: log weights of items as preferences; used for "unpop".
      max_prefs: S; 0 for a model that uses none.
      candidates: N.
      weights: "uniform" or "unpop" (weight 1 / popularity).
      candidate_weights: "uniform", "popularity" or a sampler of one's own.
      shared: whether the examples of a batch share their candidates.
      correction: whether candidates stand for the catalogue, see `log_weights`.
    """

    known: UserItems
    log_weight_I: jax.Array
    max_prefs: int = flax.struct.field(pytree_node=False)
    candidates: int = flax.struct.field(pytree_node=False, default=1)
    weights: str = flax.struct.field(pytree_node=False, default="uniform")
    candidate_weights: CandidateWeights = flax.struct.field(pytree_node=False, default="uniform")
    shared: bool = flax.struct.field(pytree_node=False, default=False)
    correction: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(
        cls,
        known: scipy.sparse.csr_array,
        max_prefs: int,
        parts: tuple[int, range] | None = None,
        **how: Any,
    ) -> "Sampler":
        """From the known interactions; the arrays stay on the host.

        With `parts`, see `UserItems.parts`, what users know is divided; `how` are the attributes.
        """
        items = UserItems.parts(known, *parts) if parts else UserItems.of(known)
        return cls(items, _leaf(rarity(known)), max_prefs, **how)

    def place(self) -> "Sampler":
        """On the devices, for mapped functions."""
        put = devices.put if self.known.divided else devices.replicate
        placed = devices.replicate(self.log_weight_I)
        return self.replace(known=put(self.known), log_weight_I=placed)

    def negatives(self, key: jax.Array, user: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N candidates for a user, with replacement, and their log weights, each (N,).

        Uniform ones are drawn among the items that the user does not have: the r-th of those is
        r + the number of the user's items before it. For a user with all items the result means
        nothing (see `draw_batch`). Other samplers may draw any item (see `log_weights`).
        """
        if self.candidate_weights != "uniform":
            item_N, log_q_N = self.any_items(key)
            return item_N, self.log_weights(user, item_N, log_q_N)
        n_free = jnp.maximum(self.known.n_items - self.known.count(user), 1)
        rank_N = jax.random.randint(key, (self.candidates,), 0, n_free)

        def nth_free(rank):
            return rank + self.known.search(user, lambda item, place: item - place <= rank)

        item_N = jnp.minimum(jax.vmap(nth_free)(rank_N), self.known.n_items - 1)
        return item_N, self._corrected(jnp.full(item_N.shape, -jnp.log(n_free)))

    def any_items(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N candidates from the whole catalogue, and the logarithms of their probabilities."""
        if self.candidate_weights == "popularity":
            # An item of a random interaction: as often as it is popular.
            item_N = self.known.at(jax.random.randint(key, (self.candidates,), 0, self.known.total))
            return item_N, -self.log_weight_I[item_N] - math.log(self.known.total)
        draw = uniform if self.candidate_weights == "uniform" else self.candidate_weights
        return draw(key, self.candidates, jnp.exp(-self.log_weight_I))

    def log_weights(self, user: jax.Array, item_N: jax.Array, log_q_N: jax.Array) -> jax.Array:
        """Log weights (N,) of candidates that may be any items; -inf for items of the user."""
        has_N = jax.vmap(lambda item: self.known.find(user, item)[1])(item_N)
        return jnp.where(has_N, -jnp.inf, self._corrected(log_q_N))

    def _corrected(self, log_q_N: jax.Array) -> jax.Array:
        """Log weights of candidates that were drawn with some probabilities.

        With the logQ correction they are -log(N q), so that the weighted sum of the candidates
        estimates that of the catalogue; without, 0.
        """
        return -math.log(self.candidates) - log_q_N if self.correction else jnp.zeros_like(log_q_N)

    def preferences(
        self, key: jax.Array, user: jax.Array, left_out: jax.Array, is_left_out: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """At most S of a user's items, without replacement.

        Args:
          key: of this draw.
          user: whose items.
          left_out: the place among them of an item that must not be drawn,
          is_left_out: if there is one.

        Returns:
          (items (S,), mask (S,)); what the mask excludes is some item of no meaning.
        """
        if self.max_prefs == 0:
            return jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
        n = self.known.count(user) - is_left_out
        if self.weights == "uniform":
            place_S, mask_S = uniform_subset(key, n, self.max_prefs)
        else:
            place_S, mask_S = self._weighted_subset(key, user, left_out, is_left_out)
        place_S = place_S + (is_left_out & (place_S >= left_out))
        return self.known.item_E[self.known.start(user) + place_S], mask_S

    def example(
        self,
        key: jax.Array,
        user: jax.Array,
        item: jax.Array,
        shared: tuple[jax.Array, jax.Array] | None = None,
    ) -> Batch:
        """One example, without a leading axis: an item of a user, with what is drawn for it.

        Its weight is 0 for a user who has all items, because there is no negative.
        """
        negative_key, preference_key = jax.random.split(key)
        if shared is None:
            negative_N, log_weight_N = self.negatives(negative_key, user)
        else:
            negative_N, log_weight_N = shared[0], self.log_weights(user, *shared)
        prefs_S, mask_S = self.preferences(preference_key, user, *self.known.find(user, item))
        weight = (self.known.count(user) < self.known.n_items).astype(jnp.float32)
        return Batch(user, item, negative_N, log_weight_N, prefs_S, mask_S, weight)

    def _weighted_subset(self, key, user, left_out, is_left_out):
        """Successive sampling by weight: the largest of log weight + Gumbel noise."""
        place_L = jnp.arange(self.known.longest)
        n = self.known.count(user) - is_left_out
        shifted_L = place_L + (is_left_out & (place_L >= left_out))
        item_L = self.known.item_E[self.known.start(user) + shifted_L]
        noisy_L = self.log_weight_I[item_L] + jax.random.gumbel(key, place_L.shape)
        size = min(self.max_prefs, self.known.longest)
        noisy_S, place_S = jax.lax.top_k(jnp.where(place_L < n, noisy_L, -jnp.inf), size)
        pad = (0, self.max_prefs - size)
        return jnp.pad(place_S, pad), jnp.pad(noisy_S > -jnp.inf, pad)


def uniform_subset(key: jax.Array, n: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """A uniform subset of min(n, size) of the numbers below n, (size,) and its mask.

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
    order_E: jax.Array,
    place_B: jax.Array,
    step: jax.Array | int = 0,
) -> Batch:
    """The examples at some places of an epoch.

    Divided interactions give their examples to all devices, which must ask for the same places.

    Args:
      sampler: what to draw, and from what.
      positives: the pairs.
      epoch_key: of this epoch.
      order_E: the order of the pairs in this epoch.
      place_B: places in the epoch; those past its end give examples of weight 0.
      step: number of the batch in the epoch, for candidates that its examples share.
    """
    n = order_E.shape[0]
    # Keys of steps follow those of places.
    step_key = jax.random.fold_in(epoch_key, n + step)
    shared = sampler.any_items(step_key) if sampler.shared else None

    def draw(place):
        pair = order_E[jnp.minimum(place, n - 1)]
        user, item, is_here = positives.at(pair)
        batch = sampler.example(jax.random.fold_in(epoch_key, place), user, item, shared)
        batch = batch.replace(weight_B=batch.weight_B * (place < n))
        if not sampler.known.divided:
            return batch
        batch = jax.tree.map(lambda x: jnp.where(is_here, x, jnp.zeros_like(x)), batch)
        return devices.psum(batch.replace(mask_BxS=batch.mask_BxS.astype(jnp.int32)))

    batch = jax.vmap(draw)(place_B)
    batch = batch.replace(mask_BxS=batch.mask_BxS.astype(bool))
    if shared is None:
        return batch
    return batch.replace(negative_BxN=shared[0][None], shared=True)


def rarity(known: Known | scipy.sparse.csr_array) -> np.ndarray:
    """Log weights of items of which one is drawn the rarer the more users have it, (I,)."""
    return -np.log(np.maximum(count_items(known), 1)).astype(np.float32)


def evaluation_preferences(
    sampler: Sampler, key: jax.Array, user_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Preferences (B, S) and mask (B, S), drawn for each user from the seed alone.

    Args:
      sampler: knows the items of just these users, in this order.
      key: of all draws.
      user_B: user numbers.
    """

    def draw(row, user):
        nothing = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return sampler.preferences(jax.random.fold_in(key, user), row, *nothing)

    return jax.vmap(draw)(jnp.arange(len(user_B)), user_B)
