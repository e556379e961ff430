"""Explaining recommendations by attention over past items (paper, section 3.2).

The relation of user and item is an attention-weighted sum over the user's preferences; the
attention share of a preference is its weight as a reason.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import polars as pl

from hlrcml_jax import devices, registry
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.frames import item_columns
from hlrcml_jax.models import model_class
from hlrcml_jax.models.base import Model, Past, Users
from hlrcml_jax.models.past import of_rows
from hlrcml_jax.ranking.lists import Ranker

BATCH = 512


def apply_to_pairs(
    function: Callable[..., Any],
    model: Model,
    params: dict[str, Any],
    ranker: Ranker,
    user_N: np.ndarray,
    item_N: np.ndarray,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """(result of a function on pairs of users and items, preferences (N, S), mask (N, S)).

    Args:
      function: called with the bound model and the arguments of its `scores`, one target per user.
      model: the model.
      params: host arrays.
      ranker: source of each user's preferences.
      user_N: user indices.
      item_N: item indices.
    """
    distinct_U, row_N = np.unique(user_N, return_inverse=True)
    prefs_NxS, mask_NxS = (x[row_N] for x in ranker.preferences(distinct_U))
    items_IxD, parts = params["items"], []
    for start in range(0, len(user_N), BATCH):
        size = min(BATCH, devices.padded_size(len(user_N) - start, 8))
        pair_B = np.minimum(np.arange(start, start + size), len(user_N) - 1)
        mask_BxS, prefs_BxSxD = mask_NxS[pair_B], items_IxD[prefs_NxS[pair_B]]
        user_BxD = params["users"][user_N[pair_B]] if "users" in params else None
        rows = (user_BxD, items_IxD[item_N[pair_B]], prefs_BxSxD, mask_BxS)
        parts.append(jax.device_get(_compiled(function, model)(params["model"], *rows)))
    result = jax.tree.map(lambda *x: np.concatenate(x)[: len(user_N)], *parts)
    return result, prefs_NxS, mask_NxS


@functools.lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any], model: Model) -> jax.stages.Wrapped:
    def apply(params, *rows):
        bound = model.bind({"params": params})
        return function(bound, *of_rows(bound, *rows))

    return jax.jit(devices.exact(apply))


def shares(
    bound: Model, users: Users, met: Any, target_Bx1xD: jax.Array, past: Past
) -> dict[str, jax.Array]:
    """Shares (B, S) of each of the model's attentions, by name; see `Attention.shares`."""
    attentions = bound.attention(users, met, target_Bx1xD, past)
    return {name: attended.shares()[:, :, 0] for name, attended in attentions.items()}


@dataclasses.dataclass(frozen=True)
class Reasons:
    """R past items as reasons for pairs of user and item, by pair and then descending share.

    Attributes:
      pair_R: index of the explained pair.
      item_R: item indices of the past items.
      shares: `share` (of the user attention, in [0, 1]) and, for HLR++, `item_share` (of the item
        attention), (R,) each. The rest to 1 is the share of slot 0: the user itself (HLR), or the
        target itself (item attention of HLR++).
    """

    pair_R: np.ndarray
    item_R: np.ndarray
    shares: dict[str, np.ndarray]

    def frame(self, dataset: Dataset) -> pl.DataFrame:
        """`pair`, `reason_item_id`, `reason_title` (if the data has titles), and the shares."""
        columns = item_columns(self.item_R, dataset, "reason_")
        return pl.DataFrame({"pair": self.pair_R.astype(np.uint32), **columns, **self.shares})


def check_attends(model: Model) -> None:
    """Refuses a model without attention, which has no reasons.

    Raises:
      UserError: naming those that have it.
    """
    if not model.spec.attends:
        able = [name for name in registry.MODELS if model_class(name).spec.attends]
        raise UserError(
            f"{type(model).__name__} has no attention, so it cannot explain its recommendations; "
            f"train {', '.join(able)}."
        )


def reasons(
    model: Model,
    params: dict[str, Any],
    ranker: Ranker,
    user_N: np.ndarray,
    item_N: np.ndarray,
    most: int = 0,
) -> Reasons:
    """The past items with the largest attention shares for pairs of user and item.

    Args:
      model: the model.
      params: host arrays.
      ranker: source of each user's preferences.
      user_N: user indices, one per pair.
      item_N: item indices, one per pair.
      most: most reasons per pair; 0 for all.

    Raises:
      UserError: when the model has no attention.
    """
    check_attends(model)
    share_of, prefs_NxS, mask_NxS = apply_to_pairs(shares, model, params, ranker, user_N, item_N)
    # Real past items first, in descending order of share.
    slot_NxS = np.argsort(np.where(mask_NxS, -share_of["share"], np.inf), axis=1, kind="stable")
    kept_NxS = np.take_along_axis(mask_NxS, slot_NxS, axis=1)
    if most:
        slot_NxS, kept_NxS = slot_NxS[:, :most], kept_NxS[:, :most]
    pair_R = np.nonzero(kept_NxS)[0]
    slot_R = slot_NxS[kept_NxS]
    of_shares = {name: share_NxS[pair_R, slot_R] for name, share_NxS in share_of.items()}
    return Reasons(pair_R, prefs_NxS[pair_R, slot_R], of_shares)
