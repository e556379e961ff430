"""The two sources of past items and their relations with targets.

`OwnPast` holds them per example, for one target each: training and explanations. `TablePast` looks
them up in relations computed once, of a table of items with targets shared by all users: ranking,
and negatives shared by a batch. Both implement `Past`, so a model does not tell them apart.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax import devices
from hlrcml_jax.models.base import Attended, Model, Related, Users
from hlrcml_jax.models.softmax import softmax


class OwnPast(flax.struct.PyTreeNode):
    """Past items of B examples, with their relations to targets of their own, or to the user.

    Attributes:
      related: `relation` (B, S, M) and `similarity` (B, S) to one target or to the user, or
        (B, M, T, S) and (B, S, T) to T targets.
      mask_BxS: True where a past item is real.
      rows_BxSxD: item rows, zero where masked; None if `mix_rows` is not used.
    """

    related: Related
    mask_BxS: jax.Array
    rows_BxSxD: jax.Array = flax.struct.field(default=None)

    def similarity(self) -> jax.Array:
        return _with_targets(self.related.similarity)

    def pull(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.sum(weights_BxSxT * _with_targets(self.related.pull), axis=1)

    def attend(self, query_BxMxT, beta, first_Bx1xT=None, prior_BxSxT=None) -> Attended:
        relation = self.related.relation
        own = "bsm" if relation.ndim == 3 else "bmts"
        logits_BxSxT = jnp.einsum(f"{own},bmt->bst", relation, _per_target(query_BxMxT, relation))
        found = _weigh(logits_BxSxT, self.mask_BxS, beta, first_Bx1xT, prior_BxSxT)
        return *found, jnp.einsum(f"{own},bst->bmt", relation, found[0])

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.einsum("bst,bsd->btd", weights_BxSxT, self.rows_BxSxD)

    def map_rows(self, function) -> "OwnPast":
        return self.replace(rows_BxSxD=function(self.rows_BxSxD))


class TablePast(flax.struct.PyTreeNode):
    """Past items of B users in a table of X items, with relations to T shared targets.

    Attributes:
      related: `relation` (X, M, T) and `similarity` (X, T).
      mask_BxS: True where a past item is real.
      rows_XxD: the table.
      row_BxS: row indices of the past items in the table.
    """

    related: Related
    mask_BxS: jax.Array
    rows_XxD: jax.Array
    row_BxS: jax.Array

    def similarity(self) -> jax.Array:
        return self.related.similarity[self.row_BxS]

    def pull(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.sum(weights_BxSxT * self.related.pull[self.row_BxS], axis=1)

    def attend(self, query_BxMxT, beta, first_Bx1xT=None, prior_BxSxT=None) -> Attended:
        slots = (self.related.relation, self.row_BxS, self.mask_BxS)
        if devices.on_cpu():
            return _look_up(beta, *slots, query_BxMxT, first_Bx1xT, prior_BxSxT)
        relation_BxSxMxT = self.related.relation[self.row_BxS].astype(float)
        logits_BxSxT = jnp.sum(relation_BxSxMxT * query_BxMxT[:, None], axis=2)
        found = _weigh(logits_BxSxT, self.mask_BxS, beta, first_Bx1xT, prior_BxSxT)
        return (*found, jnp.sum(relation_BxSxMxT * found[0][:, :, None], axis=1))

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.einsum("bst,bsd->btd", weights_BxSxT, self.rows_XxD[self.row_BxS])

    def map_rows(self, function) -> "TablePast":
        return self.replace(rows_XxD=function(self.rows_XxD))


def _with_targets(of_pairs):
    """(B, S, T), for one target from (B, S)."""
    return of_pairs[:, :, None] if of_pairs.ndim == 2 else of_pairs


def _per_target(query_BxMxT, relation):
    """The query per target if the relations are, too."""
    shape = (*query_BxMxT.shape[:2], relation.shape[2])
    return query_BxMxT if relation.ndim == 3 else jnp.broadcast_to(query_BxMxT, shape)


def _weigh(logits_BxSxT, mask_BxS, beta, first_Bx1xT, prior_BxSxT):
    logits_BxSxT = logits_BxSxT if prior_BxSxT is None else prior_BxSxT + logits_BxSxT
    return softmax(logits_BxSxT, mask_BxS, beta, first_Bx1xT)


# On a CPU, relations are looked up slot by slot, which fits in cache and gathers no (B, S, M, T)
# array. The same in the derivative, which XLA would derive with a copy of the table per slot.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(beta, *slots_and_logits):
    return _look_up_forward(beta, *slots_and_logits)[0]


def _look_up_forward(beta, relation_XxMxT, row_BxS, mask_BxS, query_BxMxT, first, prior):
    logits_BxSxT = _dot(relation_XxMxT, row_BxS, query_BxMxT)
    weigh = lambda *args: _weigh(args[0], mask_BxS, beta, *args[1:])  # noqa: E731
    found, weigh_back = jax.vjp(weigh, logits_BxSxT, first, prior)
    mixture_BxMxT = _mix(relation_XxMxT, row_BxS, found[0])
    return (*found, mixture_BxMxT), (relation_XxMxT, row_BxS, query_BxMxT, found[0], weigh_back)


def _look_up_back(beta, saved, back):
    relation_XxMxT, row_BxS, query_BxMxT, weights_BxSxT, weigh_back = saved
    weights_back_BxSxT, weight_back_Bx1xT, mixture_back_BxMxT = back
    weights_back_BxSxT += _dot(relation_XxMxT, row_BxS, mixture_back_BxMxT)
    logits_back_BxSxT, *rest = weigh_back((weights_back_BxSxT, weight_back_Bx1xT))
    query_back_BxMxT = _mix(relation_XxMxT, row_BxS, logits_back_BxSxT)
    if query_BxMxT.shape[2] == 1:
        query_back_BxMxT = jnp.sum(query_back_BxMxT, axis=2, keepdims=True)

    def add_example(sum_XxMxT, example):
        *slots, mixture_back_MxT, query_MxT = example

        def add(sum_XxMxT, slot):
            row, weight_T, logit_back_T = slot
            back_MxT = weight_T[None] * mixture_back_MxT + logit_back_T[None] * query_MxT
            return sum_XxMxT.at[row].add(back_MxT), None

        return jax.lax.scan(add, sum_XxMxT, tuple(slots))[0], None

    examples = (row_BxS, weights_BxSxT, logits_back_BxSxT, mixture_back_BxMxT, query_BxMxT)
    relation_back = jax.lax.scan(add_example, jnp.zeros_like(relation_XxMxT), examples)[0]
    return relation_back, None, None, query_back_BxMxT, *rest


_look_up.defvjp(_look_up_forward, _look_up_back)


def _dot(relation_XxMxT, row_BxS, query_BxMxT):
    """<rel_k, x>, (B, S, T)."""

    def dot(row, query_MxT):
        return jnp.sum(relation_XxMxT[row].astype(float) * query_MxT, axis=0)

    def example(args):
        row_S, query_MxT = args
        return jax.lax.map(lambda row: dot(row, query_MxT), row_S)

    return jax.lax.map(example, (row_BxS, query_BxMxT))


def _mix(relation_XxMxT, row_BxS, weights_BxSxT):
    """sum_k w_k rel_k, (B, M, T)."""

    def add(sum_MxT, slot):
        row, weight_T = slot
        return sum_MxT + relation_XxMxT[row].astype(float) * weight_T[None], None

    zeros_MxT = jnp.zeros(relation_XxMxT.shape[1:])
    return jax.lax.map(
        lambda slots: jax.lax.scan(add, zeros_MxT, slots)[0], (row_BxS, weights_BxSxT)
    )


class Examples(flax.struct.PyTreeNode):
    """B users with their past items, to be scored with one target each at a time.

    Attributes:
      users: result of the model's `users`.
      past_BxSxD: past items, zero where masked.
      mask_BxS: True where a past item is real.
    """

    users: Users
    past_BxSxD: jax.Array
    mask_BxS: jax.Array

    @classmethod
    def of(
        cls, bound: Model, user_BxD: jax.Array, past_BxSxD: jax.Array, mask_BxS: jax.Array
    ) -> "Examples":
        """From users and past items, whose values are ignored where masked."""
        past_BxSxD = jnp.where(mask_BxS[:, :, None], past_BxSxD, 0.0)
        return cls(bound.users(user_BxD, past_BxSxD, mask_BxS), past_BxSxD, mask_BxS)

    def with_targets(
        self, bound: Model, target_BxTxD: jax.Array
    ) -> tuple[Users, Any, jax.Array, OwnPast]:
        """Arguments of the model's `scores`, `attention` and `relation`, for T targets each."""
        past = OwnPast(bound.relate(self.past_BxSxD, target_BxTxD), self.mask_BxS, self.past_BxSxD)
        return self.users, bound.meet(self.users, target_BxTxD), target_BxTxD, past


def of_rows(
    bound: Model,
    user_BxD: jax.Array | None,
    target_BxD: jax.Array,
    past_BxSxD: jax.Array,
    mask_BxS: jax.Array,
) -> tuple[Users, Any, jax.Array, OwnPast]:
    """Arguments of the model's `scores` and the like, from rows, for one target of each user.

    Args:
      bound: the model.
      user_BxD: user vectors; None for those of `represent`, from the past items.
      target_BxD: item rows.
      past_BxSxD: rows of past items.
      mask_BxS: True where a past item is real.
    """
    past_BxSxD = bound.embed(past_BxSxD)
    if user_BxD is None:
        user_BxD = bound.represent(None, past_BxSxD, mask_BxS)
    examples = Examples.of(bound, user_BxD, past_BxSxD, mask_BxS)
    return examples.with_targets(bound, bound.embed(target_BxD)[:, None])


def own_scores(bound: Model, *rows: jax.Array | None) -> jax.Array:
    """Scores (B,) of users with one target each, from the arguments of `of_rows`.

    Call it directly or as `method` of `apply`.
    """
    return bound.scores(*of_rows(bound, *rows))[:, 0]  # type: ignore[arg-type]
