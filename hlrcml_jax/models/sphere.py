"""Any metric-learning model on the unit sphere, with an item bias and a gate for its relation."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hlrcml_jax.models import distances
from hlrcml_jax.models.base import Model, Past, Related, Spec, Users

BIAS_RATE = 0.1


class Sphere(Model):
    """score(u, t) = <u + gate * relation(u, t), t> + b_t / 10 with unit vectors u, t and p_k.

    Without a relation this is a cosine, which ranks as the distance of unit vectors does; the
    relation adds its pull towards the target. The user u is the direction of its embedding plus
    the mean of its items: in training of past items that were drawn, without the positive, in
    ranking of all. Embeddings start at zero and decay, so that a new user needs none.

    An item's row is a vector, whose length does not matter, followed by its bias b, of which a
    tenth counts: Adam moves all numbers at one rate, and biases at that rate overfit. The gate is a
    parameter without a gradient: a gate that is trained on the loss grows until the model
    overfits, so training opens it step by step, as validation allows (see `training/loop.py`).

    Attributes:
      inner: the model whose relation it is.
      first_gate: the gate before training.
      relates: False leaves the relation out, as with a gate of zero.
    """

    inner: Model
    first_gate: float = 1.0
    relates: bool = True

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        return dataclasses.replace(self.inner.spec, history=True, ball=False, offsets=True)

    def setup(self) -> None:
        nn.share_scope(self, self.inner)
        self.gate = self.param("relation_gate", nn.initializers.constant(self.first_gate), ())

    def without_relation(self) -> "Sphere":
        return self.clone(relates=False)

    def embed(self, row):
        """The vector at length one, and the bias."""
        return jnp.concatenate([unit(vectors(row)), row[..., -1:]], axis=-1)

    def represent(self, user_BxD, past_BxSxD, mask_BxS):
        count_Bx1 = jnp.maximum(jnp.sum(mask_BxS, axis=1, keepdims=True), 1)
        share_BxS = mask_BxS / count_Bx1
        mean_BxD = jnp.einsum("bsd,bs->bd", vectors(past_BxSxD), share_BxS)
        return mean_BxD if user_BxD is None else user_BxD + mean_BxD

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        if not self.relates:
            return {"user_BxD": unit(user_BxD)}
        return self.inner.users(unit(user_BxD), vectors(past_BxSxD), mask_BxS)

    def relate(self, past, target):
        if not self.relates:
            return Related()
        related = self.inner.relate(vectors(past), vectors(target))
        return related.replace(pull=self.inner.pulls(related, vectors(target)))

    def meet(self, users, target_BxTxD):
        close_BxT = self.closeness(users["user_BxD"][:, None], target_BxTxD)
        if not self.relates:
            return {"close_BxT": close_BxT}
        met = self.inner.meet(users, vectors(target_BxTxD))
        met.pop("distance_BxT", None)  # of a ball
        pull_BxT = jnp.broadcast_to(
            self.inner.user_pull(met, vectors(target_BxTxD)), close_BxT.shape
        )
        return met | {"close_BxT": close_BxT, "pull_BxT": pull_BxT}

    def attention(self, users, met, target_BxTxD, past):
        return self.inner.attention(users, met, vectors(target_BxTxD), past)

    def mixture(self, users, met, target_BxTxD, past):
        return self.inner.mixture(users, met, vectors(target_BxTxD), past)

    def relation(self, users, met, target_BxTxD, past):
        past = past.map_rows(vectors)
        relation_BxTxD = self.inner.relation(users, met, vectors(target_BxTxD), past)
        return None if relation_BxTxD is None else self._gate * relation_BxTxD

    def closeness(self, moved_BxTxD, target_BxTxD):
        dot_BxT = distances.products(moved_BxTxD, vectors(target_BxTxD))
        return dot_BxT + BIAS_RATE * target_BxTxD[..., -1]

    def user_factors(self, user_BxD):
        return jnp.pad(user_BxD, ((0, 0), (0, 1)), constant_values=1.0)

    def item_factors(self, target_TxD):
        return jnp.concatenate([vectors(target_TxD), BIAS_RATE * target_TxD[:, -1:]], axis=1)

    def scores(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        if not self.relates:
            return met["close_BxT"]
        pull_BxT = self.inner.pull(users, met, vectors(target_BxTxD), past)
        return met["close_BxT"] + self._gate * pull_BxT

    @property
    def _gate(self) -> jax.Array:
        return jax.lax.stop_gradient(self.gate)

    def penalty(self, user_BxD, positive_BxD, negative_NxBxD, score_B):
        """The squared length of the user's embedding."""
        return 0.0 if user_BxD is None else jnp.sum(jnp.square(user_BxD), axis=1)

    def init_rows(self, key, n_rows, dim):
        """(n_rows, D + 1): vectors from N(0, 1/D), biases zero."""
        return jnp.pad(super().init_rows(key, n_rows, dim), ((0, 0), (0, 1)))

    def init_users(self, key, n_rows, dim):
        """(n_rows, D) of zeros."""
        return jnp.zeros((n_rows, dim))

    def item_similarity(self, items_IxD, item_T):
        """Cosine of the vectors."""
        return distances.cosine(vectors(items_IxD), item_T)


def vectors(row):
    """Items without their bias."""
    return row[..., :-1]


def unit(row: jax.Array) -> jax.Array:
    """Rows of length one; zero rows stay zero."""
    square = jnp.sum(jnp.square(row), axis=-1, keepdims=True)
    return row * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
