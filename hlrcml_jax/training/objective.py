"""The loss of a batch: choice of the hardest negatives, scores, loss and penalties."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import Examples, TablePast
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.losses import Loss

Constants = dict[str, jax.Array]
T = TypeVar("T")


class Rows(flax.struct.PyTreeNode):
    """The gathered table rows of B examples.

    Gradients are taken with respect to these, then added to the tables.

    Attributes:
      user_BxD: of the users, or None if users are represented by their items.
      positive_BxD: of the positives.
      negative_NxBxD: of the negatives; (N, 1, D) if the examples share them.
      prefs_BxSxD: of the preferences.
    """

    user_BxD: jax.Array | None
    positive_BxD: jax.Array
    negative_NxBxD: jax.Array
    prefs_BxSxD: jax.Array

    @classmethod
    def of(cls, tables: dict[str, jax.Array], batch: Batch) -> "Rows":
        """Gathers from the tables `users` (U, D), if there is one, and `items` (I, D)."""
        items_IxD = tables["items"]
        return cls(
            tables["users"][batch.user_B] if "users" in tables else None,
            items_IxD[batch.positive_B],
            items_IxD[batch.negative_BxN.T],
            items_IxD[batch.prefs_BxS],
        )

    def add_to(self, tables: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Scatter-adds these rows to the tables: the transpose of `of`."""
        items_IxD = tables["items"].at[batch.prefs_BxS].add(self.prefs_BxSxD)
        items_IxD = items_IxD.at[batch.positive_B].add(self.positive_BxD)
        added = {"items": items_IxD.at[batch.negative_BxN.T].add(self.negative_NxBxD)}
        if "users" in tables:
            added["users"] = tables["users"].at[batch.user_B].add(self.user_BxD)
        return added

    def embed(self, bound: Model) -> "Rows":
        """With all items as the model takes them."""
        items = (self.positive_BxD, self.negative_NxBxD, self.prefs_BxSxD)
        return Rows(self.user_BxD, *map(bound.embed, items))

    def examples(self, bound: Model, mask_BxS: jax.Array) -> Examples:
        """The users with their preferences, of embedded rows."""
        user_BxD = bound.represent(self.user_BxD, self.prefs_BxSxD, mask_BxS)
        return Examples.of(bound, user_BxD, self.prefs_BxSxD, mask_BxS)


def widen_rows(rows: T, constants: Constants, wide: Callable[[Constants], T]) -> T:
    """Rows with the model's constants, if it has any, appended to each.

    Args:
      rows: a tree of rows.
      constants: of the epoch, see `Model.constants`.
      wide: maps the constants to a tree like `rows`.
    """
    if not constants:
        return rows
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), rows, wide(constants))


