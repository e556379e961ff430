"""Exact scores of the full catalogue, and the best items of each user.

The work is blocked over targets. What depends on items alone is computed once per block for all
users of a chunk, against the items that occur among their preferences (the context): with many
users that is the catalogue, with one user only its own preferences. The lists grow block by block,
and the matrix of all scores never exists.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import parallel
from hlrcml_jax.data.interactions import Known
from hlrcml_jax.models.cml import CML, made_of_items
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.relation import PIECE
from hlrcml_jax.sampling import Sampler, UserItems, evaluation_preferences, rarity

STORAGE = ("float32", "bfloat16", "float16")
LONG = 4  # lists longer than a quarter of the catalogue are sorted once, at the end
BITS = 8  # of a byte: known items travel as bits


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes that keep scoring within a budget.

    Attributes:
      users: users in a chunk, for each device and worker; whole groups.
      group: users whose relations with a block of targets are computed together.
      rows: users of the group whose preferences are mixed at a time.
      targets: items in a block, a multiple of 8.
    """

    users: int
    group: int
    rows: int
    targets: int


def plan_blocks(memory_mb: int, n_users: int, user_bytes: int, target_bytes: int) -> Blocks:
    """Divides a budget of working memory.

    Args:
      memory_mb: the budget, MiB on each device.
      n_users: users to score, on each device and worker.
      user_bytes: what a user of a chunk needs without any target.
      target_bytes: what a target needs for all users together.
    """
    budget = memory_mb * 2**20
    # A CPU keeps one user's part of a block in its cache; other devices want much at a time.
    group, most_targets = (64, 64) if parallel.on_cpu() else (2048, 128)
    targets = _clamp(budget // 2 // target_bytes, 8, most_targets) // 8 * 8
    most = max(budget // 2 // user_bytes, 1)
    # Chunks of one size, in whole groups.
    users = math.ceil(n_users / math.ceil(n_users / most))
    group = min(users, group)
    users = math.ceil(users / group) * group
    return Blocks(users, group, 1 if parallel.on_cpu() else group, targets)


def _is_long(k: int, n_items: int) -> bool:
    return k >= n_items // LONG


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def best_items(
    best: tuple[jax.Array, jax.Array], score_CxT: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best of what was best and of a block of further items, (items, scores), each (C, k).

    Equal scores go by item number. Places that cannot be filled hold item -1 and score -inf.

    Args:
      best: of the items before the block.
      score_CxT: scores of the block's items, -inf for those that must not be ranked.
      first: number of the block's first item.
    """
    item_Cxk, score_Cxk = best
    k = item_Cxk.shape[1]
    number_CxT = jnp.broadcast_to(first + jnp.arange(score_CxT.shape[1]), score_CxT.shape)
    score_CxN = jnp.concatenate([score_Cxk, score_CxT], axis=1)
    item_CxN = jnp.concatenate([item_Cxk, number_CxT], axis=1)
    score_Cxk, place_Cxk = jax.lax.top_k(score_CxN, k)
    item_Cxk = jnp.take_along_axis(item_CxN, place_Cxk, axis=1)
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

    @classmethod
    def empty(cls, k: int) -> "Ranking":
        """Of no users."""
        none = np.empty((0, k), np.int32)
        return cls(none[:, 0], none, none.astype(np.float32), none, none.astype(bool))


class Scorer:
    """Ranks the catalogue for users, in chunks over all devices.

    Args:
      model: the model.
      known: what may be known, (U, I), asked for some users at a time: the source of preferences,
        and never recommended.
      max_prefs: S; 0 for a model that uses none.
      weights: how preferences are drawn ("uniform" or "unpop").
      memory_mb: working memory on each device, MiB.
      seed: of the draw of preferences.
      max_users: most users in a chunk, for each device; 0 leaves it to the memory.
      storage: type in which relations of item pairs wait to be mixed.
      sharded: whether tables are divided by rows, and each device ranks its own items for all
        users; else users are divided between the devices.
      rarity_I: see `sampling.rarity`; of what is known, if it is not given.
    """

    def __init__(
        self,
        model: CML,
        known: Known | scipy.sparse.csr_array,
        max_prefs: int,
        weights: str,
        memory_mb: int,
        seed: int,
        max_users: int = 0,
        storage: str = "float32",
        sharded: bool = False,
        rarity_I: np.ndarray | None = None,
    ):
        self.known = known
        self.max_prefs = max_prefs
        self._model = model
        self._memory_mb = memory_mb
        self._max_users = max_users
        self._storage = storage
        n = parallel.device_count()
        self._user_parts, self._item_parts = (1, n) if sharded else (n, 1)
        self._key = jax.random.key(seed)
        self._weights = weights
        self.rarity_I = rarity_I
        if rarity_I is None:
            self.rarity_I = rarity(known) if weights == "unpop" else np.zeros(0, np.float32)
        self._longest = int(np.diff(known.indptr).max(initial=1))
        self._draw = jax.jit(evaluation_preferences)

    def rank(
        self,
        params: dict[str, Any],
        user_C: np.ndarray,
        k: int,
        hide_known: bool = True,
        only_I: np.ndarray | None = None,
    ) -> Iterator[Ranking]:
        """The k best items of each user, a chunk of users at a time.

        Args:
          params: on the devices, the tables as the scorer has them.
          user_C: user numbers, in any order.
          k: length of the lists; at most I places are filled.
          hide_known: leave out what each user knows.
          only_I: True for the items to rank; all, if it is not given.
        """
        k = min(k, self.known.shape[1])
        if len(user_C) == 0:
            return
        parts = self._user_parts * parallel.workers()
        share = math.ceil(len(user_C) / parts)
        if self._max_users:
            share = min(share, math.ceil(self._max_users / parallel.workers()))
        blocks = self._plan(params, share, k)
        for start in range(0, len(user_C), blocks.users * parts):
            part_C = user_C[start : start + blocks.users * parts]
            yield self._rank_chunk(params, part_C, k, blocks, hide_known, only_I)

    def _plan(self, params, n_users: int, k: int) -> Blocks:
        n_items = self.known.shape[1]
        _, n_own, dim = params["items"].shape
        slots = self._model.memory_slots if isinstance(self._model, LRML) else 1
        width = n_items if self._model.user_is_history else dim
        target_bytes = jnp.dtype(self._storage).itemsize * n_items * slots
        # Row, preferences and their relations, known items as bits, list and a block's scores.
        lists = 4 * (n_own if _is_long(k, n_items) else k)
        floats = width + (2 + slots) * self.max_prefs + n_own // 32 + lists + 4 * 64
        user_bytes = 4 * floats * parallel.workers()
        return plan_blocks(self._memory_mb, n_users, user_bytes, target_bytes)

    def _rank_chunk(self, params, user_C, k, blocks, hide_known, only_I) -> Ranking:
        n_items, n_own = self.known.shape[1], params["items"].shape[1]
        # The last chunk is filled up with its first user, so that every chunk has one shape.
        chunk = blocks.users * self._user_parts * parallel.workers()
        padded_C = np.concatenate([user_C, np.full(chunk - len(user_C), user_C[0])])
        prefs_CxS, mask_CxS = self.preferences(padded_C)
        context_X, place_CxS = _context(prefs_CxS, mask_CxS, n_items)
        steps = _compiled(self._model, blocks, k, n_items, self._item_parts)
        context = steps.rows(params["items"], parallel.replicate(context_X))

        of_history = self._model.user_is_history

        def begin(part):
            """What a worker's users need for all blocks, and their empty lists."""
            of_users = [x[part] for x in (padded_C.astype(np.int32), place_CxS, mask_CxS)]
            by_device = [self._divide(x, blocks) for x in of_users]
            known_PxCxW = self._bits(self.known[padded_C[part]], n_own, blocks)
            hidden_PxCxW = known_PxCxW * np.uint8(hide_known)
            if only_I is not None:
                others = scipy.sparse.csr_array(~only_I[None])
                hidden_PxCxW |= self._bits(others, n_own, blocks)
            history_PxCxW = known_PxCxW[..., : None if of_history else 0]
            by_device += [_by_users(bits, blocks) for bits in (hidden_PxCxW, history_PxCxW)]
            return steps.begin(params, context, *parallel.shard(by_device))

        parts = np.split(np.arange(chunk), parallel.workers())
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            users = list(pool.map(begin, parts))
            pairs = self._room_for_pairs(len(context_X), blocks.targets)
            for first in range(0, n_own, blocks.targets):
                place = parallel.replicate(np.int32(first))
                items, place = steps.items(params, context, place, pairs)
                pairs = items["pairs_XxMxT"] if self._model.relates_items else None
                block = itertools.repeat((params, items, place))
                users = list(pool.map(steps.rank, users, block))
            lists = parallel.all_parts(list(pool.map(steps.finish, users)))
        item_CxK, score_CxK = (
            # When users are not divided, all devices have the same lists.
            np.concatenate([x[: self._user_parts].reshape(-1, k) for x in xs])[: len(user_C)]
            for xs in zip(*lists, strict=True)
        )
        n = len(user_C)
        return Ranking(user_C, item_CxK, score_CxK, prefs_CxS[:n], mask_CxS[:n])

    def _room_for_pairs(self, n_context: int, targets: int) -> jax.Array | None:
        if not self._model.relates_items:
            return None
        shape = (n_context, self._model.memory_slots, targets)
        return parallel.replicate(np.zeros(shape, jnp.dtype(self._storage)))

    def _divide(self, of_users: np.ndarray, blocks: Blocks) -> np.ndarray:
        """The users of each device, (devices, users, ...)."""
        shape = (blocks.users, *of_users.shape[1:])
        by_part = of_users.reshape(self._user_parts, *shape)
        return np.broadcast_to(by_part, (parallel.device_count(), *shape))

    def _bits(self, items, n_own: int, blocks: Blocks) -> np.ndarray:
        """CSR (C, I) as bits of each part of the items, for a whole number of blocks, (P, C, W)."""
        n_bytes = math.ceil(n_own / blocks.targets) * blocks.targets // BITS
        bits_PxCxW = np.zeros((self._item_parts, items.shape[0], n_bytes), np.uint8)
        cells = items.tocoo()
        part, own = np.divmod(cells.col, n_own)
        bit = np.left_shift(1, own % BITS).astype(np.uint8)
        np.bitwise_or.at(bits_PxCxW, (part, cells.row, own // BITS), bit)
        return bits_PxCxW

    def preferences(self, user_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Preferences as item numbers, (C, S), and their mask; a user's are always the same."""
        rows = UserItems.rows(self.known[user_C], self._longest)
        sampler = Sampler(rows, self.rarity_I, self.max_prefs, weights=self._weights)
        sampler, users = jax.device_put((sampler, user_C.astype(np.int32)))
        return jax.device_get(self._draw(sampler, self._key, users))


def _by_users(bits_PxCxW: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Bits of one part and all devices' users, or of all parts and one device's, by devices."""
    return bits_PxCxW.reshape(parallel.device_count(), blocks.users, bits_PxCxW.shape[2])


def _context(prefs_CxS, mask_CxS, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(items that occur among the preferences, preferences as places among them).

    The number of items is padded to a power of two, or is the whole catalogue in whole pieces
    (see `RelationMemory.write_block_weights`), so that few different shapes are compiled.
    """
    distinct = np.unique(prefs_CxS[mask_CxS])
    size = 1 << max(len(distinct) - 1, 0).bit_length()
    if size > n_items // 2:
        size = math.ceil(n_items / PIECE) * PIECE if n_items > PIECE else n_items
        distinct = np.arange(n_items)
    context_X = np.zeros(size, np.int32)
    context_X[: len(distinct)] = distinct
    places = np.searchsorted(distinct, np.where(mask_CxS, prefs_CxS, context_X[0]))
    return context_X, places.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The functions behind `Scorer.rank`, for one device.

    Attributes:
      n_items: I, of all devices together.
      item_parts: into how many parts the tables are divided.
    """

    model: CML
    blocks: Blocks
    k: int
    n_items: int
    item_parts: int

    def rows(self, table_RxD, row_N):
        """Some rows of a table, (N, D)."""
        return table_RxD[row_N] if self.item_parts == 1 else parallel.gather_rows(table_RxD, row_N)

    def begin(self, params, context_XxD, user_C, prefs_CxS, mask_CxS, hidden_CxW, known_CxW):
        """What a chunk of users needs for all blocks; `best` is what it has so far."""
        bound = self._bind(params)
        n = len(user_C)
        has_rows = "users" in params and not self.model.user_is_history
        user_CxD = self.rows(params["users"], user_C) if has_rows else jnp.zeros((n, 0))

        def begin(group):
            user_GxD, prefs_GxS, mask_GxS, known_GxW = group
            prefs_GxSxD = context_XxD[prefs_GxS]
            if self.model.user_is_history:
                user_GxD = _from_bits(known_GxW)[:, : self.n_items].astype(float)
            elif not has_rows:
                user_GxD = made_of_items(prefs_GxSxD, mask_GxS)
            return user_GxD, jax.vmap(bound.block_history)(user_GxD, prefs_GxSxD, mask_GxS)

        begun_KxG = jax.lax.map(begin, self._groups((user_CxD, prefs_CxS, mask_CxS, known_CxW)))
        user_CxD, history = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), begun_KxG)
        return {
            "user_CxD": user_CxD,
            "history": history,
            "prefs_CxS": prefs_CxS,
            "mask_CxS": mask_CxS,
            "hidden_CxW": hidden_CxW,
            "best": self._empty(n, BITS * hidden_CxW.shape[1]),
        }

    def _empty(self, n, width):
        """All scores to be, of long lists; else lists without an item."""
        if _is_long(self.k, self.n_items):
            return jnp.full((n, width), -jnp.inf)
        return jnp.full((n, self.k), -1), jnp.full((n, self.k), -jnp.inf)

    def items(self, params, context_XxD, first, out_XxMxT):
        """What a block needs of items alone, and its first one."""
        # Of several processes, jax takes no mapped function without any result.
        target_TxD = self._targets(params, first)
        return self._bind(params).block_items(context_XxD, target_TxD, out_XxMxT), first

    def rank(self, users, block):
        """The users with what is best after a block."""
        params, items, first = block
        bound = self._bind(params)
        target_TxD = self._targets(params, first)

        def score_user(example):
            return -bound.block_distances(items, *example)

        def score_group(group):
            pairs = bound.block_users(group["user_CxD"], target_TxD)
            examples = (pairs, group["history"], group["prefs_CxS"], group["mask_CxS"])
            return jax.lax.map(score_user, examples, batch_size=self.blocks.rows)

        n = len(users["user_CxD"])
        names = ("user_CxD", "history", "prefs_CxS", "mask_CxS")
        groups = self._groups({name: users[name] for name in names})
        score_CxT = jax.lax.map(score_group, groups).reshape(n, -1)
        hidden_CxW = jax.lax.dynamic_slice_in_dim(
            users["hidden_CxW"], first // BITS, self.blocks.targets // BITS, axis=1
        )
        own_T = first + jnp.arange(self.blocks.targets)
        past_T = (own_T >= self._n_own) | (self._number(own_T) >= self.n_items)
        score_CxT = jnp.where(_from_bits(hidden_CxW) | past_T[None], -jnp.inf, score_CxT)
        best = users["best"]
        if isinstance(best, tuple):
            best = best_items(best, score_CxT, self._number(first))
        else:
            best = jax.lax.dynamic_update_slice_in_dim(best, score_CxT, first, axis=1)
        return users | {"best": best}

    def finish(self, users):
        """The lists: items and scores, each (C, k)."""
        if isinstance(users["best"], tuple):
            item_CxK, score_CxK = users["best"]
        else:
            score_CxK, own_CxK = jax.lax.top_k(users["best"], min(self.k, self._n_own))
            item_CxK = self._number(own_CxK)
        if self.item_parts > 1:
            # Parts follow each other, so that of equal scores the first item still comes first.
            item_CxK, score_CxN = (
                jnp.moveaxis(parallel.all_gather(x), 0, 1).reshape(len(x), -1)
                for x in (item_CxK, score_CxK)
            )
            score_CxK, place_CxK = jax.lax.top_k(score_CxN, self.k)
            item_CxK = jnp.take_along_axis(item_CxK, place_CxK, axis=1)
        return jnp.where(score_CxK > -jnp.inf, item_CxK, -1), score_CxK

    def _groups(self, tree):
        """Arrays (C, ...) as (groups, users of a group, ...)."""
        group = self.blocks.group
        return jax.tree.map(lambda x: x.reshape(len(x) // group, group, *x.shape[1:]), tree)

    @property
    def _n_own(self):
        return math.ceil(self.n_items / self.item_parts)

    def _number(self, own):
        """The numbers of this device's items."""
        return own + parallel.index() * self._n_own if self.item_parts > 1 else own

    def _bind(self, params):
        return self.model.bind({"params": params["model"]})

    def _targets(self, params, first):
        items_IxD = params["items"]
        place_T = jnp.minimum(first + jnp.arange(self.blocks.targets), len(items_IxD) - 1)
        return items_IxD[place_T]


def _from_bits(bits_CxW: jax.Array) -> jax.Array:
    """Booleans (C, 8 W) from bytes (C, W)."""
    bit_8 = jnp.arange(BITS, dtype=jnp.uint8)[None, None]
    return ((bits_CxW[:, :, None] >> bit_8) & 1).reshape(len(bits_CxW), -1) != 0


@functools.lru_cache(maxsize=16)
def _compiled(*static) -> SimpleNamespace:
    steps = _Steps(*static)
    return SimpleNamespace(
        rows=parallel.pmap(steps.rows),
        begin=parallel.pmap(steps.begin),
        items=parallel.pmap(steps.items, donate=(3,)),
        rank=_waiting(parallel.pmap(steps.rank, donate=(0,))),
        finish=_waiting(parallel.pmap(steps.finish)),
    )


def _waiting(function):
    """A call that returns when the work is done, so that each thread keeps one core busy."""
    return lambda *args: jax.block_until_ready(function(*args))
