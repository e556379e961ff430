"""The loss of positives and negatives, and how negatives are chosen."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML


class Batch(flax.struct.PyTreeNode):
    """B examples of ids, as `sampling.draw_batch` makes them.

    Attributes:
      user_B: user ids.
      positive_B: an item of each user.
      negative_BxN: candidates that are no items of the user.
      prefs_BxS: preferences of the user, the positive not among them.
      mask_BxS: True where a preference is real.
      weight_B: 1 for real examples, 0 for those that only fill the batch.
    """

    user_B: jax.Array
    positive_B: jax.Array
    negative_BxN: jax.Array
    prefs_BxS: jax.Array
    mask_BxS: jax.Array
    weight_B: jax.Array


class Rows(flax.struct.PyTreeNode):
    """The rows of the tables that B examples need, gathered.

    Gradients are taken with respect to these, and added to the tables' rows afterwards.

    Attributes:
      user_BxD: of the users.
      positive_BxD: of their positives.
      negative_NxBxD: of the candidates.
      prefs_BxSxD: of the preferences.
    """

    user_BxD: jax.Array
    positive_BxD: jax.Array
    negative_NxBxD: jax.Array
    prefs_BxSxD: jax.Array

    @classmethod
    def of(cls, tables: dict[str, jax.Array], batch: Batch) -> "Rows":
        """Of the tables `users` (U, D) and `items` (I, D)."""
        items_IxD = tables["items"]
        return cls(
            tables["users"][batch.user_B],
            items_IxD[batch.positive_B],
            items_IxD[batch.negative_BxN.T],
            items_IxD[batch.prefs_BxS],
        )

    def add_to(self, tables: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """The tables with each of these rows added where `of` took it; the transpose of `of`."""
        items_IxD = tables["items"].at[batch.prefs_BxS].add(self.prefs_BxSxD)
        items_IxD = items_IxD.at[batch.positive_B].add(self.positive_BxD)
        return {
            "users": tables["users"].at[batch.user_B].add(self.user_BxD),
            "items": items_IxD.at[batch.negative_BxN.T].add(self.negative_NxBxD),
        }


def widen_rows(rows: Rows, constants: dict[str, jax.Array], batch: Batch) -> Rows:
    """Rows with the model's constants, if it has any, behind each vector."""
    if not constants:
        return rows
    return jax.tree.map(
        lambda row, constant: jnp.concatenate([row, constant], axis=-1),
        rows,
        Rows.of(constants, batch),
    )


@dataclasses.dataclass(frozen=True)
class TripletLoss:
    """Sum over the batch of what the model makes of d(u, positive) and d(u, negative).

    That is the hinge max(0, margin + d(u, positive) - d(u, negative)) or, for a model whose loss
    is "logistic", -log sigmoid(d(u, negative) - d(u, positive)); and the model's penalty.

    Attributes:
      margin: of the hinge, in the distance's unit.
      select: "uniform" averages over the candidates; "hardest" keeps the candidate nearest to the
        user moved by the positive's relation, and judges the loss of the chosen one by its own
        relation.
      copy_relation: the negative uses the positive's relation in the loss too.
    """

    margin: float
    select: str = "uniform"
    copy_relation: bool = False

    def __call__(
        self,
        model: CML,
        params: dict[str, Any],
        batch: Batch,
        constants: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """The loss of one batch.

        Args:
          model: the model.
          params: `users` (U, D) and `items` (I, D), and the `model`'s own parameters.
          batch: the ids.
          constants: of the epoch, see `CML.constants`.
        """
        rows = widen_rows(Rows.of(params, batch), constants or {}, batch)
        return self.of_rows(model, params["model"], rows, batch.mask_BxS, batch.weight_B)

    def of_rows(
        self, model: CML, model_params: Any, rows: Rows, mask_BxS: jax.Array, weight_B: jax.Array
    ) -> jax.Array:
        """The loss of examples whose rows are gathered; masks and weights as in `Batch`."""
        bound = model.bind({"params": model_params})
        user_BxD, positive_BxD = rows.user_BxD, rows.positive_BxD
        history = bound.history(user_BxD, rows.prefs_BxSxD, mask_BxS)
        relation = bound.relation(user_BxD, positive_BxD, history)
        positive_B = bound.distance(user_BxD, relation, positive_BxD)

        def with_positives_relation(negative_BxD):
            return bound.distance(user_BxD, relation, negative_BxD)

        def with_own_relation(negative_BxD):
            own = bound.relation(user_BxD, negative_BxD, history)
            return bound.distance(user_BxD, own, negative_BxD)

        negative_NxBxD = rows.negative_NxBxD
        if self.select == "hardest" and negative_NxBxD.shape[0] > 1:
            near_NxB = jax.lax.stop_gradient(jax.vmap(with_positives_relation)(negative_NxBxD))
            nearest_1xBx1 = jnp.argmin(near_NxB, axis=0)[None, :, None]
            negative_NxBxD = jnp.take_along_axis(negative_NxBxD, nearest_1xBx1, axis=0)

        distance = with_positives_relation if self.copy_relation else with_own_relation
        # One negative needs no loop, and the compiler does much better without.
        single = negative_NxBxD.shape[0] == 1
        distance_NxB = (
            distance(negative_NxBxD[0])[None] if single else jax.lax.map(distance, negative_NxBxD)
        )
        if model.loss == "logistic":
            loss_NxB = jax.nn.softplus(positive_B[None] - distance_NxB)
        else:
            loss_NxB = jnp.maximum(0.0, self.margin + positive_B[None] - distance_NxB)
        penalty_B = bound.penalty(user_BxD, relation, positive_BxD, negative_NxBxD)
        return jnp.sum((jnp.mean(loss_NxB, axis=0) + penalty_B) * weight_B)
