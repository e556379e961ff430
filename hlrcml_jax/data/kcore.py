"""From a table of interactions to distinct positives by user and item index."""

import dataclasses

import numpy as np
import polars as pl

from hlrcml_jax.data.account import EMPTY, Account, Counts
from hlrcml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Positives:
    """E distinct (user, item) pairs, sorted by user and item.

    Attributes:
      user_E: user indices.
      item_E: item indices.
      time_E: times, in the file's unit, or None.
      user_ids: original ids by user index, ascending.
      item_ids: original ids by item index, ascending.
      account: what duplicates and the n-core took away.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series
    account: Account = EMPTY


def positives(table: pl.DataFrame, min_per_user: int = 0, min_per_item: int = 0) -> Positives:
    """Removes duplicates and reduces to the n-core.

    Args:
      table: as returned by `readers.read_interactions`.
      min_per_user: least interactions of a user that is kept.
      min_per_item: least interactions of an item; both hold jointly (the fixpoint).

    Of repeated interactions of a pair, the earliest is kept.

    Raises:
      UserError: when nothing is left.
    """
    user_ids, user_E = index_ids(table["user"])
    item_ids, item_E = index_ids(table["item"])
    pairs = pl.DataFrame({"user": user_E, "item": item_E})
    if "time" in table.columns:
        pairs = pairs.with_columns(table["time"])
    pairs = pairs.sort(pairs.columns)
    repeated = (pl.col("user") == pl.col("user").shift()) & (
        pl.col("item") == pl.col("item").shift()
    )
    pairs = pairs.filter(~repeated.fill_null(False))
    found = Counts(len(user_E), len(user_ids), len(item_ids))
    distinct = dataclasses.replace(found, rows=len(pairs))
    user_E, item_E = pairs["user"].to_numpy(), pairs["item"].to_numpy()
    kept_E = core(user_E, item_E, min_per_user, min_per_item)
    if not len(kept_E):
        raise UserError(
            f"no interaction is left of {len(user_E)} when each user needs "
            f"data.min_per_user={min_per_user} and each item data.min_per_item={min_per_item}; "
            "lower them."
        )
    kept_users, user_E = _reindex(user_E[kept_E])
    kept_items, item_E = _reindex(item_E[kept_E])
    left = Counts(len(user_E), len(kept_users), len(kept_items))
    n_core = f"data.min_per_user={min_per_user} and data.min_per_item={min_per_item}"
    account = EMPTY.step("merging duplicates", found, distinct).step(n_core, distinct, left)
    return Positives(
        user_E,
        item_E,
        pairs["time"].to_numpy()[kept_E] if "time" in pairs.columns else None,
        user_ids.gather(kept_users),
        item_ids.gather(kept_items),
        account,
    )


def index_ids(ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """(distinct ids in ascending order, index (E,) of each id among them as int32)."""
    if ids.dtype == pl.Categorical:
        _, code_E = _reindex(ids.to_physical().to_numpy())
        by_code = pl.DataFrame({"text": ids.unique()}).sort(pl.col("text").to_physical())
        texts = by_code["text"].cast(pl.String)
        order_U = texts.arg_sort().to_numpy()
        index_U = np.empty(len(order_U), np.int32)
        index_U[order_U] = np.arange(len(order_U))
        return texts.gather(order_U), index_U[code_E]
    distinct = ids.unique().sort()
    indices = pl.DataFrame({"id": distinct, "index": np.arange(len(distinct), dtype=np.int32)})
    joined = pl.DataFrame({"id": ids}).join(indices, on="id", how="left", maintain_order="left")
    return distinct, joined["index"].to_numpy()


def _reindex(index_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices that occur, ascending; the new index (E,) of each among them)."""
    occurs = np.bincount(index_E).astype(bool)
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[index_E]


def core(user_E: np.ndarray, item_E: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Ascending indices of the n-core: the largest subset with enough of every user and item."""
    kept_E = np.arange(len(user_E))
    while len(kept_E):
        enough_U = np.bincount(user_E) >= min_user
        enough_I = np.bincount(item_E) >= min_item
        enough_E = enough_U[user_E] & enough_I[item_E]
        if enough_E.all():
            break
        kept_E, user_E, item_E = kept_E[enough_E], user_E[enough_E], item_E[enough_E]
    return kept_E
