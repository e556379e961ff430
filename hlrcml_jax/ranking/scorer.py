"""Exact full-catalogue scoring, or that of candidates, and the top items of each user.

Few users are ranked each on its own (`few.py`). For more, targets are processed in blocks.
Item-item relations are computed once per block for all users of a chunk, between the block and the
context: the items among the users' preferences, which are the catalogue where users are many. Lists
are merged block by block; the full score matrix never exists.
"""

import concurrent.futures
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax import devices, settings
from hlrcml_jax.data.dataset import Known
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model, Related
from hlrcml_jax.models.retrieval import ByVectors
from hlrcml_jax.ranking import few
from hlrcml_jax.ranking.kernels import BITS, PIECE, Blocks, compiled, is_long, plan_blocks
from hlrcml_jax.ranking.lists import Ranking
from hlrcml_jax.training.interactions import UserItems, leaf
from hlrcml_jax.training.sampling import Sampler, evaluation_preferences, rarity


class Scorer:
    """Ranks the catalogue for users, in chunks over all devices.

    Args:
      model: the model.
      known: the users' histories, (U, I), sliced by users: the source of preferences, and not
        recommended.
      max_prefs: S; 0 for a model that uses none.
      weights: sampling of preferences ("uniform" or "unpop").
      memory_mb: working memory per device, in MiB.
      key: of the draw of preferences.
      max_users: most users in a chunk, per device; 0: as the memory allows.
      storage: dtype of the cached item-pair relations.
      placement: of the tables. Sharded, each device ranks its own items for all users; else users
        are split over the devices.
      rarity_I: see `sampling.rarity`; by default that of `known`.
      draw_U: number by which each user's preferences are drawn; by default the user's index.
      hidden: what is not recommended either, (U, I); None for nothing.
    """

    def __init__(
        self,
        model: Model,
        known: Known | scipy.sparse.csr_array,
        max_prefs: int,
        weights: str,
        memory_mb: int,
        key: jax.Array,
        max_users: int = 0,
        storage: str = "float32",
        placement: devices.Placement = devices.REPLICATED,
        rarity_I: np.ndarray | None = None,
        draw_U: np.ndarray | None = None,
        hidden: scipy.sparse.csr_array | None = None,
    ):
        self.known = known
        self._hidden = hidden
        self._draw_U = draw_U
        self.max_prefs = max_prefs
        self._model = model
        self._memory_mb = memory_mb
        self._max_users = max_users
        self._storage = storage
        self._shapes_by_width: dict[tuple[int, int], tuple[Related, int]] = {}
        n = devices.device_count()
        self._user_parts, self._item_parts = (1, n) if placement.parts else (n, 1)
        self._placement = placement
        self._key = key
        self._weights = weights
        if rarity_I is None:
            rarity_I = rarity(known) if weights == "unpop" else np.zeros(0, np.float32)
        self.rarity_I = rarity_I
        self._longest = int(np.diff(known.indptr).max(initial=1))

    def rank(
        self,
        params: dict[str, Any],
        user_C: np.ndarray,
        k: int,
        hide_known: bool = True,
        only_I: np.ndarray | None = None,
        candidates: int = 0,
    ) -> Iterator[Ranking]:
        """The top k items of each user, in chunks of users.

        Args:
          params: on the devices, tables in the scorer's placement.
          user_C: user indices, in any order.
          k: length of the lists, at most I.
          hide_known: leave out what each user has.
          only_I: True for the items to rank; None for all.
          candidates: N items that are retrieved for each user by their vectors, and then ranked by
            the whole model, with replicated tables; 0 ranks all items.
        """
        k = min(k, self.known.shape[1])
        if len(user_C) == 0:
            return
        if 0 < candidates < self.known.shape[1] and self._model.spec.attends:
            self._check_retrieval()
            yield from self._rank_candidates(params, user_C, k, hide_known, only_I, candidates)
            return
        few_users = few.ALL_TARGETS * devices.device_count()
        if len(user_C) <= few_users and self._placement.parts is None:
            yield self._rank_few(params, user_C, k, hide_known, only_I)
            return
        parts = self._user_parts * devices.workers()
        share = math.ceil(len(user_C) / parts)
        if self._max_users:
            share = min(share, math.ceil(self._max_users / devices.workers()))
        blocks = self._plan(params, share, k)
        for start in range(0, len(user_C), blocks.users * parts):
            part_C = user_C[start : start + blocks.users * parts]
            yield self._rank_chunk(params, part_C, k, blocks, hide_known, only_I)

    def _check_retrieval(self) -> None:
        """Refuses to retrieve by vectors where the model or the tables do not allow it."""
        if type(self._model).closeness is Model.closeness:
            raise UserError(
                f"{type(self._model).__name__} has no closeness of vectors to choose candidates "
                "by; rank all items, with candidates=0."
            )
        if self._placement.parts is not None:
            raise UserError("candidates need replicated tables; set parallel.tables=replicated.")

    def _rank_few(self, params, user_C, k, hide_known, only_I) -> Ranking:
        """As `_rank_chunk`, in a program that is compiled for no more than a few sizes."""
        wanted_1xN = np.arange(self.known.shape[1])[None]
        if only_I is not None:
            wanted_1xN = np.flatnonzero(only_I)[None]
        rows_CxI = self.known[user_C]
        known_CxI = rows_CxI.toarray().astype(bool)
        seen_CxI = known_CxI
        if self._hidden is not None:
            seen_CxI = known_CxI | self._hidden[user_C].toarray().astype(bool)
        hidden_CxN = seen_CxI[:, wanted_1xN[0]] & hide_known
        history_CxI = known_CxI[:, : None if self._model.spec.rows_are_histories else 0]
        of_users = (user_C, *self._padded_preferences(rows_CxI, user_C), history_CxI)
        return self._rank_targets(params, of_users, wanted_1xN, hidden_CxN, k)

    def _rank_candidates(self, params, user_C, k, hide_known, only_I, n) -> Iterator[Ranking]:
        """The top k of the n items that are closest by their vectors alone."""
        size = few.USERS[-1] * devices.device_count()
        for found in self._retriever.rank(params, user_C, max(n, k), hide_known, only_I):
            no_history_CxI = np.zeros((len(found.user_C), 0), bool)
            of_users = (found.user_C, found.prefs_CxS, found.mask_CxS, no_history_CxI)

            @settings.own_settings()
            def rank(start, found=found, of_users=of_users):
                part = slice(start, start + size)
                item_CxN = found.item_CxK[part]
                of_part = [x[part] for x in of_users]
                return self._rank_targets(params, of_part, item_CxN, item_CxN < 0, k)

            with concurrent.futures.ThreadPoolExecutor(devices.workers()) as pool:
                yield from pool.map(rank, range(0, len(found.user_C), size))

    @functools.cached_property
    def _retriever(self) -> "Scorer":
        return Scorer(
            ByVectors(self._model),
            self.known,
            self.max_prefs,
            self._weights,
            self._memory_mb,
            self._key,
            self._max_users,
            self._storage,
            self._placement,
            self.rarity_I,
            self._draw_U,
            self._hidden,
        )

    def _rank_targets(self, params, of_users, target_CxN, hidden_CxN, k) -> Ranking:
        """The top k of some targets, the user's own or (1, N) for all, for few users.

        `of_users` are their indices, preferences and mask, and histories for a model of rows.
        """
        user_C, prefs_CxS, mask_CxS, _ = of_users
        n_parts, n_wanted = devices.device_count(), target_CxN.shape[1]
        share = next(size for size in few.USERS if size * n_parts >= len(user_C))
        order_C = np.resize(np.arange(len(user_C)), share * n_parts)
        most = math.ceil(self.known.shape[1] / few.TARGETS)
        n_blocks = min(devices.padded_size(math.ceil(max(k, n_wanted) / few.TARGETS)), most)
        missing = (0, 0), (0, n_blocks * few.TARGETS - n_wanted)
        target_CxT = np.pad(np.maximum(target_CxN, 0), missing).astype(np.int32)
        hidden_CxT = np.pad(hidden_CxN, missing, constant_values=True)[order_C]
        targets = target_CxT[order_C if len(target_CxT) > 1 else np.zeros(n_parts, int)]
        arrays = [np.asarray(x)[order_C] for x in of_users] + [targets, hidden_CxT]
        arrays[0] = arrays[0].astype(np.int32)
        own = devices.own_devices()
        of_own = (
            x.reshape(n_parts, len(x) // n_parts, *x.shape[1:])[own.start : own.stop]
            for x in arrays
        )
        longest = min(devices.padded_size(max(k, few.SHORTEST)), target_CxT.shape[1])
        rank = few.compiled(self._model, longest)
        lists = devices.all_parts(rank(params, *of_own))
        place_CxK, score_CxK = (x.reshape(len(order_C), -1)[: len(user_C), :k] for x in lists)
        item_CxK = np.take_along_axis(target_CxT, np.maximum(place_CxK, 0), axis=1)
        item_CxK = np.where(place_CxK < 0, -1, item_CxK)
        return Ranking(user_C, item_CxK, score_CxK, prefs_CxS, mask_CxS)

    def _plan(self, params, n_users: int, k: int) -> Blocks:
        n_items = self.known.shape[1]
        _, n_own, dim = params["items"].shape
        related, of_pair = self._shapes(params)
        slots = max(1, of_pair)
        width = n_items if self._model.spec.rows_are_histories else dim
        of_item = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(related))
        in_chunk = n_users * self._user_parts * devices.workers()
        n_context = min(n_items, devices.padded_size(max(1, in_chunk * self.max_prefs)))
        target_bytes = n_context * max(4, of_item)
        # Row, preferences and their relations, history as bits, and list.
        lists = 4 * (n_own if is_long(k, n_items) else k)
        floats = width + (2 + slots) * self.max_prefs + n_own // 32 + lists
        user_bytes = 4 * floats * devices.workers()
        relates = of_pair > 1 or self._model.spec.attends
        return plan_blocks(self._memory_mb, n_users, n_own, user_bytes, target_bytes, relates)

    def _rank_chunk(self, params, user_C, k, blocks, hide_known, only_I) -> Ranking:
        n_items, n_own = self.known.shape[1], params["items"].shape[1]
        # The last chunk is padded with its first user, so that all chunks have one shape.
        chunk = blocks.users * self._user_parts * devices.workers()
        padded_C = np.concatenate([user_C, np.full(chunk - len(user_C), user_C[0])])
        known_CxI = self.known[padded_C]
        prefs_CxS, mask_CxS = self._preferences(known_CxI, padded_C)
        given: slice | np.ndarray = slice(len(user_C))
        if self._model.spec.attends:
            # Users of similar length side by side, and equally many of each length in every part.
            by_length_C = np.argsort(np.count_nonzero(mask_CxS, axis=1), kind="stable")
            order_C = by_length_C.reshape(blocks.users, -1).T.ravel()
            padded_C, known_CxI = padded_C[order_C], known_CxI[order_C]
            prefs_CxS, mask_CxS = prefs_CxS[order_C], mask_CxS[order_C]
            given = np.argsort(order_C)[given]
        context_X, row_CxS = _context(prefs_CxS, mask_CxS, n_items)
        steps = compiled(self._model, blocks, k, n_items, self._placement)
        context = steps.context(params, devices.replicate(context_X))

        from_history = self._model.spec.rows_are_histories

        @settings.own_settings()
        def prepare(part):
            """The arrays of a worker's users for all blocks."""
            of_users = [x[part] for x in (padded_C.astype(np.int32), row_CxS, mask_CxS)]
            by_device = [self._divide(x, blocks) for x in of_users]
            known_PxCxW = self._bits(known_CxI[part], n_own, blocks)
            hidden_PxCxW = known_PxCxW * np.uint8(hide_known)
            if hide_known and self._hidden is not None:
                hidden_PxCxW |= self._bits(self._hidden[padded_C[part]], n_own, blocks)
            if only_I is not None:
                others = scipy.sparse.csr_array(~only_I[None])
                hidden_PxCxW |= self._bits(others, n_own, blocks)
            history_PxCxW = known_PxCxW[..., : None if from_history else 0]
            by_device += [_by_users(bits, blocks) for bits in (hidden_PxCxW, history_PxCxW)]
            return steps.prepare(params, context, *devices.shard(by_device))

        parts = np.split(np.arange(chunk), devices.workers())
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            users = list(pool.map(prepare, parts))
            rank, finish = (
                settings.own_settings()(steps.rank),
                settings.own_settings()(steps.finish),
            )
            related = self._empty_related(params, len(context_X), blocks.targets)
            for first in range(0, n_own, blocks.targets):
                start = devices.replicate(np.int32(first))
                related, start = steps.relate(params, context, start, related)
                block = itertools.repeat((params, context, related, start))
                users = list(pool.map(rank, users, block))
            lists = devices.all_parts(list(pool.map(finish, users)))
        item_CxK, score_CxK = (
            # With sharded items, all devices have the same lists.
            np.concatenate([x[: self._user_parts].reshape(-1, k) for x in xs])
            for xs in zip(*lists, strict=True)
        )
        of_users = (x[given] for x in (item_CxK, score_CxK, prefs_CxS, mask_CxS))
        return Ranking(user_C, *of_users)

    def _empty_related(self, params, n_context: int, targets: int) -> Related:
        """A zero `Related` of the context and a block of targets, as a buffer."""

        def zeros(x):
            return np.zeros((n_context, *x.shape[1:-1], targets), x.dtype)

        return devices.replicate(jax.tree.map(zeros, self._shapes(params)[0]))

    def _shapes(self, params) -> tuple[Related, int]:
        """(shapes of `Related` for one past item and target, floats of `meet` per pair)."""
        model = self._model
        user_width = params.get("users", params["items"]).shape[2]
        if model.spec.rows_are_histories:
            user_width = params["items"].shape[2]
        widths = user_width, params["items"].shape[2]
        if widths in self._shapes_by_width:
            return self._shapes_by_width[widths]

        def shapes(model_params, user_1xD, item_1xD, mask_1xS):
            bound = model.bind({"params": model_params})
            users = bound.users(user_1xD, item_1xD[None], mask_1xS)
            return bound.relate(item_1xD, item_1xD), bound.meet(users, item_1xD[None])

        def shape(x):
            return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

        model_params = jax.tree.map(shape, params["model"])
        rows = (jnp.zeros((1, width)) for width in widths)
        related, met = jax.eval_shape(shapes, model_params, *rows, jnp.ones((1, 1), bool))
        if related.relation is not None:
            dtype = jnp.dtype(self._storage)
            related = related.replace(relation=related.relation.update(dtype=dtype))
        self._shapes_by_width[widths] = related, sum(x.size for x in jax.tree.leaves(met))
        return self._shapes_by_width[widths]

    def _divide(self, of_users: np.ndarray, blocks: Blocks) -> np.ndarray:
        """Arrays of users split over the devices, (devices, users, ...)."""
        shape = (blocks.users, *of_users.shape[1:])
        by_part = of_users.reshape(self._user_parts, *shape)
        return np.broadcast_to(by_part, (devices.device_count(), *shape))

    def _bits(self, items, n_own: int, blocks: Blocks) -> np.ndarray:
        """CSR (C, I) as bits (P, C, W) of P item shards, padded to whole blocks."""
        n_bytes = math.ceil(n_own / blocks.targets) * blocks.targets // BITS
        bits_PxCxW = np.zeros((self._item_parts, items.shape[0], n_bytes), np.uint8)
        cells = items.tocoo()
        shard, own = np.divmod(cells.col, n_own)
        bit = np.left_shift(1, own % BITS).astype(np.uint8)
        np.bitwise_or.at(bits_PxCxW, (shard, cells.row, own // BITS), bit)
        return bits_PxCxW

    def preferences(self, user_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item indices (C, S) of the preferences, and their mask; fixed for each user."""
        return self._padded_preferences(self.known[user_C], user_C)

    def _padded_preferences(self, known_CxI, user_C) -> tuple[np.ndarray, np.ndarray]:
        size = devices.padded_size(len(user_C), 8 if len(user_C) <= PIECE else 2)
        if size > len(user_C):
            order_C = np.resize(np.arange(len(user_C)), size)
            prefs_CxS, mask_CxS = self._preferences(known_CxI[order_C], user_C[order_C])
            return prefs_CxS[: len(user_C)], mask_CxS[: len(user_C)]
        return self._preferences(known_CxI, user_C)

    def _preferences(self, known_CxI, user_C) -> tuple[np.ndarray, np.ndarray]:
        rows = UserItems.rows(known_CxI, self._longest)
        user_C = (user_C if self._draw_U is None else self._draw_U[user_C]).astype(np.int32)
        sampler = Sampler(rows, leaf(self.rarity_I), self.max_prefs, weights=self._weights)
        return jax.device_get(
            _draw(sampler, self._key, user_C, np.arange(len(user_C), dtype=np.int32))
        )


_draw = jax.jit(evaluation_preferences)


def _by_users(bits_PxCxW: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Bits by device: split over users, or over item shards; one of the two axes is split."""
    return bits_PxCxW.reshape(devices.device_count(), blocks.users, bits_PxCxW.shape[2])


def _context(prefs_CxS, mask_CxS, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """(context: item indices among the preferences (X,); preferences as rows of it (C, S)).

    X is padded to a power of two, or is the full catalogue in whole pieces (see `Steps.relate`), so
    that few shapes are compiled.
    """
    distinct = np.unique(prefs_CxS[mask_CxS])
    size = devices.padded_size(len(distinct))
    if size > n_items // 2:
        size = math.ceil(n_items / PIECE) * PIECE if n_items > PIECE else n_items
        distinct = np.arange(n_items)
    context_X = np.zeros(size, np.int32)
    context_X[: len(distinct)] = distinct
    row_CxS = np.searchsorted(distinct, np.where(mask_CxS, prefs_CxS, context_X[0]))
    return context_X, row_CxS.astype(np.int32)
