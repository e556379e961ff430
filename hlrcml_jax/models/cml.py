"""Collaborative Metric Learning: the distance of user and item, and no relation.

This is also the interface of every model. A model sees rows, never tables:

* `history` prepares what all targets of a user share, and `relation` describes how the user is
  moved for one target, in whatever form is cheap;
* `translate` moves the user by it, and `distance` measures from there;
* calling the model gives the distance of user and target by the target's own relation;
* `block_items`, `block_users`, `block_history` and `block_distances` are the same distances for
  full-catalogue scoring, cut by what depends on items alone, on users and targets, on users and
  preferences, and on all three; `shared_distances` puts them together for training.

A row is a vector of D numbers, unless `init_rows` makes it wider or `constants` adds to it.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Relation = jax.Array | None


def squared_distance(a_D: jax.Array, b_D: jax.Array) -> jax.Array:
    """||a - b||^2 over the last axis; both of one rank."""
    return jnp.sum(jnp.square(a_D - b_D), axis=-1)


def pairwise_squared_distance(a_BxD: jax.Array, b_TxD: jax.Array) -> jax.Array:
    """||a - b||^2 of every pair, (B, T), through one matrix product."""
    a_Bx1 = jnp.sum(jnp.square(a_BxD), axis=-1)[:, None]
    b_1xT = jnp.sum(jnp.square(b_TxD), axis=-1)[None, :]
    return a_Bx1 + b_1xT - 2.0 * a_BxD @ b_TxD.T


def cosine(rows_IxD: np.ndarray, row_T: np.ndarray) -> np.ndarray:
    """Cosines (T, I) of some rows with all; 0 for a row of zeros."""
    unit_IxD = rows_IxD / np.maximum(np.linalg.norm(rows_IxD, axis=1, keepdims=True), 1e-30)
    return unit_IxD[row_T] @ unit_IxD.T


def made_of_items(items_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
    """Users (B, D) as their n items: the sum of the vectors over sqrt(n) (Koren, KDD 2008).

    In training the positive is not among them, so that they are made of what predicts it.
    """
    count_Bx1 = jnp.maximum(jnp.sum(mask_BxS, axis=1, keepdims=True), 1)
    return jnp.einsum("bsd,bs->bd", items_BxSxD, mask_BxS / jnp.sqrt(count_Bx1))


def user_rows(
    params: dict[str, Any], user_B: jax.Array, prefs_BxSxD: jax.Array, mask_BxS: jax.Array
) -> jax.Array:
    """Rows of users: of their table, or made of their preferences where there is no table."""
    return params["users"][user_B] if "users" in params else made_of_items(prefs_BxSxD, mask_BxS)


class CML(nn.Module):
    """d(u, t) = ||u - t||^2 (Hsieh et al., WWW 2017; paper, section 2).

    Class attributes say how a model is trained and scored:
      uses_preferences: whether its relation attends to the items that a user has.
      relates_items: whether relations of item pairs are computed once for all users.
      in_ball: whether user and item rows are kept in a ball.
      loss: of a positive and a negative distance, "hinge" or "logistic".
      adds_constants: whether rows are widened by what `constants` gives.
      user_is_history: whether scoring takes a user's interactions as its row (see `solved.py`).
    """

    uses_preferences: ClassVar[bool] = False
    relates_items: ClassVar[bool] = False
    in_ball: ClassVar[bool] = True
    loss: ClassVar[str] = "hinge"
    adds_constants: ClassVar[bool] = False
    user_is_history: ClassVar[bool] = False

    def init_rows(self, key: jax.Array, n_rows: int, dim: int) -> jax.Array:
        """A table as training begins: (n_rows, D) from N(0, 1/D)."""
        return jax.random.normal(key, (n_rows, dim)) * dim**-0.5

    def constants(self, tables: dict[str, jax.Array], user_E, item_E) -> dict[str, jax.Array]:
        """Columns appended to the rows, constant during an epoch and without a gradient.

        Args:
          tables: `users` (U, D) and `items` (I, D).
          user_E: the users of the training interactions.
          item_E: their items.
        """
        return {}

    def history(self, user_BxD: jax.Array, prefs_BxSxD: jax.Array, mask_BxS: jax.Array) -> Any:
        """What the relations to all targets of an example have in common.

        Args:
          user_BxD: user rows.
          prefs_BxSxD: rows of each user's preferences, padded with anything.
          mask_BxS: True where a preference is real.
        """
        return None

    def relation(self, user_BxD: jax.Array, target_BxD: jax.Array, history: Any) -> Relation:
        """What moves the user towards the target: nothing, for CML."""
        return None

    def translate(self, user_BxD: jax.Array, relation: Relation) -> jax.Array:
        """The user moved by the relation, (B, D)."""
        return user_BxD

    def distance(self, user_BxD: jax.Array, relation: Relation, target_BxD: jax.Array) -> jax.Array:
        """Squared distances (B,) of the users, moved by given relations, to the targets."""
        return squared_distance(self.translate(user_BxD, relation), target_BxD)

    def penalty(
        self, user_BxD: jax.Array, relation: Relation, positive_BxD: jax.Array, negative_NxBxD
    ) -> jax.Array | float:
        """What each example adds to the loss of its triplets, (B,)."""
        return 0.0

    def __call__(
        self, user_BxD: jax.Array, target_BxD: jax.Array, prefs_BxSxD: jax.Array, mask_BxS
    ) -> jax.Array:
        """Squared distances (B,) of B users to one target each.

        Args:
          user_BxD: user rows.
          target_BxD: item rows, one a user.
          prefs_BxSxD: as in `history`.
          mask_BxS: as in `history`.
        """
        history = self.history(user_BxD, prefs_BxSxD, mask_BxS)
        relation = self.relation(user_BxD, target_BxD, history)
        return self.distance(user_BxD, relation, target_BxD)

    def reasons(
        self, user_BxD: jax.Array, target_BxD: jax.Array, prefs_BxSxD: jax.Array, mask_BxS
    ) -> dict[str, jax.Array]:
        """Shares (B, S) of the attention that fall on each preference, as arguments of the call.

        Returns:
          "share" of the user attention and, of a model with both, "item_share" of the item
          attention; nothing for a model that attends to nothing.
        """
        return {}

    def likeness(self, items_IxD: np.ndarray, item_T: np.ndarray) -> np.ndarray:
        """How like some items all items are, (T, I): minus the squared distance."""
        of_T, square_I = items_IxD[item_T], np.square(items_IxD).sum(axis=1)
        return 2 * of_T @ items_IxD.T - square_I[None] - square_I[item_T][:, None]

    def block_items(
        self, context_XxD: jax.Array, target_TxD: jax.Array, out_XxMxT: jax.Array | None
    ) -> Any:
        """What a block of targets needs of items alone, computed once for all users.

        Args:
          context_XxD: rows of the items that occur among the preferences.
          target_TxD: rows of the block's items.
          out_XxMxT: an array for `pairs_XxMxT` of the result, if the model relates items.
        """
        return None

    def block_users(self, user_CxD: jax.Array, target_TxD: jax.Array) -> Any:
        """What a block needs of pairs of users and targets: arrays with a leading axis C."""
        return pairwise_squared_distance(user_CxD, target_TxD)

    def block_history(self, user_D: jax.Array, prefs_SxD: jax.Array, mask_S: jax.Array) -> Any:
        """What all blocks need of one user and its preferences."""
        return None

    def block_distances(
        self, items: Any, pairs: Any, history: Any, prefs_S: jax.Array, mask_S: jax.Array
    ) -> jax.Array:
        """Squared distances (T,) of one user to a block of targets.

        Args:
          items: what `block_items` gave.
          pairs: this user's part of what `block_users` gave.
          history: what `block_history` gave.
          prefs_S: preferences as rows of the context.
          mask_S: True where a preference is real.
        """
        return pairs

    def shared_distances(
        self,
        user_BxD: jax.Array,
        target_NxD: jax.Array,
        items_XxD: jax.Array,
        prefs_BxS: jax.Array,
        mask_BxS: jax.Array,
    ) -> jax.Array:
        """Squared distances (B, N) of B examples to N targets that all of them share.

        Args:
          user_BxD: user rows.
          target_NxD: item rows.
          items_XxD: rows of the items that preferences are among.
          prefs_BxS: preferences as places among those.
          mask_BxS: True where a preference is real.
        """
        items = self.block_items(items_XxD, target_NxD, None)
        pairs = self.block_users(user_BxD, target_NxD)
        history = jax.vmap(self.block_history)(user_BxD, items_XxD[prefs_BxS], mask_BxS)

        def distances(*user):
            return self.block_distances(items, *user)

        return jax.vmap(distances)(pairs, history, prefs_BxS, mask_BxS)


class Direct(CML):
    """A model that is ranked as it is defined: how a new one begins.

    It gives `relation` and `translate`, and `history` if it likes; every pair of user and item is
    then a call of the model. Once it is worth it, the `block_*` methods of `CML` are given, too,
    so that what pairs have in common is computed once.
    """

    def block_items(self, context_XxD, target_TxD, out_XxMxT):
        return {"context_XxD": context_XxD, "target_TxD": target_TxD}

    def block_users(self, user_CxD, target_TxD):
        return user_CxD

    def block_distances(self, items, pairs, history, prefs_S, mask_S):
        prefs_SxD = items["context_XxD"][prefs_S]

        def distance(target_D):
            return self(pairs[None], target_D[None], prefs_SxD[None], mask_S[None])[0]

        return jax.lax.map(distance, items["target_TxD"])
