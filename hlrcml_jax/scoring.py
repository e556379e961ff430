"""Exact scores of the full catalogue, and the best items of each user.

The work is blocked over targets. What depends on items alone is computed once per block for all
users of a chunk, against the items that occur among their preferences (the context): with many
users that is the catalogue, with one user only its own preferences.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import parallel
from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.sampling import Sampler, evaluation_preferences

FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes that keep scoring within a budget.

    Attributes:
      users: users in a chunk, for each device.
      rows: users of the chunk whose preferences are mixed at a time.
      targets: items in a block.
    """

    users: int
    rows: int
    targets: int


def plan_blocks(memory_mb: int, n_users: int, n_items: int, slots: int) -> Blocks:
    """Divides a budget of working memory.

    Args:
      memory_mb: the budget, MiB on each device.
      n_users: users to score, on each device.
      n_items: I, also the largest possible context.
      slots: M, 0 for a model without a memory.
    """
    floats = memory_mb * 2**20 // FLOAT_BYTES
    slots = max(slots, 1)
    # A quarter for the relations of the context, and as much for their exponentials.
    targets = _clamp(floats // 4 / (n_items * slots), 8, 64)
    # The rest for the scores with their mask, and the relations of users and targets.
    users = _clamp(floats // 2 / (2.25 * n_items + 2 * slots * targets), 1, max(n_users, 1))
    # A CPU keeps one user's part of a block in its cache; other devices want much at a time.
    rows = 1 if jax.default_backend() == "cpu" else min(users, 64)
    return Blocks(users, rows, min(targets, n_items))


def _clamp(value: float, low: int, high: int) -> int:
    return max(low, min(int(value), high))


def score_chunk(
    model: CML,
    blocks: Blocks,
    params: dict[str, Any],
    user_C: jax.Array,
    context_X: jax.Array,
    prefs_CxS: jax.Array,
    mask_CxS: jax.Array,
    known_CxI: jax.Array,
) -> jax.Array:
    """Scores (C, I), minus the squared distances, of a chunk of users and all items.

    Args:
      model: the model.
      blocks: how the work is cut.
      params: tables and the model's parameters.
      user_C: user numbers.
      context_X: the item numbers that occur among the preferences.
      prefs_CxS: preferences, as places in the context.
      mask_CxS: True where a preference is real.
      known_CxI: True where the user has the item.
    """
    bound = model.bind({"params": params["model"]})
    context_XxD = params["items"][context_X]
    user_CxD = known_CxI.astype(float) if model.user_is_history else params["users"][user_C]
    n_items = params["items"].shape[0]
    n_blocks = math.ceil(n_items / blocks.targets)

    def score_block(block):
        place_T = jnp.minimum(block * blocks.targets + jnp.arange(blocks.targets), n_items - 1)
        target_TxD = params["items"][place_T]
        items = bound.block_items(context_XxD, target_TxD)
        users = bound.block_users(user_CxD, target_TxD)

        def score_user(example):
            return -bound.block_distances(items, *example)

        return jax.lax.map(score_user, (users, prefs_CxS, mask_CxS), batch_size=blocks.rows)

    score_KxCxT = jax.lax.map(score_block, jnp.arange(n_blocks))
    score_CxKT = jnp.swapaxes(score_KxCxT, 0, 1).reshape(user_C.shape[0], -1)
    return score_CxKT[:, :n_items]


def best_items(score_CxI: jax.Array, known_CxI: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best items that a user does not know, (items, scores), each (C, k).

    Equal scores go by item number. Places that cannot be filled hold item -1 and score -inf.
    """
    score_CxI = jnp.where(known_CxI, -jnp.inf, score_CxI)
    score_Cxk, item_Cxk = jax.lax.top_k(score_CxI, k)
    return jnp.where(score_Cxk > -jnp.inf, item_Cxk, -1), score_Cxk


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best items of some users.

    Attributes:
      user_C: user numbers.
      item_CxK: item numbers in descending order of score, -1 where none is left.
      score_CxK: their scores.
      prefs_CxS: the preferences that were used, item numbers.
      mask_CxS: True where a preference is real.
    """

    user_C: np.ndarray
    item_CxK: np.ndarray
    score_CxK: np.ndarray
    prefs_CxS: np.ndarray
    mask_CxS: np.ndarray


class Scorer:
    """Ranks the catalogue for users, in chunks over all devices.

    Args:
      model: the model.
      known: CSR (U, I) of what may be known: source of preferences, and never recommended.
      max_prefs: S; 0 for a model that uses none.
      weights: how preferences are drawn ("uniform" or "unpop").
      memory_mb: working memory on each device, MiB.
      seed: of the draw of preferences.
      max_users: most users in a chunk, for each device; 0 leaves it to the memory.
    """

    def __init__(
        self,
        model: CML,
        known: scipy.sparse.csr_array,
        max_prefs: int,
        weights: str,
        memory_mb: int,
        seed: int,
        max_users: int = 0,
    ):
        self.known = known
        self.max_prefs = max_prefs
        self._slots = model.memory_slots if isinstance(model, LRML) else 0
        self._model = model
        self._memory_mb = memory_mb
        self._max_users = max_users
        self._key = jax.random.key(seed)
        sampler = Sampler.of(known, self.max_prefs, weights=weights)
        self._sampler = jax.device_put(sampler)
        self._draw = jax.jit(evaluation_preferences)

    def rank(self, params: dict[str, Any], user_C: np.ndarray, k: int) -> Iterator[Ranking]:
        """The k best unknown items of each user, a chunk of users at a time.

        Args:
          params: replicated over the devices (`parallel.replicate`).
          user_C: user numbers, in any order.
          k: length of the lists; at most I places are filled.
        """
        n_devices, n_items = parallel.device_count(), self.known.shape[1]
        share = math.ceil(len(user_C) / n_devices)
        if self._max_users:
            share = min(share, self._max_users)
        blocks = plan_blocks(self._memory_mb, share, n_items, self._slots)
        chunk = blocks.users * n_devices
        for start in range(0, len(user_C), chunk):
            part_C = user_C[start : start + chunk]
            yield self._rank_chunk(params, part_C, min(k, n_items), blocks, chunk)

    def _rank_chunk(self, params, user_C, k, blocks, chunk) -> Ranking:
        # The last chunk is filled up with its first user, so that every chunk has one shape.
        padded_C = np.concatenate([user_C, np.full(chunk - len(user_C), user_C[0])])
        prefs_CxS, mask_CxS = self.preferences(padded_C)
        context_X, place_CxS = _context(prefs_CxS, mask_CxS, self.known.shape[1])
        known_CxI = self.known[padded_C].toarray()

        def by_device(x):
            return x.reshape(parallel.device_count(), blocks.users, *x.shape[1:])

        arguments = parallel.shard(
            [by_device(x) for x in (padded_C.astype(np.int32), place_CxS, mask_CxS, known_CxI)]
        )
        ranked = _ranker(self._model, blocks, k)(params, parallel.replicate(context_X), *arguments)
        item_CxK, score_CxK = (
            np.asarray(x).reshape(chunk, k)[: len(user_C)] for x in jax.device_get(ranked)
        )
        n = len(user_C)
        return Ranking(user_C, item_CxK, score_CxK, prefs_CxS[:n], mask_CxS[:n])

    def preferences(self, user_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Preferences as item numbers, (C, S), and their mask; a user's are always the same."""
        users = jax.device_put(user_C.astype(np.int32))
        return jax.device_get(self._draw(self._sampler, self._key, users))


def _context(prefs_CxS, mask_CxS, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(items that occur among the preferences, preferences as places among them).

    The number of items is padded to a power of two, or is the whole catalogue, so that few
    different shapes are compiled.
    """
    distinct = np.unique(prefs_CxS[mask_CxS])
    size = 1 << max(len(distinct) - 1, 0).bit_length()
    if size > n_items // 2:
        return np.arange(n_items, dtype=np.int32), np.where(mask_CxS, prefs_CxS, 0)
    context_X = np.zeros(size, np.int32)
    context_X[: len(distinct)] = distinct
    places = np.searchsorted(distinct, np.where(mask_CxS, prefs_CxS, context_X[0]))
    return context_X, places.astype(np.int32)


def place_untrained_users(
    params: dict[str, Any], train: scipy.sparse.csr_array, known: scipy.sparse.csr_array
) -> dict[str, Any]:
    """Host parameters with each user that training never saw at the mean of its known items.

    Without any known item that is the origin. Users with training interactions keep their vector.
    """
    new_N = np.flatnonzero(np.diff(train.indptr) == 0)
    known_NxI = known[new_N].astype(np.float32)
    count_Nx1 = np.maximum(known_NxI.sum(axis=1), 1.0)[:, None]
    users_UxD = np.array(params["users"])
    users_UxD[new_N] = (known_NxI @ np.asarray(params["items"])) / count_Nx1
    return params | {"users": users_UxD}


@functools.lru_cache(maxsize=16)
def _ranker(model: CML, blocks: Blocks, k: int):
    """The compiled function behind `Scorer.rank`."""

    def rank(params, context_X, user_C, prefs_CxS, mask_CxS, known_CxI):
        score_CxI = score_chunk(
            model, blocks, params, user_C, context_X, prefs_CxS, mask_CxS, known_CxI
        )
        return best_items(score_CxI, known_CxI, k)

    return parallel.pmap(rank)
