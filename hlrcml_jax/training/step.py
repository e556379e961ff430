"""The train state, the pure train step, and the epoch as one scanned call.

These functions are mapped over devices by `devices.pmap`; each device takes its part of every
batch and gradients are summed, so that the result does not depend on the number of devices.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from hlrcml_jax import devices
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import own_scores
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.interactions import Positives, UserItems
from hlrcml_jax.training.objective import Objective, Rows, widen_rows
from hlrcml_jax.training.optimizer import distinct, put_rows, take_rows
from hlrcml_jax.training.sampling import Sampler, draw_batch


class TrainState(flax.struct.PyTreeNode):
    """The state of a run, as saved in checkpoints.

    Attributes:
      params: `users` (U, D), `items` (I, D) and the `model`'s own parameters.
      opt_state: of the optimizer.
      epoch: completed epochs.
      best: best value of the early-stopping metric, higher is better; see `improves`.
      best_epoch: the epoch that gave it, 0 before the first validation.
    """

    params: dict[str, Any]
    opt_state: optax.OptState
    epoch: jax.Array
    best: jax.Array
    best_epoch: jax.Array


def init_params(
    key: jax.Array, model: Model, n_users: int, n_items: int, dim: int, user_vectors: bool = True
) -> dict[str, Any]:
    """Initial tables and model parameters.

    Without `user_vectors` there is no table `users`: users are represented by their items.
    """
    user_key, item_key, model_key = jax.random.split(key, 3)
    items_IxD = model.init_rows(item_key, n_items, dim)
    users_UxD = model.init_users(user_key, n_users, dim)
    wide = 2 if model.spec.constants else 1
    user_1xD, item_1xD = (jnp.zeros((1, wide * x.shape[1])) for x in (users_UxD, items_IxD))
    rows = (user_1xD, item_1xD, item_1xD[None], jnp.ones((1, 1), bool))
    variables = model.init(model_key, *rows, method=own_scores)
    params = {"items": items_IxD, "model": variables.get("params", {})}
    return {"users": users_UxD} | params if user_vectors else params


def init_state(params: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first epoch."""
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        epoch=jnp.zeros((), jnp.int32),
        best=jnp.array(-jnp.inf),
        best_epoch=jnp.zeros((), jnp.int32),
    )


