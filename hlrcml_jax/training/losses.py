"""The loss of positives and negatives, and how negatives are chosen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, made_of_items


class Batch(flax.struct.PyTreeNode):
    """B examples of ids, as `sampling.draw_batch` makes them.

    Attributes:
      user_B: user ids.
      positive_B: an item of each user.
      negative_BxN: candidates of each example, or (N,) when all share them.
      log_weight_BxN: of each candidate in a softmax; -inf for those that are items of the user.
      prefs_BxS: preferences of the user, the positive not among them.
      mask_BxS: True where a preference is real.
      weight_B: 1 for real examples, 0 for those that only fill the batch.
    """

    user_B: jax.Array
    positive_B: jax.Array
    negative_BxN: jax.Array
    log_weight_BxN: jax.Array
    prefs_BxS: jax.Array
    mask_BxS: jax.Array
    weight_B: jax.Array

    @property
    def is_shared(self) -> bool:
        """Whether all examples have the same candidates."""
        return self.negative_BxN.ndim == 1


class Rows(flax.struct.PyTreeNode):
    """The rows of the tables that B examples need, gathered.

    Gradients are taken with respect to these, and added to the tables' rows afterwards.

    Attributes:
      user_BxD: of the users, or None where users are made of their items.
      positive_BxD: of their positives.
      negative_NxBxD: of the candidates, or (N, D) when all share them.
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
        """With the users that are made of their items."""
        if self.user_BxD is not None:
            return self
        return self.replace(user_BxD=made_of_items(self.prefs_BxSxD, mask_BxS))


def widen_rows(rows: Any, constants: dict[str, jax.Array], wide: Any) -> Any:
    """Rows with the model's constants, if it has any, behind each vector.

    Args:
      rows: a tree of rows.
      constants: of the epoch, see `CML.constants`.
      wide: gives the same tree of the constants.
    """
    if not constants:
        return rows
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), rows, wide(constants))


