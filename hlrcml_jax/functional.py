"""Pure functions for your own training loop: parameters, batches, loss, step and scores.

The parts that `main` puts together, for one device and under any `jax.jit`.

Examples:
  This trains HLR on a sparse matrix (users, items) for three epochs, and scores four users against
  all items:

  >>> import functools, jax, numpy as np, scipy.sparse
  >>> from hlrcml_jax import functional as F
  >>> from hlrcml_jax.models.hlr import HLR
  >>> interactions = scipy.sparse.csr_array(np.random.default_rng(0).random((30, 50)) < 0.2)
  >>> model = HLR(dim=8, memory_slots=4)
  >>> objective = F.Objective(functools.partial(F.hinge, margin=0.5))
  >>> optimizer = F.make_optimizer(1e-2, F.row_radii(clip_norm=1.0))
  >>> params = F.init_params(jax.random.key(0), model, *interactions.shape, dim=8)
  >>> state = F.init_state(params, optimizer)
  >>> step = jax.jit(functools.partial(F.train_step, model, objective, optimizer))
  >>> sampler = F.make_sampler(interactions, max_prefs=5, candidates=2)
  >>> for epoch in range(3):
  ...     for batch in F.batches(sampler, jax.random.key(epoch), batch_size=100):
  ...         state, loss = step(state, batch)
  >>> prefs_BxS, mask_BxS = F.preferences(sampler, jax.random.key(9), np.arange(4))
  >>> F.scores(model, state.params, np.arange(4), np.arange(50), prefs_BxS, mask_BxS).shape
  (4, 50)

A `Batch` has the indices of B examples: a user, an item of the user (the positive), N sampled items
(the negatives), and up to S other items of the user (the preferences), with a mask; examples of
weight 0 are padding. Parameters, states and batches are trees of arrays, so that optax, orbax and
the transformations of jax apply to them.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax import arguments, devices
from hlrcml_jax.errors import UserError, quoted
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import TablePast
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.interactions import Positives
from hlrcml_jax.training.losses import hinge, logistic, softmax
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import make_optimizer, row_radii
from hlrcml_jax.training.sampling import Sampler, draw_batch, evaluation_preferences
from hlrcml_jax.training.step import (
    TrainState,
    apply_gradients,
    constants_of,
    init_params,
    init_state,
    widen,
)

__all__ = [
    "Batch",
    "Objective",
    "Sampler",
    "TrainState",
    "batches",
    "constants_of",
    "hinge",
    "init_params",
    "init_state",
    "logistic",
    "make_optimizer",
    "make_sampler",
    "preferences",
    "row_radii",
    "scores",
    "softmax",
    "train_step",
    "widen",
]


def make_sampler(
    interactions: scipy.sparse.csr_array, max_prefs: int = 0, candidates: int = 1, **how: Any
) -> Sampler:
    """A sampler of batches, on the device.

    Args:
      interactions: boolean CSR (U, I), column indices ascending in each row.
      max_prefs: S, preferences of an example; 0 for a model that uses none.
      candidates: N, negatives of an example.
      **how: further attributes of `Sampler`.
    """
    if not scipy.sparse.issparse(interactions) or interactions.format != "csr":
        raise UserError(f"interactions is {quoted(interactions)}; it takes a matrix in CSR format.")
    max_prefs = arguments.count("max_prefs", max_prefs, least=0)
    candidates = arguments.count("candidates", candidates)
    known = [field.name for field in dataclasses.fields(Sampler)]
    if unknown := set(how) - set(known):
        raise UserError(f"a Sampler has no {quoted(min(unknown))}; it has {', '.join(known)}.")
    return jax.device_put(Sampler.of(interactions, max_prefs, candidates=candidates, **how))


def batches(sampler: Sampler, key: jax.Array, batch_size: int) -> Iterator[Batch]:
    """The batches of an epoch: each interaction once as a positive, in shuffled order.

    The last batch is padded with examples of weight 0.

    Args:
      sampler: of the interactions.
      key: of this epoch; the same key gives the same batches.
      batch_size: B.
    """
    _check("sampler", sampler, Sampler)
    _check_key(key)
    return _batches(sampler, key, arguments.count("batch_size", batch_size))


def _batches(sampler: Sampler, key: jax.Array, batch_size: int) -> Iterator[Batch]:
    known = sampler.known
    positives = Positives(known.users(), known.item_E, known.first, known.start_U1[-1], known.total)
    for step in range(math.ceil(known.total / batch_size)):
        index_B = step * batch_size + jnp.arange(batch_size)
        yield _draw(sampler, positives, key, index_B, step)


_draw = jax.jit(draw_batch)


def preferences(
    sampler: Sampler, key: jax.Array, user_B: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Preferences (B, S) of users for scoring, and their mask (B, S); no item is excluded."""
    _check("sampler", sampler, Sampler)
    _check_key(key)
    _check_array("user_B", user_B, 1, jnp.integer)
    return evaluation_preferences(sampler, key, jnp.asarray(user_B), jnp.asarray(user_B))