def apply_gradients(
    state: TrainState, optimizer: optax.GradientTransformation, gradients: dict[str, Any]
) -> TrainState:
    """The state after an update of its parameters."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state)


def steps_per_epoch(n_positives: int, batch_size: int) -> int:
    """Steps per epoch; the last batch may be partly padding."""
    return math.ceil(n_positives / batch_size)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The static part of training: model, objective, optimizer and batch size.

    Attributes:
      model: the model.
      objective: the loss of a batch.
      optimizer: of the parameters.
      batch_size: positives per step, over all devices.
      rows: "dense" updates all rows of the tables in every step (exact Adam); "lazy" only those
        that the batch touches, with their moments.
      placement: of the tables; sharded ones need lazy rows.
      block_bytes: bytes of preference rows in a block of examples; None: as suits the device.
    """

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    rows: str = "dense"
    placement: devices.Placement = devices.REPLICATED
    block_bytes: float | None = None

    def without_relation(self) -> "Trainer":
        """The same for a model whose relation has a gate of zero: all negatives enter the loss."""
        return dataclasses.replace(
            self,
            model=self.model.without_relation(),
            objective=dataclasses.replace(self.objective, sampled=0),
        )

    def train_step(
        self, state: TrainState, batch: Batch, constants: dict[str, jax.Array] | None = None
    ) -> tuple[TrainState, jax.Array]:
        """One update from this device's part of a batch; (new state, loss of the whole batch).

        With lazy rows, the step works on small tables of the rows that the whole batch touches.
        """
        constants = constants or {}
        if self.rows == "dense":
            return self._update(state, batch, constants)
        touched, batch = self._touched_rows(state.params, batch)
        few = take_rows(state, touched).replace(params=self._take_rows(state.params, touched))
        few, loss = self._update(few, batch, take_rows(constants, touched))
        return put_rows(state, touched, few), loss

    def _touched_rows(self, params, batch):
        """As `touched_rows`, with row indices in this device's shard of the tables."""
        tables = {name: table for name, table in params.items() if name != "model"}
        n_rows = {name: self.placement.n_rows(table) for name, table in tables.items()}
        touched, batch = touched_rows(batch, n_rows)
        own = {name: self.placement.own(rows, len(tables[name])) for name, rows in touched.items()}
        return own, batch

    def _take_rows(self, params, touched):
        """Parameters with only these rows of the tables, whichever device has them."""
        return self.placement.sum_tables(take_rows(params, touched))

    def _update(self, state, batch, constants):
        loss, gradients = devices.psum(self.gradients(state.params, batch, constants))
        return apply_gradients(state, self.optimizer, gradients), loss

    def gradients(
        self, params: dict[str, Any], batch: Batch, constants: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Loss of a batch and its gradient, in blocks of examples that stay in cache.

        In a block the derivative is taken with respect to gathered rows, and added in place to the
        gradients of the tables, so that no array has the preferences of more than a block.
        """
        if batch.shared:
            batch = self.objective.choose(self.model, params, batch, constants)
        n_blocks = self._n_blocks(batch, params)
        if n_blocks == 1:
            loss_and_gradients = jax.value_and_grad(self.objective, argnums=1)
            return loss_and_gradients(self.model, params, batch, constants)
        loss_and_gradients = jax.value_and_grad(self._loss_of_rows, argnums=(0, 1))

        def add_block(carry, block):
            loss, (tables, model) = carry
            block = self.objective.choose(self.model, params, block, constants)
            rows = Rows.of(params, block)
            block_loss, of_block = loss_and_gradients(rows, params["model"], block, constants)
            of_rows, of_model = of_block
            model = jax.tree.map(jnp.add, model, of_model)
            return (loss + block_loss, (of_rows.add_to(tables, block), model)), None

        tables = jax.tree.map(jnp.zeros_like, params)
        model = tables.pop("model")
        blocks = split_batch(batch, n_blocks)
        nothing = (jnp.zeros(()), (tables, model))
        (loss, (tables, model)), _ = jax.lax.scan(add_block, nothing, blocks)
        return loss, tables | {"model": model}

    def _n_blocks(self, batch, params) -> int:
        in_one = batch.shared or batch.prefs_BxS.shape[1] == 0
        if in_one:
            return 1
        floats = batch.prefs_BxS.size * params["items"].shape[1]
        block_bytes = self.block_bytes or devices.training_block_bytes()
        return max(1, round(4 * floats / block_bytes))

    def _loss_of_rows(self, rows, model_params, batch, constants):
        rows = widen_rows(rows, constants, lambda wide: Rows.of(wide, batch))
        return self.objective.of_rows(self.model, model_params, rows, batch)

    def train_epoch(
        self, state: TrainState, sampler: Sampler, positives: Positives, key_data: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        """One pass over all positives in shuffled order; (new state, loss of each step).

        The key is passed as key data: arrays of keys cannot span several processes.
        """
        epoch_key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.epoch)
        constants = constants_of(self.model, state.params, sampler.known)

        def step(state, batch):
            return self.train_step(state, batch, constants)

        state, loss_T = self._scan(step, state, sampler, positives, epoch_key)
        return state.replace(epoch=state.epoch + 1), loss_T

    def mean_loss(
        self, params: dict[str, Any], sampler: Sampler, positives: Positives, key_data: jax.Array
    ) -> jax.Array:
        """Mean loss per example over all positives, without updates."""
        key = jax.random.wrap_key_data(key_data)
        constants = constants_of(self.model, params, sampler.known)

        def step(carry, batch):
            few = params
            if self.placement.parts:
                touched, batch = self._touched_rows(params, batch)
                few = self._take_rows(params, touched)
            return carry, devices.psum(self.objective(self.model, few, batch, constants))

        _, loss_T = self._scan(step, 0, sampler, positives, key)
        return jnp.sum(loss_T) / positives.total

    def _scan(self, step, carry, sampler, positives, epoch_key):
        n = positives.total
        share = math.ceil(self.batch_size / devices.device_count())
        first = devices.index() * share
        sharded = sampler.known.sharded
        offset_B = (
            jnp.arange(share * devices.device_count()) if sharded else first + jnp.arange(share)
        )

        def draw_and_step(carry, step_index):
            # If the batch does not divide evenly, the last device pads with indices past the end.
            index_B = step_index * self.batch_size + offset_B
            index_B = jnp.where(offset_B < self.batch_size, index_B, n)
            batch = draw_batch(sampler, positives, epoch_key, index_B, step_index)
            return step(carry, part_of_batch(batch, first, share) if sharded else batch)

        return jax.lax.scan(draw_and_step, carry, jnp.arange(steps_per_epoch(n, self.batch_size)))


def touched_rows(batch: Batch, n_rows: dict[str, int]) -> tuple[dict[str, jax.Array], Batch]:
    """The rows of the tables that the batches of all devices touch, see `optimizer.distinct`.

    Args:
      batch: of this device.
      n_rows: of `items`, and of `users` if there is such a table.

    Returns:
      (rows of `users` and `items`, this device's batch re-indexed into those rows).
    """
    real_B = batch.weight_B > 0
    real_Bx1 = real_B[:, None]
    candidates = True if batch.shared else real_Bx1
    used = {
        "users": {"user_B": real_B},
        "items": {
            "positive_B": real_B,
            "negative_BxN": jnp.broadcast_to(candidates, batch.negative_BxN.shape),
            "prefs_BxS": real_Bx1 & batch.mask_BxS,
        },
    }
    touched, fields = {}, {}
    for table, n in n_rows.items():
        # Padding touches no row: its index is past the end.
        masks = used[table].items()
        rows = {name: jnp.where(mask, getattr(batch, name), n) for name, mask in masks}
        row_N, to_fields = jax.flatten_util.ravel_pytree(rows)
        row_A = devices.all_gather(row_N).reshape(-1)
        touched[table], index_A = distinct(row_A, n)
        first = devices.index() * len(row_N)
        fields |= to_fields(jax.lax.dynamic_slice_in_dim(index_A, first, len(row_N)))
    return touched, batch.replace(**fields)


def part_of_batch(batch: Batch, first: jax.Array, size: int) -> Batch:
    """Examples first, ..., first + size - 1 of a batch; shared negatives stay."""
    shared_1xN = batch.negative_BxN
    own = batch.replace(negative_BxN=batch.positive_B) if batch.shared else batch
    part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), own)
    return part.replace(negative_BxN=shared_1xN) if batch.shared else part


def split_batch(batch: Batch, n: int) -> Batch:
    """The batch with a leading axis of n blocks to scan over, padded with weight 0."""
    size = math.ceil(len(batch.user_B) / n)
    missing = n * size - len(batch.user_B)

    def split(x):
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(n, size, *x.shape[1:])

    return jax.tree.map(split, batch)


def constants_of(model: Model, params: dict[str, Any], known: UserItems) -> dict[str, jax.Array]:
    """The model's constants from the tables and the training interactions."""
    tables = {name: table for name, table in params.items() if name != "model"}
    return model.constants(tables, known.users(), known.item_E)


def widen(model: Model, params: dict[str, Any], known: UserItems) -> dict[str, Any]:
    """Parameters with the model's constants appended to the rows of the tables."""
    constants = constants_of(model, params, known)
    widened = {name: jnp.concatenate([params[name], constants[name]], 1) for name in constants}
    return params | widened


def improves(state: TrainState, value: float, epoch: int, least: float = 0.0) -> TrainState:
    """The state after a validation: `best` and `best_epoch` are updated if the value is better.

    Args:
      state: before it.
      value: higher is better.
      epoch: of the value.
      least: by which share of the best the value must be better.
    """
    value, best = float(np.float32(value)), float(np.ravel(state.best)[0])  # as it is kept
    if not value > (best + least * abs(best) if np.isfinite(best) else best):
        return state
    return state.replace(
        best=jnp.full_like(state.best, value),
        best_epoch=jnp.full_like(state.best_epoch, epoch),
    )
