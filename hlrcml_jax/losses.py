"""The triplet hinge loss and how its negatives are chosen."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, squared_distance


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


@dataclasses.dataclass(frozen=True)
class TripletLoss:
    """Sum over the batch of max(0, margin + d(u, positive) - d(u, negative)).

    Attributes:
      margin: of the squared distances.
      select: "uniform" averages the hinge over the candidates; "hardest" keeps the candidate
        nearest to the user moved by the positive's relation, and judges the loss of the chosen
        one by its own relation.
      copy_relation: the negative uses the positive's relation in the loss too.
    """

    margin: float
    select: str = "uniform"
    copy_relation: bool = False

    def __call__(self, model: CML, params: dict[str, Any], batch: Batch) -> jax.Array:
        """The loss of one batch.

        Args:
          model: the metric-learning model.
          params: `users` (U, D) and `items` (I, D), and the `model`'s own parameters.
          batch: the ids.
        """
        bound = model.bind({"params": params["model"]})
        user_BxD = params["users"][batch.user_B]
        positive_BxD = params["items"][batch.positive_B]
        prefs_BxSxD = params["items"][batch.prefs_BxS]

        relation = bound.relation(user_BxD, positive_BxD, prefs_BxSxD, batch.mask_BxS)
        moved_BxD = bound.translate(user_BxD, relation)
        positive_B = squared_distance(moved_BxD, positive_BxD)

        negative_BxN = batch.negative_BxN
        if self.select == "hardest" and negative_BxN.shape[1] > 1:
            negative_BxN = _nearest(moved_BxD, params["items"], negative_BxN)
        negative_NxBxD = params["items"][negative_BxN.T]

        def distance(negative_BxD):
            if self.copy_relation:
                return squared_distance(moved_BxD, negative_BxD)
            return bound(user_BxD, negative_BxD, prefs_BxSxD, batch.mask_BxS)

        # One negative needs no loop, and the compiler does much better without.
        single = negative_NxBxD.shape[0] == 1
        negative_NxB = (
            distance(negative_NxBxD[0])[None] if single else jax.lax.map(distance, negative_NxBxD)
        )
        hinge_NxB = jnp.maximum(0.0, self.margin + positive_B[None] - negative_NxB)
        return jnp.sum(jnp.mean(hinge_NxB, axis=0) * batch.weight_B)


def _nearest(moved_BxD: jax.Array, item_IxD: jax.Array, candidate_BxN: jax.Array) -> jax.Array:
    """The id (B, 1) of each row's candidate nearest to the moved user; no gradient flows."""
    candidate_BxNxD = jax.lax.stop_gradient(item_IxD)[candidate_BxN]
    distance_BxN = squared_distance(jax.lax.stop_gradient(moved_BxD)[:, None], candidate_BxNxD)
    return jnp.take_along_axis(candidate_BxN, jnp.argmin(distance_BxN, axis=1)[:, None], axis=1)
