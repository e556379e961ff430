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


def rows(params: dict[str, Any], constants: dict[str, jax.Array], table: str, ids) -> jax.Array:
    """Rows of "users" or "items", (*ids, D), with the model's constants behind."""
    row_BxD = params[table][ids]
    if table not in constants:
        return row_BxD
    return jnp.concatenate([row_BxD, jax.lax.stop_gradient(constants[table])[ids]], axis=-1)


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
        bound = model.bind({"params": params["model"]})

        def item_rows(ids):
            return rows(params, constants or {}, "items", ids)

        user_BxD = rows(params, constants or {}, "users", batch.user_B)
        positive_BxD, prefs_BxSxD = item_rows(batch.positive_B), item_rows(batch.prefs_BxS)
        relation = bound.relation(user_BxD, positive_BxD, prefs_BxSxD, batch.mask_BxS)
        positive_B = bound.distance(user_BxD, relation, positive_BxD)

        def with_positives_relation(negative_BxD):
            return bound.distance(user_BxD, relation, negative_BxD)

        def with_own_relation(negative_BxD):
            return bound(user_BxD, negative_BxD, prefs_BxSxD, batch.mask_BxS)

        negative_NxB = batch.negative_BxN.T
        if self.select == "hardest" and negative_NxB.shape[0] > 1:
            near_NxB = jax.vmap(with_positives_relation)(item_rows(negative_NxB))
            nearest_1xB = jnp.argmin(jax.lax.stop_gradient(near_NxB), axis=0)[None]
            negative_NxB = jnp.take_along_axis(negative_NxB, nearest_1xB, axis=0)
        negative_NxBxD = item_rows(negative_NxB)

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
        return jnp.sum((jnp.mean(loss_NxB, axis=0) + penalty_B) * batch.weight_B)