@dataclasses.dataclass(frozen=True)
class Loss:
    """Sum over the batch of what d(u, positive) and the d(u, negative) cost; and the penalties.

    With z = d(u, positive) - d(u, negative):
      "hinge": max(0, margin + z) (the paper's equation of the loss), averaged over the candidates;
      "softmax": log(1 + sum_n w_n exp(z_n / temperature)), the cross-entropy of the positive among
        the candidates, whose weights w may make them stand for the whole catalogue;
      and for a model whose loss is "logistic", -log sigmoid(-z) in place of the hinge.

    Attributes:
      kind: "hinge", "softmax", or fn(positive_B, negative_BxN, log_weight_BxN) -> loss_B.
      margin: of the hinge, in the distance's unit.
      temperature: of the softmax, in the distance's unit.
      hardest: how many candidates count, the nearest ones to the user, moved by the positive's
        relation (see `choose`); 0 for all. Shared candidates have their own relations at hand, and
        are chosen by those.
      copy_relation: the negative uses the positive's relation in the loss too.
    """

    kind: str | Callable[..., jax.Array] = "hinge"
    margin: float = 0.2
    temperature: float = 0.3
    hardest: int = 0
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
        constants = constants or {}
        batch = self.choose(model, params, batch, constants)
        rows = self._rows(params, batch, constants)
        if not batch.is_shared:
            return self.of_rows(model, params["model"], rows, batch)
        items_IxD = widen_rows(params["items"], constants, lambda wide: wide["items"])
        bound = model.bind({"params": params["model"]})
        _, relation, positive_B = _of_positives(bound, rows, batch)
        distance_BxN = bound.shared_distances(
            rows.user_BxD, rows.negative_NxBxD, items_IxD, batch.prefs_BxS, batch.mask_BxS
        )
        loss_B = self._of_distances(model, positive_B, distance_BxN.T, batch.log_weight_BxN.T)
        penalty_B = bound.penalty(
            rows.user_BxD, relation, rows.positive_BxD, rows.negative_NxBxD[:0, None]
        )
        return jnp.sum((loss_B + penalty_B) * batch.weight_B)

    def _rows(self, params, batch, constants):
        rows = widen_rows(Rows.of(params, batch), constants, lambda wide: Rows.of(wide, batch))
        return rows.with_users(batch.mask_BxS)

    def choose(
        self,
        model: CML,
        params: dict[str, Any],
        batch: Batch,
        constants: dict[str, jax.Array],
    ) -> Batch:
        """The batch with its hardest candidates alone, as judged by the positive's relation.

        So candidates cost little: only the chosen ones need relations of their own.
        """
        if batch.is_shared or not 0 < self.hardest < batch.negative_BxN.shape[1]:
            return batch
        rows = self._rows(params, batch, constants)
        bound = model.bind({"params": params["model"]})
        _, relation, _ = _of_positives(bound, rows, batch)
        measure = jax.vmap(lambda rows_BxD: bound.distance(rows.user_BxD, relation, rows_BxD))
        logits_BxN = -measure(rows.negative_NxBxD).T / self.temperature
        place_BxK = jax.lax.top_k(logits_BxN + batch.log_weight_BxN, self.hardest)[1]
        return batch.replace(
            negative_BxN=jnp.take_along_axis(batch.negative_BxN, place_BxK, axis=1),
            log_weight_BxN=jnp.take_along_axis(batch.log_weight_BxN, place_BxK, axis=1),
        )

    def of_rows(self, model: CML, model_params: Any, rows: Rows, batch: Batch) -> jax.Array:
        """The loss of examples whose own candidates are chosen, from gathered rows."""
        bound = model.bind({"params": model_params})
        rows = rows.with_users(batch.mask_BxS)
        user_BxD, positive_BxD = rows.user_BxD, rows.positive_BxD
        history, relation, positive_B = _of_positives(bound, rows, batch)

        def with_positives_relation(negative_BxD):
            return bound.distance(user_BxD, relation, negative_BxD)

        def with_own_relation(negative_BxD):
            own = bound.relation(user_BxD, negative_BxD, history)
            return bound.distance(user_BxD, own, negative_BxD)

        negative_NxBxD = rows.negative_NxBxD
        distance = with_positives_relation if self.copy_relation else with_own_relation
        # One negative needs no loop, and the compiler does much better without.
        single = negative_NxBxD.shape[0] == 1
        distance_NxB = (
            distance(negative_NxBxD[0])[None] if single else jax.lax.map(distance, negative_NxBxD)
        )
        loss_B = self._of_distances(model, positive_B, distance_NxB, batch.log_weight_BxN.T)
        penalty_B = bound.penalty(user_BxD, relation, positive_BxD, negative_NxBxD)
        return jnp.sum((loss_B + penalty_B) * batch.weight_B)

    def _of_distances(self, model, positive_B, distance_NxB, log_weight_NxB):
        if callable(self.kind):
            return self.kind(positive_B, distance_NxB.T, log_weight_NxB.T)
        z_NxB = positive_B[None] - distance_NxB
        logits_NxB = z_NxB / self.temperature + log_weight_NxB
        if 0 < self.hardest < len(z_NxB):
            logits_BxK, place_BxK = jax.lax.top_k(logits_NxB.T, self.hardest)
            logits_NxB, z_NxB = logits_BxK.T, jnp.take_along_axis(z_NxB, place_BxK.T, axis=0)
        if self.kind == "softmax":
            of_positive_1xB = jnp.zeros_like(z_NxB[:1])
            return jax.nn.logsumexp(jnp.concatenate([of_positive_1xB, logits_NxB]), axis=0)
        allowed_NxB = logits_NxB != -jnp.inf  # what is not a number must not hide here
        logistic = model.loss == "logistic"
        loss_NxB = jax.nn.softplus(z_NxB) if logistic else jnp.maximum(0.0, self.margin + z_NxB)
        loss_NxB = jnp.where(allowed_NxB, loss_NxB, 0.0)
        return jnp.sum(loss_NxB, axis=0) / jnp.maximum(jnp.sum(allowed_NxB, axis=0), 1)


def _of_positives(bound: CML, rows: Rows, batch: Batch):
    """(history, relation, distance (B,)) of each user and its positive."""
    history = bound.history(rows.user_BxD, rows.prefs_BxSxD, batch.mask_BxS)
    relation = bound.relation(rows.user_BxD, rows.positive_BxD, history)
    return history, relation, bound.distance(rows.user_BxD, relation, rows.positive_BxD)
