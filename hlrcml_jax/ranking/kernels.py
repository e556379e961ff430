"""The computation of ranking on one device: block by block of targets, for a chunk of users.

`scorer.py` prepares the inputs and calls these functions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax import devices
from hlrcml_jax.models.base import Model, Related
from hlrcml_jax.models.past import TablePast

LONG = 4  # lists longer than I / LONG are sorted once, at the end
BITS = 8  # per byte: histories are sent to the device as bits
FEW_SLOTS = 16  # of past items, which are not worth a program for fewer
WIDE = 8192  # most targets of a block where pairs of user and target have no relation
PIECE = 256  # past items related to a block of targets at a time, so that they stay in cache

ChunkState = dict[str, Any]  # of the users of a chunk, see `Steps.prepare`


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block sizes that keep scoring within a memory budget.

    Attributes:
      users: users in a chunk, per device and worker; a multiple of `group`.
      group: users whose relations with a block of targets are computed together, over as many
        slots as the longest of them needs.
      rows: users of a group scored at a time; divides `group`.
      targets: items in a block, a multiple of 8.
    """

    users: int
    group: int
    rows: int
    targets: int


def plan_blocks(
    memory_mb: int, n_users: int, n_own: int, user_bytes: int, target_bytes: int, relates: bool
) -> Blocks:
    """Block sizes for a budget of working memory.

    Args:
      memory_mb: budget per device, in MiB.
      n_users: users to score, per device and worker.
      n_own: items of a device.
      user_bytes: bytes per user of a chunk, without targets.
      target_bytes: bytes per target, for all users together.
      relates: whether pairs of user and target have relations; else a block is a matrix product.
    """
    budget = memory_mb * 2**20
    group, rows, most_targets = devices.ranking_block()
    most_targets = most_targets if relates else _clamp(8 * math.ceil(n_own / 8), 8, WIDE)
    # Of a group at a time there are the scores of a block, and the buffers to sort them.
    pair_bytes = 4 * 4 * min(group, n_users) * devices.workers()
    fitting = min(budget // 2 // target_bytes, budget // 8 // pair_bytes)
    targets = _clamp(fitting, 8, most_targets) // 8 * 8
    most = max((budget // 2 - pair_bytes * targets) // user_bytes, 1)
    # Equal chunks, in whole groups.
    users = math.ceil(n_users / math.ceil(n_users / most))
    group = min(users, group)
    users = math.ceil(users / group) * group
    return Blocks(users, group, min(rows, group) if relates else group, targets)


def is_long(k: int, n_items: int) -> bool:
    return k >= n_items // LONG


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def best_items(
    best: tuple[jax.Array, jax.Array], score_CxT: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges the top k so far with a block of further items: (items, scores), each (C, k).

    Ties are broken by item index. Unfilled ranks have item -1 and score -inf.

    Args:
      best: top k of the items before the block.
      score_CxT: scores of the block's items, -inf for excluded ones.
      first: index of the block's first item.
    """
    item_Cxk, score_Cxk = best
    k = item_Cxk.shape[1]
    item_CxT = jnp.broadcast_to(first + jnp.arange(score_CxT.shape[1]), score_CxT.shape)
    score_CxN = jnp.concatenate([score_Cxk, score_CxT], axis=1)
    item_CxN = jnp.concatenate([item_Cxk, item_CxT], axis=1)
    score_Cxk, column_Cxk = jax.lax.top_k(score_CxN, k)
    item_Cxk = jnp.take_along_axis(item_CxN, column_Cxk, axis=1)
    return jnp.where(score_Cxk > -jnp.inf, item_Cxk, -1), score_Cxk


@dataclasses.dataclass(frozen=True)
class Steps:
    """The stages of `Scorer.rank`, for one device.

    Attributes:
      n_items: I, over all devices.
      placement: of the tables.
    """

    model: Model
    blocks: Blocks
    k: int
    n_items: int
    placement: devices.Placement

    @property
    def item_parts(self) -> int:
        """Number of shards of the items."""
        return self.placement.parts[0] if self.placement.parts else 1

    def context(self, params: dict[str, Any], item_X: jax.Array) -> jax.Array:
        """The past items (X, D) of a chunk of users."""
        return self._bind(params).embed(self.placement.gather(params["items"], item_X))

    def prepare(
        self,
        params: dict[str, Any],
        context_XxD: jax.Array,
        user_C: jax.Array,
        prefs_CxS: jax.Array,
        mask_CxS: jax.Array,
        hidden_CxW: jax.Array,
        known_CxW: jax.Array,
    ) -> ChunkState:
        """The arrays of a chunk of users for all blocks, with an empty `best`."""
        bound = self._bind(params)
        n = len(user_C)
        from_histories = self.model.spec.rows_are_histories
        has_rows = "users" in params and not from_histories
        user_CxD = self.placement.gather(params["users"], user_C) if has_rows else jnp.zeros((n, 0))

        def prepare_group(group):
            user_GxD, prefs_GxS, mask_GxS, known_GxW = group
            past_GxSxD = jnp.where(mask_GxS[:, :, None], context_XxD[prefs_GxS], 0.0)
            if from_histories:
                user_GxD = _from_bits(known_GxW)[:, : self.n_items].astype(float)
            elif not has_rows:
                user_GxD = bound.represent(None, past_GxSxD, mask_GxS)
            return bound.users(user_GxD, past_GxSxD, mask_GxS)

        groups = self._groups((user_CxD, prefs_CxS, mask_CxS, known_CxW))
        users = jax.lax.map(prepare_group, groups)
        return {
            "users": jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), users),
            "prefs_CxS": prefs_CxS,
            "mask_CxS": mask_CxS,
            "hidden_CxW": hidden_CxW,
            "best": self._empty(n, BITS * hidden_CxW.shape[1]),
        }

    def _empty(self, n, width):
        """Initial `best`: for long lists a buffer of all scores, else lists without items."""
        if not self._merges:
            return jnp.full((n, width), -jnp.inf)
        return jnp.full((n, self.k), -1), jnp.full((n, self.k), -jnp.inf)

    def relate(
        self, params: dict[str, Any], context_XxD: jax.Array, first: jax.Array, out: Related
    ) -> tuple[Related, jax.Array]:
        """(`Related` of the context and a block's targets, written over `out`; `first`).

        The context is processed in pieces that stay in cache. The buffer is reused, since
        allocating pages for arrays of this size takes longer than the arithmetic.
        """
        bound, target_TxD = self._bind(params), self._targets(params, first)
        n_rows = len(context_XxD)
        rows = PIECE if n_rows % PIECE == 0 else n_rows

        def write(piece, out):
            start = piece * rows
            past_PxD = jax.lax.dynamic_slice_in_dim(context_XxD, start, rows)
            related = bound.relate(past_PxD, target_TxD)

            def put(x, out):
                return jax.lax.dynamic_update_slice_in_dim(out, x.astype(out.dtype), start, axis=0)

            return jax.tree.map(put, related, out)

        # With several processes, jax rejects mapped functions without a result.
        return jax.lax.fori_loop(0, n_rows // rows, write, out), first

    def rank(
        self, users: ChunkState, block: tuple[dict[str, Any], jax.Array, Related, jax.Array]
    ) -> ChunkState:
        """The users with `best` updated by a block."""
        params, context_XxD, related, first = block
        bound = self._bind(params)
        target_1xTxD = self._targets(params, first)[None]

        def score_rows(example):
            users, met, prefs_RxS, mask_RxS = example
            past = TablePast(related, mask_RxS, context_XxD, prefs_RxS)
            return bound.scores(users, met, target_1xTxD, past)

        def score_slots(n_slots, group):
            met = bound.meet(group["users"], target_1xTxD)
            prefs_GxS, mask_GxS = (group[name][:, :n_slots] for name in ("prefs_CxS", "mask_CxS"))
            examples = (group["users"], met, prefs_GxS, mask_GxS)
            if self.blocks.rows == self.blocks.group:
                return score_rows(examples)
            return jax.lax.map(score_rows, _parts(examples, self.blocks.rows))

        own_T = first + jnp.arange(self.blocks.targets)
        past_T = (own_T >= self._n_own) | (self._item(own_T) >= self.n_items)

        def rank_group(group):
            """The scores of a group, or its lists with the block, while these are in cache."""
            sizes = self._slot_counts(group["mask_CxS"].shape[1])
            longest = jnp.max(jnp.sum(group["mask_CxS"], axis=1))
            branches = [functools.partial(score_slots, size) for size in sizes]
            score = jax.lax.switch(jnp.sum(longest > np.array(sizes)), branches, group)
            hidden_GxT = _from_bits(group["hidden_CxW"]) | past_T[None]
            score_GxT = jnp.where(hidden_GxT, -jnp.inf, score.reshape(hidden_GxT.shape))
            if "best" not in group:
                return score_GxT
            return best_items(group["best"], score_GxT, self._item(first))

        names = ("users", "prefs_CxS", "mask_CxS", *(["best"] if self._merges else []))
        hidden_CxW = jax.lax.dynamic_slice_in_dim(
            users["hidden_CxW"], first // BITS, self.blocks.targets // BITS, axis=1
        )
        groups = self._groups({name: users[name] for name in names} | {"hidden_CxW": hidden_CxW})
        n = len(users["prefs_CxS"])
        ranked = jax.lax.map(rank_group, groups)
        best = jax.tree.map(lambda x: x.reshape(n, -1), ranked)
        if not self._merges:
            best = jax.lax.dynamic_update_slice_in_dim(users["best"], best, first, axis=1)
        return users | {"best": best}

    def finish(self, users: ChunkState) -> tuple[jax.Array, jax.Array]:
        """The ranked lists: (items, scores), each (C, k)."""
        if isinstance(users["best"], tuple):
            item_CxK, score_CxK = users["best"]
        else:
            score_CxK, own_CxK = jax.lax.top_k(users["best"], min(self.k, self._n_own))
            item_CxK = self._item(own_CxK)
        if self.item_parts > 1:
            # Shards are in item order, so ties are still broken by item index.
            item_CxN, score_CxN = (
                jnp.moveaxis(devices.all_gather(x), 0, 1).reshape(len(x), -1)
                for x in (item_CxK, score_CxK)
            )
            score_CxK, column_CxK = jax.lax.top_k(score_CxN, self.k)
            item_CxK = jnp.take_along_axis(item_CxN, column_CxK, axis=1)
        return jnp.where(score_CxK > -jnp.inf, item_CxK, -1), score_CxK

    @property
    def _merges(self) -> bool:
        """Whether lists are merged block by block, instead of sorted at the end."""
        return not is_long(self.k, self.n_items)

    def _slot_counts(self, n_slots: int) -> list[int]:
        """Slots for which scores are compiled, so that groups of short histories skip the rest."""
        sizes = [n_slots]
        while self.model.spec.attends and sizes[0] > FEW_SLOTS:
            sizes.insert(0, math.ceil(sizes[0] / 2))
        return sizes

    def _groups(self, tree):
        return _parts(tree, self.blocks.group)

    @property
    def _n_own(self):
        return math.ceil(self.n_items / self.item_parts)

    def _item(self, own):
        """Item indices in the catalogue, from indices in this device's shard."""
        return own + devices.index() * self._n_own if self.item_parts > 1 else own

    def _bind(self, params):
        return self.model.bind({"params": params["model"]})

    def _targets(self, params, first):
        items_IxD = params["items"]
        row_T = jnp.minimum(first + jnp.arange(self.blocks.targets), len(items_IxD) - 1)
        return self._bind(params).embed(items_IxD[row_T])


def _parts(tree, size):
    """Arrays (C, ...) as (parts, size, ...)."""
    return jax.tree.map(lambda x: x.reshape(len(x) // size, size, *x.shape[1:]), tree)


def _from_bits(bits_CxW: jax.Array) -> jax.Array:
    """Booleans (C, 8 W) from bytes (C, W)."""
    bit_8 = jnp.arange(BITS, dtype=jnp.uint8)[None, None]
    return ((bits_CxW[:, :, None] >> bit_8) & 1).reshape(len(bits_CxW), -1) != 0


class MappedSteps(NamedTuple):
    """`Steps`, mapped over all devices."""

    context: Callable[..., jax.Array]
    prepare: Callable[..., ChunkState]
    relate: Callable[..., tuple[Related, jax.Array]]
    rank: Callable[..., ChunkState]
    finish: Callable[..., tuple[jax.Array, jax.Array]]


@functools.lru_cache(maxsize=16)
def compiled(
    model: Model, blocks: Blocks, k: int, n_items: int, placement: devices.Placement
) -> MappedSteps:
    steps = Steps(model, blocks, k, n_items, placement)
    return MappedSteps(
        context=devices.pmap(steps.context),
        prepare=devices.pmap(steps.prepare),
        relate=devices.pmap(steps.relate, donate=(3,)),
        rank=_waiting(devices.pmap(steps.rank, donate=(0,))),
        finish=_waiting(devices.pmap(steps.finish)),
    )


def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes calls block until the result is ready, so that each thread keeps one core busy."""
    return lambda *args: jax.block_until_ready(function(*args))
