"""The two sources of past items and their relations with targets.

`OwnPast` holds them per example, for one target each: training and explanations. `TablePast` looks
them up in relations computed once, of a table of items with targets shared by all users: ranking,
and negatives shared by a batch. Both implement `Past`, so a model does not tell them apart.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax import devices
from hlrcml_jax.models.base import Model, Related, Users


class OwnPast(flax.struct.PyTreeNode):
    """Past items of B examples, with their relations to one target each, or to the user.

    Attributes:
      related: `relation` (B, S, M) and `similarity` (B, S).
      mask_BxS: True where a past item is real.
      rows_BxSxD: item rows, zero where masked; None if `mix_rows` is not used.
    """

    related: Related
    mask_BxS: jax.Array
    rows_BxSxD: jax.Array = flax.struct.field(default=None)

    def similarity(self) -> jax.Array:
        return self.related.similarity[:, :, None]

    def dot(self, query_BxMxT: jax.Array) -> jax.Array:
        if query_BxMxT.shape[2] == 1:  # a trailing axis of length 1 would be slow
            query_Bx1xM = query_BxMxT[:, None, :, 0]
            return jnp.sum(self.related.relation * query_Bx1xM, axis=2, keepdims=True)
        return self.related.relation @ query_BxMxT

    def mix(self, weights_BxSxT: jax.Array) -> jax.Array:
        if weights_BxSxT.shape[2] == 1:
            return jnp.sum(self.related.relation * weights_BxSxT, axis=1)[:, :, None]
        return jnp.einsum("bsm,bst->bmt", self.related.relation, weights_BxSxT)

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.einsum("bst,bsd->btd", weights_BxSxT, self.rows_BxSxD)


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

    def dot(self, query_BxMxT: jax.Array) -> jax.Array:
        if devices.on_cpu():
            return _lookup_dot(self.related.relation, self.row_BxS, query_BxMxT)
        relation_BxSxMxT = self.related.relation[self.row_BxS].astype(float)
        return jnp.sum(relation_BxSxMxT * query_BxMxT[:, None], axis=2)

    def mix(self, weights_BxSxT: jax.Array) -> jax.Array:
        if devices.on_cpu():
            return _lookup_mix(self.related.relation, self.row_BxS, weights_BxSxT)
        relation_BxSxMxT = self.related.relation[self.row_BxS].astype(float)
        return jnp.sum(relation_BxSxMxT * weights_BxSxT[:, :, None], axis=1)

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        return jnp.einsum("bst,bsd->btd", weights_BxSxT, self.rows_XxD[self.row_BxS])


# On a CPU, relations are looked up slot by slot, which fits in cache and gathers no (B, S, M, T)
# array. The same in the derivatives, which XLA would derive with a copy of the table per slot.


@jax.custom_vjp
def _lookup_dot(relation_XxMxT, row_BxS, query_BxMxT):
    def example(row_S, query_MxT):
        return jax.lax.map(
            lambda row: jnp.sum(relation_XxMxT[row].astype(float) * query_MxT, axis=0), row_S
        )

    return jax.lax.map(lambda args: example(*args), (row_BxS, query_BxMxT))


@jax.custom_vjp
def _lookup_mix(relation_XxMxT, row_BxS, weights_BxSxT):
    zeros_MxT = jnp.zeros(relation_XxMxT.shape[1:])

    def example(slots):
        def add(sum_MxT, slot):
            row, weights_T = slot
            return sum_MxT + relation_XxMxT[row].astype(float) * weights_T[None], None

        return jax.lax.scan(add, zeros_MxT, slots)[0]

    return jax.lax.map(example, (row_BxS, weights_BxSxT))


def _scatter(relation_XxMxT, row_BxS, weights_BxSxT, query_BxMxT):
    """Zeros like the table, with w_k x added at the row of each slot k."""

    def add_example(sum_XxMxT, example):
        row_S, weights_SxT, query_MxT = example

        def add(sum_XxMxT, slot):
            row, weights_T = slot
            return sum_XxMxT.at[row].add(weights_T[None] * query_MxT), None

        return jax.lax.scan(add, sum_XxMxT, (row_S, weights_SxT))[0], None

    examples = (row_BxS, weights_BxSxT, query_BxMxT)
    return jax.lax.scan(add_example, jnp.zeros_like(relation_XxMxT), examples)[0]


def _dot_back(saved, back_BxSxT):
    relation_XxMxT, row_BxS, query_BxMxT = saved
    query_back_BxMxT = _lookup_mix(relation_XxMxT, row_BxS, back_BxSxT)
    if query_BxMxT.shape[2] == 1:
        query_back_BxMxT = jnp.sum(query_back_BxMxT, axis=2, keepdims=True)
    return _scatter(relation_XxMxT, row_BxS, back_BxSxT, query_BxMxT), None, query_back_BxMxT


def _mix_back(saved, back_BxMxT):
    relation_XxMxT, row_BxS, weights_BxSxT = saved
    weights_back_BxSxT = _lookup_dot(relation_XxMxT, row_BxS, back_BxMxT)
    return _scatter(relation_XxMxT, row_BxS, weights_BxSxT, back_BxMxT), None, weights_back_BxSxT


_lookup_dot.defvjp(lambda *args: (_lookup_dot(*args), args), _dot_back)
_lookup_mix.defvjp(lambda *args: (_lookup_mix(*args), args), _mix_back)


class Examples(flax.struct.PyTreeNode):
    """B users with their past items, to be scored with one target each at a time.

    Attributes:
      users: result of the model's `users`.
      past_BxSxD: rows of past items, zero where masked.
      mask_BxS: True where a past item is real.
    """

    users: Users
    past_BxSxD: jax.Array
    mask_BxS: jax.Array

    @classmethod
    def of(
        cls, bound: Model, user_BxD: jax.Array, past_BxSxD: jax.Array, mask_BxS: jax.Array
    ) -> "Examples":
        """From user rows and past items' rows, whose values are ignored where masked."""
        past_BxSxD = jnp.where(mask_BxS[:, :, None], past_BxSxD, 0.0)
        return cls(bound.users(user_BxD, past_BxSxD, mask_BxS), past_BxSxD, mask_BxS)

    def with_target(
        self, bound: Model, target_BxD: jax.Array
    ) -> tuple[Users, Any, jax.Array, OwnPast]:
        """Arguments of the model's `scores`, `attention` and `relation`, for one target each."""
        target_Bx1xD = target_BxD[:, None]
        related = bound.relate(self.past_BxSxD, target_Bx1xD)
        past = OwnPast(related, self.mask_BxS, self.past_BxSxD)
        return self.users, bound.meet(self.users, target_Bx1xD), target_Bx1xD, past


def own_scores(
    bound: Model,
    user_BxD: jax.Array,
    target_BxD: jax.Array,
    past_BxSxD: jax.Array,
    mask_BxS: jax.Array,
) -> jax.Array:
    """Scores (B,) of users with one target each; call it directly or as `method` of `apply`."""
    examples = Examples.of(bound, user_BxD, past_BxSxD, mask_BxS)
    return bound.scores(*examples.with_target(bound, target_BxD))[:, 0]


def from_items(items_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
    """Users (B, D) represented by their n items: the sum of the rows / sqrt(n) (Koren, KDD 2008).

    In training the positive is excluded, so that a user is predicted from its other items.
    """
    count_Bx1 = jnp.maximum(jnp.sum(mask_BxS, axis=1, keepdims=True), 1)
    return jnp.einsum("bsd,bs->bd", items_BxSxD, mask_BxS / jnp.sqrt(count_Bx1))
