"""Collaborative Metric Learning: the squared distance of user and item, and no relation.

This is also the interface of every metric-learning model. A model sees vectors, never tables:

* `relation` describes how a user is moved for one target, in whatever form is cheap;
* `translate` moves the user by it;
* calling the model gives the squared distance of the moved user and the target;
* `item_pairs` and `block_distances` are the same distances for full-catalogue scoring, with all
  that does not depend on the user computed once per block of targets.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Relation = jax.Array | None


def squared_distance(a_D: jax.Array, b_D: jax.Array) -> jax.Array:
    """||a - b||^2 over the last axis; both of one rank."""
    return jnp.sum(jnp.square(a_D - b_D), axis=-1)


def pairwise_squared_distance(a_BxD: jax.Array, b_TxD: jax.Array) -> jax.Array:
    """||a - b||^2 of every pair, (B, T), through one matrix product."""
    a_Bx1 = jnp.sum(jnp.square(a_BxD), axis=-1)[:, None]
    b_1xT = jnp.sum(jnp.square(b_TxD), axis=-1)[None, :]
    return a_Bx1 + b_1xT - 2.0 * a_BxD @ b_TxD.T


class CML(nn.Module):
    """d(u, t) = ||u - t||^2 (Hsieh et al., WWW 2017; paper, section 2)."""

    uses_preferences: ClassVar[bool] = False

    def relation(
        self, user_BxD: jax.Array, target_BxD: jax.Array, prefs_BxSxD: jax.Array, mask_BxS
    ) -> Relation:
        """What moves the user towards the target: nothing, for CML."""
        return None

    def translate(self, user_BxD: jax.Array, relation: Relation) -> jax.Array:
        """The user moved by the relation, (B, D)."""
        return user_BxD

    def __call__(
        self, user_BxD: jax.Array, target_BxD: jax.Array, prefs_BxSxD: jax.Array, mask_BxS
    ) -> jax.Array:
        """Squared distances (B,) of B users to one target each.

        Args:
          user_BxD: user vectors.
          target_BxD: item vectors, one a user.
          prefs_BxSxD: vectors of each user's preferences, padded with anything.
          mask_BxS: True where a preference is real.
        """
        relation = self.relation(user_BxD, target_BxD, prefs_BxSxD, mask_BxS)
        return squared_distance(self.translate(user_BxD, relation), target_BxD)

    def item_pairs(self, context_CxD: jax.Array, target_TxD: jax.Array) -> Relation:
        """What depends on pairs of items alone, computed once for all users."""
        return None

    def block_distances(
        self,
        user_BxD: jax.Array,
        target_TxD: jax.Array,
        pairs: Relation,
        context_CxD: jax.Array,
        prefs_BxS: jax.Array,
        mask_BxS: jax.Array,
    ) -> jax.Array:
        """Squared distances (B, T) of B users to T shared targets.

        Args:
          user_BxD: user vectors.
          target_TxD: item vectors.
          pairs: `item_pairs(context_CxD, target_TxD)`.
          context_CxD: vectors of the items that occur among the preferences.
          prefs_BxS: preferences as rows of the context.
          mask_BxS: True where a preference is real.
        """
        return pairwise_squared_distance(user_BxD, target_TxD)
