"""Factors of users and items, whose inner products an index of nearest neighbours takes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax import devices
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.retrieval import ByVectors
from hlrcml_jax.ranking.lists import Ranker

MOST = 4096  # users at a time


def of_users(
    model: Model, params: dict[str, Any], scorer: Ranker, user_N: np.ndarray
) -> np.ndarray:
    """Factors (N, F) of some users, see `Model.user_factors`.

    Args:
      model: the model.
      params: host arrays, as ranking takes them.
      scorer: of the users' histories.
      user_N: user indices.

    Raises:
      UserError: for a model without factors.
    """
    _check(model)
    parts = []
    for start in range(0, max(len(user_N), 1), MOST):
        part_B = user_N[start : start + MOST]
        padded_B = np.resize(part_B if len(part_B) else 0, devices.padded_size(len(part_B), 8))
        row_BxD = params["users"][padded_B] if "users" in params else None
        if row_BxD is None:
            prefs_BxS, mask_BxS = scorer.preferences(padded_B)
        else:
            prefs_BxS, mask_BxS = (
                np.zeros((len(padded_B), 0), int),
                np.ones((len(padded_B), 0), bool),
            )
        rows = row_BxD, params["items"][prefs_BxS], mask_BxS
        parts.append(np.asarray(_of_users(model, params["model"], *rows))[: len(part_B)])
    return np.concatenate(parts)


def of_items(model: Model, params: dict[str, Any]) -> np.ndarray:
    """Factors (I, F) of all items; arguments as in `of_users`."""
    _check(model)
    return np.asarray(_of_items(model, params["model"], params["items"]))


def _check(model: Model) -> None:
    """Refuses a model without factors, or with those of a class whose closeness it replaces."""
    owner = {
        name: next(cls for cls in type(model).__mro__ if name in vars(cls))
        for name in ("closeness", "user_factors", "item_factors")
    }
    own = {owner["user_factors"], owner["item_factors"]} - {Model}
    is_replaced = not any(issubclass(cls, owner["closeness"]) for cls in own)
    if not own or is_replaced or model.spec.rows_are_histories:
        raise UserError(f"{type(model).__name__} has no factors: its scores are no inner products.")


@functools.partial(jax.jit, static_argnums=0)
@devices.exact
def _of_users(model, model_params, row_BxD, past_BxSxD, mask_BxS):
    bound = ByVectors(model).bind({"params": model_params})
    past_BxSxD = jnp.where(mask_BxS[:, :, None], bound.embed(past_BxSxD), 0.0)
    user_BxD = bound.represent(None, past_BxSxD, mask_BxS) if row_BxD is None else row_BxD
    return model.user_factors(bound.users(user_BxD, past_BxSxD, mask_BxS)["user_BxD"])


@functools.partial(jax.jit, static_argnums=0)
def _of_items(model, model_params, items_IxD):
    return model.item_factors(model.bind({"params": model_params}).embed(items_IxD))
