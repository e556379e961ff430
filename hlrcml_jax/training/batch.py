"""What a training step is given: ids of its examples, and the rows that they need of the tables."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax.models.past import from_items


class Batch(flax.struct.PyTreeNode):
    """B examples of ids, as `sampling.draw_batch` makes them.

    Attributes:
      user_B: user ids.
      positive_B: an item of each user.
      negative_BxN: candidates of each example, or (1, N) when all share them.
      log_weight_BxN: of each candidate in a softmax; -inf for those that are items of the user.
      prefs_BxS: preferences of the user, the positive not among them.
      mask_BxS: True where a preference is real.
      weight_B: 1 for real examples, 0 for those that only fill the batch.
      shared: whether all examples have the same candidates.
    """

    user_B: jax.Array
    positive_B: jax.Array
    negative_BxN: jax.Array
    log_weight_BxN: jax.Array
    prefs_BxS: jax.Array
    mask_BxS: jax.Array
    weight_B: jax.Array
    shared: bool = flax.struct.field(pytree_node=False, default=False)


class Rows(flax.struct.PyTreeNode):
    """The rows of the tables that B examples need, gathered.

    Gradients are taken with respect to these, and added to the tables' rows afterwards.

    Attributes:
      user_BxD: of the users, or None where users are represented by their items.
      positive_BxD: of their positives.
      negative_NxBxD: of the candidates, (N, 1, D) when all share them.
      prefs_BxSxD: of the preferences.
    """

    user_BxD: jax.Array | None
    positive_BxD: jax.Array
    negative_NxBxD: jax.Array
    prefs_BxSxD: jax.Array

    @classmethod
    def of(cls, tables: dict[str, jax.Array], batch: Batch) -> "Rows":
        """Of the tables `users` (U, D), if there is one, and `items` (I, D)."""
        items_IxD = tables["items"]
        return cls(
            tables["users"][batch.user_B] if "users" in tables else None,
            items_IxD[batch.positive_B],
            items_IxD[batch.negative_BxN.T],
            items_IxD[batch.prefs_BxS],
        )

    def add_to(self, tables: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """The tables with each of these rows added where `of` took it; the transpose of `of`."""
        items_IxD = tables["items"].at[batch.prefs_BxS].add(self.prefs_BxSxD)
        items_IxD = items_IxD.at[batch.positive_B].add(self.positive_BxD)
        added = {"items": items_IxD.at[batch.negative_BxN.T].add(self.negative_NxBxD)}
        if "users" in tables:
            added["users"] = tables["users"].at[batch.user_B].add(self.user_BxD)
        return added

    def with_users(self, mask_BxS: jax.Array) -> "Rows":
        """With the rows of users that are represented by their items."""
        if self.user_BxD is not None:
            return self
        return self.replace(user_BxD=from_items(self.prefs_BxSxD, mask_BxS))


def widen_rows(rows: Any, constants: dict[str, jax.Array], wide: Any) -> Any:
    """Rows with the model's constants, if it has any, behind each vector.

    Args:
      rows: a tree of rows.
      constants: of the epoch, see `Model.constants`.
      wide: gives the same tree of the constants.
    """
    if not constants:
        return rows
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), rows, wide(constants))
