"""Why an item is recommended: the past items that a model attends to (paper, section 3.2).

The relation of user and item is a sum over the user's preferences, weighed by an attention; a
preference's share of that attention is its part in the reasons.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import polars as pl

from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.frames import named
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import Examples, from_items
from hlrcml_jax.ranking.scorer import Scorer

BATCH = 512


def of_pairs(
    function: Callable[..., Any],
    model: Model,
    params: dict[str, Any],
    scorer: Scorer,
    user_N: np.ndarray,
    item_N: np.ndarray,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """(what a function gives for pairs of users and items, preferences (N, S), their mask).

    Args:
      function: of the bound model and the arguments of its `scores`, for one target of each user.
      model: the model.
      params: host arrays.
      scorer: gives each user's preferences.
      user_N: user numbers.
      item_N: item numbers.
    """
    distinct_N, place_N = np.unique(user_N, return_inverse=True)
    prefs_NxS, mask_NxS = (x[place_N] for x in scorer.preferences(distinct_N))
    items_IxD, parts = params["items"], []
    for start in range(0, len(user_N), BATCH):
        # Filled up, so that there are few different shapes.
        size = min(BATCH, 1 << (len(user_N) - start - 1).bit_length())
        place_B = np.minimum(np.arange(start, start + size), len(user_N) - 1)
        mask_BxS, prefs_BxSxD = mask_NxS[place_B], items_IxD[prefs_NxS[place_B]]
        if "users" in params:
            user_BxD = params["users"][user_N[place_B]]
        else:
            user_BxD = from_items(prefs_BxSxD, mask_BxS)
        rows = (user_BxD, items_IxD[item_N[place_B]], prefs_BxSxD, mask_BxS)
        parts.append(jax.device_get(_compiled(function, model)(params["model"], *rows)))
    found = jax.tree.map(lambda *x: np.concatenate(x)[: len(user_N)], *parts)
    return found, prefs_NxS, mask_NxS


@functools.lru_cache(maxsize=16)
def _compiled(function, model: Model):
    def of_rows(params, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        bound = model.bind({"params": params})
        examples = Examples.of(bound, user_BxD, prefs_BxSxD, mask_BxS)
        return function(bound, *examples.with_target(bound, target_BxD))

    return jax.jit(of_rows)


def shares(bound: Model, *arguments) -> dict[str, jax.Array]:
    """Shares (B, S) of each of the model's attentions; see `Attention.shares`."""
    attentions = bound.attention(*arguments)
    return {name: attended.shares()[:, :, 0] for name, attended in attentions.items()}


def reasons(
    model: Model,
    params: dict[str, Any],
    scorer: Scorer,
    user_N: np.ndarray,
    item_N: np.ndarray,
    user_ids: pl.Series,
    dataset: Dataset,
    most: int = 0,
) -> pl.DataFrame:
    """The past items that speak for some recommendations.

    Args:
      model: the model.
      params: host arrays.
      scorer: gives each user's preferences.
      user_N: user numbers, one a pair.
      item_N: item numbers.
      user_ids: by user number.
      dataset: for item ids and titles.
      most: reasons for each pair; 0 for all.

    Returns:
      `user_id`, `item_id`, `title`, `reason_item_id`, `reason_title`, `share` (of the user
      attention, in [0, 1]) and of HLR++ `item_share` (of the item attention); the largest share
      first. What is missing of 1 is the share of the user itself (HLR) or of the item itself (the
      item attention of HLR++). Titles are there where the data has some.

    Raises:
      UserError: when the model attends to nothing.
    """
    if not model.spec.attends:
        raise UserError(
            f"{type(model).__name__} has no attention, so it cannot explain its recommendations; "
            "train hlr, hlr++, hlr-r or adacml."
        )
    found, prefs_NxS, mask_NxS = of_pairs(shares, model, params, scorer, user_N, item_N)
    pair_R, slot_R = np.nonzero(mask_NxS)
    columns = {"user_id": user_ids.gather(user_N[pair_R]), **named(item_N[pair_R], dataset)}
    columns |= named(prefs_NxS[pair_R, slot_R], dataset, "reason_")
    columns |= {name: share_NxS[pair_R, slot_R] for name, share_NxS in found.items()}
    table = pl.DataFrame({"pair": pair_R, **columns})
    table = table.sort("pair", "share", descending=[False, True], maintain_order=True)
    return (table.group_by("pair", maintain_order=True).head(most) if most else table).drop("pair")
