"""Why an item is recommended: the past items that a model attends to (paper, section 3.2).

The relation of user and item is a sum over the user's preferences, weighed by an attention; a
preference's share of that attention is its part in the reasons.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.frames import named
from hlrcml_jax.models.base import Model, Past, Users
from hlrcml_jax.models.past import Examples, from_items
from hlrcml_jax.ranking.lists import Ranker

BATCH = 512


def of_pairs(
    function: Callable[..., Any],
    model: Model,
    params: dict[str, Any],
    ranker: Ranker,
    user_N: np.ndarray,
    item_N: np.ndarray,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """(what a function gives for pairs of users and items, preferences (N, S), their mask).

    Args:
      function: of the bound model and the arguments of its `scores`, for one target of each user.
      model: the model.
      params: host arrays.
      ranker: gives each user's preferences.
      user_N: user numbers.
      item_N: item numbers.
    """
    distinct_N, place_N = np.unique(user_N, return_inverse=True)
    prefs_NxS, mask_NxS = (x[place_N] for x in ranker.preferences(distinct_N))
    items_IxD, parts = params["items"], []
    for start in range(0, len(user_N), BATCH):
        # Filled up, so that there are few different shapes.
        size = min(BATCH, 1 << (len(user_N) - start - 1).bit_length())
        place_B = np.minimum(np.arange(start, start + size), len(user_N) - 1)
        mask_BxS, prefs_BxSxD = mask_NxS[place_B], items_IxD[prefs_NxS[place_B]]
        if "users" in params:
            user_BxD = params["users"][user_N[place_B]]
        else:
            user_BxD = from_items(prefs_BxSxD, jnp.asarray(mask_BxS))
        rows = (user_BxD, items_IxD[item_N[place_B]], prefs_BxSxD, mask_BxS)
        parts.append(jax.device_get(_compiled(function, model)(params["model"], *rows)))
    found = jax.tree.map(lambda *x: np.concatenate(x)[: len(user_N)], *parts)
    return found, prefs_NxS, mask_NxS


@functools.lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any], model: Model) -> jax.stages.Wrapped:
    def of_rows(params, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        bound = model.bind({"params": params})
        examples = Examples.of(bound, user_BxD, prefs_BxSxD, mask_BxS)
        return function(bound, *examples.with_target(bound, target_BxD))

    return jax.jit(of_rows)


def shares(
    bound: Model, users: Users, met: Any, target_Bx1xD: jax.Array, past: Past
) -> dict[str, jax.Array]:
    """Shares (B, S) of each of the model's attentions; see `Attention.shares`."""
    attentions = bound.attention(users, met, target_Bx1xD, past)
    return {name: attended.shares()[:, :, 0] for name, attended in attentions.items()}


@dataclasses.dataclass(frozen=True)
class Reasons:
    """Past items that speak for some recommendations, by pair and then the largest share.

    Attributes:
      pair_R: which pair of user and item each is for.
      item_R: the past items, as item numbers.
      shares: `share` (of the user attention, in [0, 1]) and of HLR++ `item_share` (of the item
        attention), (R,) each. What is missing of 1 is the share of the user itself (HLR) or of the
        item itself (the item attention of HLR++).
    """

    pair_R: np.ndarray
    item_R: np.ndarray
    shares: dict[str, np.ndarray]

    def frame(self, dataset: Dataset) -> pl.DataFrame:
        """`pair`, `reason_item_id`, `reason_title` (where the data has titles), and the shares."""
        columns = named(self.item_R, dataset, "reason_")
        return pl.DataFrame({"pair": self.pair_R.astype(np.uint32), **columns, **self.shares})


def reasons(
    model: Model,
    params: dict[str, Any],
    ranker: Ranker,
    user_N: np.ndarray,
    item_N: np.ndarray,
    most: int = 0,
) -> Reasons:
    """The past items that speak for some recommendations.

    Args:
      model: the model.
      params: host arrays.
      ranker: gives each user's preferences.
      user_N: user numbers, one a pair.
      item_N: item numbers.
      most: reasons for each pair; 0 for all.

    Raises:
      UserError: when the model has no attention.
    """
    if not model.spec.attends:
        raise UserError(
            f"{type(model).__name__} has no attention, so it cannot explain its recommendations; "
            "train hlr, hlr++, hlr-r or adacml."
        )
    found, prefs_NxS, mask_NxS = of_pairs(shares, model, params, ranker, user_N, item_N)
    # Real past items first, the largest share first among them.
    slot_NxS = np.argsort(np.where(mask_NxS, -found["share"], np.inf), axis=1, kind="stable")
    kept_NxS = np.take_along_axis(mask_NxS, slot_NxS, axis=1)
    if most:
        slot_NxS, kept_NxS = slot_NxS[:, :most], kept_NxS[:, :most]
    pair_R = np.nonzero(kept_NxS)[0]
    slot_R = slot_NxS[kept_NxS]
    of_shares = {name: share_NxS[pair_R, slot_R] for name, share_NxS in found.items()}
    return Reasons(pair_R, prefs_NxS[pair_R, slot_R], of_shares)