@dataclasses.dataclass(frozen=True)
class Objective:
    """Sum over a batch of the loss of each example and the model's penalty.

    Attributes:
      loss: of the scores, see `losses.py`.
      sampled: number of negatives that enter the loss, drawn from all by their share in the softmax
        of a model without its relation, and weighted by the inverse; 0 for all.
      hardest: number of negatives with the highest scores that enter the loss; 0 for all. Those
        of an example are ranked with the positive's relation (see `choose`), shared ones with
        their own, which are computed anyway.
      temperature: negatives are ranked by score / temperature + log weight.
      copy_relation: negatives use the positive's relation in the loss too.
    """

    loss: Loss
    sampled: int = 0
    hardest: int = 0
    temperature: float = 1.0
    copy_relation: bool = False

    def __call__(
        self, model: Model, params: dict[str, Any], batch: Batch, constants: Constants | None = None
    ) -> jax.Array:
        """The loss of one batch.

        Args:
          model: the model.
          params: `users` (U, D) and `items` (I, D), and the `model`'s own parameters.
          batch: user and item indices.
          constants: of the epoch, see `Model.constants`.
        """
        constants = constants or {}
        batch = self.choose(model, params, batch, constants)
        rows = self._rows(params, batch, constants)
        if not batch.shared:
            return self.of_rows(model, params["model"], rows, batch)
        bound = model.bind({"params": params["model"]})
        rows = rows.embed(bound)
        examples = rows.examples(bound, batch.mask_BxS)
        positive_B = _own_score(bound, examples, rows.positive_BxD)
        items_IxD = widen_rows(params["items"], constants, lambda wide: wide["items"])
        items_IxD = bound.embed(items_IxD)
        target_1xNxD = jnp.swapaxes(rows.negative_NxBxD, 0, 1)
        related = bound.relate(items_IxD, target_1xNxD[0])
        past = TablePast(related, batch.mask_BxS, items_IxD, batch.prefs_BxS)
        met = bound.meet(examples.users, target_1xNxD)
        negative_BxN = bound.scores(examples.users, met, target_1xNxD, past)
        if self._chooses(negative_BxN.shape[1]):
            hardest = self._hardest(negative_BxN, batch.log_weight_BxN, negative_BxN)
        else:
            hardest = negative_BxN, batch.log_weight_BxN
        return self._total(bound, rows, batch, positive_B, *hardest)

    def _rows(self, params: dict[str, Any], batch: Batch, constants: Constants) -> Rows:
        return widen_rows(Rows.of(params, batch), constants, lambda wide: Rows.of(wide, batch))

    def choose(
        self, model: Model, params: dict[str, Any], batch: Batch, constants: Constants
    ) -> Batch:
        """The batch with the negatives that enter the loss, chosen without their relations.

        So candidates are cheap: only the chosen ones need relations of their own. The hardest are
        found with the positive's relation. Those that are sampled keep the loss an estimate of the
        softmax over all candidates, each with its own relation, whichever it prefers.
        """
        n_candidates = batch.negative_BxN.shape[1]
        samples = 0 < self.sampled < n_candidates
        if not samples and (batch.shared or not self._chooses(n_candidates)):
            return batch
        bound = model.bind({"params": params["model"]})
        rows = self._rows(params, batch, constants).embed(bound)
        examples = rows.examples(bound, batch.mask_BxS)
        if samples:
            user_Bx1xD = examples.users["user_BxD"][:, None]
            score_BxN = bound.closeness(user_Bx1xD, jnp.swapaxes(rows.negative_NxBxD, 0, 1))
            share_BxN = score_BxN / self.temperature + batch.log_weight_BxN
            return _sampled(batch, jax.lax.stop_gradient(share_BxN), self.sampled)
        moved_Bx1xD = bound.moved(*examples.with_targets(bound, rows.positive_BxD[:, None]))
        score_BxN = _scores_of_moved(bound, moved_Bx1xD, rows.negative_NxBxD)
        chosen = self._hardest(score_BxN, batch.log_weight_BxN, batch.negative_BxN)
        return batch.replace(negative_BxN=chosen[0], log_weight_BxN=chosen[1])

    def of_rows(self, model: Model, model_params: Any, rows: Rows, batch: Batch) -> jax.Array:
        """The loss of examples with their own, chosen negatives, from gathered rows."""
        bound = model.bind({"params": model_params})
        rows = rows.embed(bound)
        examples = rows.examples(bound, batch.mask_BxS)
        if self.copy_relation or len(rows.negative_NxBxD) == 1:
            # On a CPU, XLA compiles one target at a time much better.
            positive_B = _own_score(bound, examples, rows.positive_BxD)
            negative_BxN = self._apart(bound, examples, rows)
        else:
            target_TxBxD = jnp.concatenate([rows.positive_BxD[None], rows.negative_NxBxD])
            target_BxTxD = jnp.swapaxes(target_TxBxD, 0, 1)
            score_BxT = bound.scores(*examples.with_targets(bound, target_BxTxD))
            positive_B, negative_BxN = score_BxT[:, 0], score_BxT[:, 1:]
        return self._total(bound, rows, batch, positive_B, negative_BxN, batch.log_weight_BxN)

    def _apart(self, bound, examples, rows):
        """Scores (B, N) of negatives: with the positive's relation, or of one negative."""
        if not self.copy_relation:
            return _own_score(bound, examples, rows.negative_NxBxD[0])[:, None]
        moved_Bx1xD = bound.moved(*examples.with_targets(bound, rows.positive_BxD[:, None]))
        return _scores_of_moved(bound, moved_Bx1xD, rows.negative_NxBxD)

    def _total(self, bound, rows, batch, positive_B, negative_BxN, log_weight_BxN):
        loss_B = self.loss(positive_B, negative_BxN, log_weight_BxN)
        penalty_B = bound.penalty(rows.user_BxD, rows.positive_BxD, rows.negative_NxBxD, positive_B)
        return jnp.sum((loss_B + penalty_B) * batch.weight_B)

    def _chooses(self, n_candidates: int) -> bool:
        return 0 < self.hardest < n_candidates

    def _hardest(
        self, score_BxN: jax.Array, log_weight_BxN: jax.Array, value_BxN: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(values, log weights), each (B, K), of the K hardest negatives."""
        hardness_BxN = score_BxN / self.temperature + log_weight_BxN
        column_BxK = jax.lax.top_k(hardness_BxN, self.hardest)[1]
        value_BxK = jnp.take_along_axis(value_BxN, column_BxK, axis=1)
        return value_BxK, jnp.take_along_axis(log_weight_BxN, column_BxK, axis=1)


def _sampled(batch: Batch, log_share_BxN: jax.Array, n: int) -> Batch:
    """The batch with n of its negatives, drawn in proportion to exp(log share), systematically.

    With their new weights, the sum over the n is an unbiased estimate of that over all.
    """
    assert batch.uniform_B is not None
    peak_Bx1 = jnp.max(log_share_BxN, axis=1, keepdims=True)
    mass_BxN = jnp.exp(log_share_BxN - jnp.where(peak_Bx1 == -jnp.inf, 0.0, peak_Bx1))
    sum_BxN = jnp.cumsum(mass_BxN, axis=1)
    at_Bxn = (jnp.arange(n)[None] + batch.uniform_B[:, None]) / n * sum_BxN[:, -1:]
    find = jax.vmap(lambda sum_N, at_n: jnp.searchsorted(sum_N, at_n, side="right"))
    column_Bxn = jnp.minimum(find(sum_BxN, at_Bxn), log_share_BxN.shape[1] - 1)
    expected_BxN = n * mass_BxN / jnp.maximum(sum_BxN[:, -1:], 1e-30)
    log_weight_BxN = batch.log_weight_BxN - jnp.log(jnp.maximum(expected_BxN, 1e-30))
    item_BxN = jnp.broadcast_to(batch.negative_BxN, log_share_BxN.shape)
    return batch.replace(
        negative_BxN=jnp.take_along_axis(item_BxN, column_Bxn, axis=1),
        log_weight_BxN=jnp.take_along_axis(log_weight_BxN, column_Bxn, axis=1),
        shared=False,
    )


def _own_score(bound: Model, examples: Examples, target_BxD: jax.Array) -> jax.Array:
    """Scores (B,) for one target per example."""
    return bound.scores(*examples.with_targets(bound, target_BxD[:, None]))[:, 0]


def _scores_of_moved(bound: Model, moved_Bx1xD: jax.Array, row_NxBxD: jax.Array) -> jax.Array:
    """Scores (B, N) of negatives for translated users."""
    score = jax.vmap(lambda row_BxD: bound.closeness(moved_Bx1xD, row_BxD[:, None])[:, 0])
    return score(row_NxBxD).T
