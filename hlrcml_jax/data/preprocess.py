"""From a table of raw interactions to distinct positives with contiguous ids."""

import dataclasses

import numpy as np
import polars as pl

from hlrcml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Positives:
    """E distinct (user, item) pairs, sorted by user and item.

    Attributes:
      user_E: contiguous user numbers.
      item_E: contiguous item numbers.
      time_E: when, in the file's unit, or None.
      user_ids: the original id of each user number, ascending.
      item_ids: the original id of each item number, ascending.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series


def positives(
    table: pl.DataFrame,
    threshold: float | None = None,
    min_per_user: int = 0,
    min_per_item: int = 0,
) -> Positives:
    """Binarises at the threshold, removes duplicates and reduces to the n-core.

    Args:
      table: what `readers.read_interactions` gives.
      threshold: the least value of a positive; None keeps every row.
      min_per_user: the least number of interactions of a user that is kept.
      min_per_item: the same of an item; both hold together (the fixpoint).

    Of several interactions of one pair the earliest counts.

    Raises:
      UserError: a threshold without values, or nothing left.
    """
    table = above(table, threshold)
    by = ["user", "item", "time"] if "time" in table.columns else ["user", "item"]
    table = table.select(by).sort(by).unique(["user", "item"], keep="first", maintain_order=True)
    user_ids, user_E = number(table["user"])
    item_ids, item_E = number(table["item"])
    keep_E = core(user_E, item_E, min_per_user, min_per_item)
    if not keep_E.any():
        raise UserError(
            f"no interaction is left of {len(keep_E)} when each user needs "
            f"data.min_per_user={min_per_user} and each item data.min_per_item={min_per_item}; "
            "lower them."
        )
    kept_users, user_E = np.unique(user_E[keep_E], return_inverse=True)
    kept_items, item_E = np.unique(item_E[keep_E], return_inverse=True)
    return Positives(
        user_E.astype(np.int32),
        item_E.astype(np.int32),
        table["time"].to_numpy()[keep_E] if "time" in table.columns else None,
        user_ids.gather(kept_users),
        item_ids.gather(kept_items),
    )


def above(table: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    """The rows whose value reaches the threshold."""
    if threshold is None:
        return table
    if "value" not in table.columns:
        raise UserError(
            f"data.threshold is {threshold} but the file has no column of values; set "
            "data.columns.value, or data.threshold=None."
        )
    kept = table.filter(pl.col("value") >= threshold)
    if kept.is_empty():
        raise UserError(
            f"no value reaches data.threshold={threshold}; the largest is {table['value'].max()}."
        )
    return kept


def number(ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """(distinct ids in ascending order, the place of each id among them)."""
    distinct = ids.unique().sort()
    places = pl.DataFrame({"id": distinct}).with_row_index("place")
    joined = pl.DataFrame({"id": ids}).join(places, on="id", how="left", maintain_order="left")
    return distinct, joined["place"].to_numpy()


def core(user_E: np.ndarray, item_E: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Mask (E,) of the largest subset in which every user and item keeps its minimum."""
    keep_E = np.ones(len(user_E), bool)
    while True:
        users = np.bincount(user_E[keep_E], minlength=1 + user_E.max(initial=0))
        items = np.bincount(item_E[keep_E], minlength=1 + item_E.max(initial=0))
        fewer_E = keep_E & (users[user_E] >= min_user) & (items[item_E] >= min_item)
        if fewer_E.sum() == keep_E.sum():
            return fewer_E
        keep_E = fewer_E