def train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    constants: dict[str, jax.Array] | None = None,
) -> tuple[TrainState, jax.Array]:
    """One update of all parameters; (new state, loss of the batch).

    Args:
      model: the model.
      objective: the loss of a batch.
      optimizer: of the parameters.
      state: before the update.
      batch: the examples.
      constants: of the epoch (`constants_of`), if the model has any.
    """
    _check("model", model, Model)
    _check("objective", objective, Objective)
    _check("optimizer", optimizer, optax.GradientTransformation)
    _check("state", state, TrainState)
    _check("batch", batch, Batch)
    if constants is not None:
        _check("constants", constants, dict)
    loss, gradients = jax.value_and_grad(objective, argnums=1)(
        model, state.params, batch, constants
    )
    return apply_gradients(state, optimizer, gradients), loss


def scores(
    model: Model,
    params: dict[str, Any],
    user_B: np.ndarray | jax.Array,
    item_T: np.ndarray | jax.Array,
    prefs_BxS: np.ndarray | jax.Array,
    mask_BxS: np.ndarray | jax.Array,
) -> jax.Array:
    """Scores (B, T) of users and items, higher is better.

    Holds the relations of T items with all items at once, (I, M, T); `ranking.scorer.Scorer` ranks
    the full catalogue in bounded memory.

    Args:
      model: the model.
      params: its parameters, with its constants (`widen`), if it has any.
      user_B: user indices.
      item_T: item indices.
      prefs_BxS: preferences of each user, (B, 0) for a model that uses none.
      mask_BxS: True where a preference is real.
    """
    _check("model", model, Model)
    _check("params", params, dict)
    if not {"items", "model"} <= set(params):
        raise UserError("params have no 'items' and 'model'; they are made by init_params.")
    _check_array("user_B", user_B, 1, jnp.integer)
    _check_array("item_T", item_T, 1, jnp.integer)
    _check_array("prefs_BxS", prefs_BxS, 2, jnp.integer)
    _check_array("mask_BxS", mask_BxS, 2, jnp.bool_)
    if not len(user_B) == len(prefs_BxS) == len(mask_BxS) or prefs_BxS.shape != mask_BxS.shape:
        shapes = [x.shape for x in (user_B, prefs_BxS, mask_BxS)]
        raise UserError(f"user_B, prefs_BxS and mask_BxS do not match: {quoted(shapes)}.")
    return _scores(model, params, user_B, item_T, prefs_BxS, mask_BxS)


def _check(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{name} is {quoted(value)}; it takes a {kind.__name__}.")


def _check_array(name: str, value: Any, ndim: int, kind: type) -> None:
    is_array = isinstance(value, np.ndarray | jax.Array)
    if not is_array or value.ndim != ndim or not jnp.issubdtype(value.dtype, kind):
        wanted = f"an array of {ndim} axes and of type {kind.__name__}"
        raise UserError(f"{name} is {quoted(value)}; it takes {wanted}.")


def _check_key(key: Any) -> None:
    is_array = isinstance(key, jax.Array)
    is_new = is_array and not key.shape and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_new and not (is_array and key.shape == (2,) and key.dtype == jnp.uint32):
        raise UserError(f"key is {quoted(key)}; it takes one key, as jax.random.key(0).")


@functools.partial(jax.jit, static_argnums=0)
@devices.exact
def _scores(model, params, user_B, item_T, prefs_BxS, mask_BxS) -> jax.Array:
    bound = model.bind({"params": params["model"]})
    items_IxD = bound.embed(params["items"])
    past_BxSxD = jnp.where(mask_BxS[:, :, None], items_IxD[prefs_BxS], 0.0)
    row_BxD = params["users"][user_B] if "users" in params else None
    user_BxD = bound.represent(row_BxD, past_BxSxD, mask_BxS)
    users = bound.users(user_BxD, past_BxSxD, mask_BxS)
    target_1xTxD = items_IxD[item_T][None]
    past = TablePast(bound.relate(items_IxD, target_1xTxD[0]), mask_BxS, items_IxD, prefs_BxS)
    return bound.scores(users, bound.meet(users, target_1xTxD), target_1xTxD, past)
