"""Metrics by groups of users and of items: means over users, with confidence intervals."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.ranking import intervals
from hlrcml_jax.ranking.evaluation import Evaluation, popularity_ranks

QUARTILES = (0.0, 0.25, 0.5, 0.75)
SHARES = (0.0, 0.01, 0.1, 0.5, 1.0)  # of the catalogue, by popularity


@dataclasses.dataclass(frozen=True)
class Groups:
    """Means over users in G groups; a group without a user is absent.

    Attributes:
      names: of the groups.
      mean_G: over the users who have a value in the group.
      low_G: lower ends of the 95 % confidence intervals, see `intervals.of_means`.
      high_G: upper ends.
    """

    names: tuple[str, ...]
    mean_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray


def by_history(dataset: Dataset, tested: Evaluation, k: int) -> Groups:
    """NDCG@k by quartiles of the users' numbers of training items."""
    count_B = np.diff(dataset.train.indptr)[tested.user_B]
    low_G = np.unique(np.quantile(count_B, QUARTILES).astype(int))
    high_G = np.append(low_G[1:] - 1, count_B.max())
    names = [
        f"{low:,}–{high:,}" if low < high else f"{low:,}"
        for low, high in zip(low_G, high_G, strict=True)
    ]
    is_in_BxG = (count_B[:, None] >= low_G[None]) & (count_B[:, None] <= high_G[None])
    value_BxG = np.where(is_in_BxG, tested.values[f"ndcg@{k}"][:, None], np.nan)
    return _means(names, value_BxG, tested)


def by_popularity(dataset: Dataset, tested: Evaluation, k: int) -> Groups:
    """Recall@k of each user's test items, by their popularity rank as a share of the catalogue."""
    n_users, n_groups = len(tested.user_B), len(SHARES) - 1
    quantile_I = (popularity_ranks(dataset) - 1) / dataset.n_items
    group_I = np.searchsorted(SHARES, quantile_I, side="right") - 1
    row_R, item_R = dataset.test[tested.user_B].nonzero()
    row_R = row_R.astype(np.int64)
    list_BxK = tested.item_BxK[:, :k].astype(np.int64)
    key_BxK = np.arange(n_users)[:, None] * dataset.n_items + list_BxK
    is_hit_R = np.isin(row_R * dataset.n_items + item_R, key_BxK[list_BxK >= 0])
    cell_R = row_R * n_groups + group_I[item_R]
    relevant_C, hits_C = (
        np.bincount(cell_R, weights, n_users * n_groups) for weights in (None, is_hit_R)
    )
    recall_C = np.full(len(relevant_C), np.nan)
    np.divide(hits_C, relevant_C, out=recall_C, where=relevant_C > 0)
    names = [f"{100 * low:.0f}–{100 * high:.0f} %" for low, high in itertools.pairwise(SHARES)]
    return _means(names, recall_C.reshape(n_users, n_groups), tested)


def _means(names: Sequence[str], value_BxG: np.ndarray, tested: Evaluation) -> Groups:
    has_G = np.isfinite(value_BxG).any(axis=0)
    value_BxG = value_BxG[:, has_G]
    mean_G = np.nanmean(value_BxG, axis=0, dtype=float)
    low_G, high_G = intervals.of_means(value_BxG, tested.protocol.seed)
    kept = tuple(name for name, has in zip(names, has_G, strict=True) if has)
    return Groups(kept, mean_G, low_G, high_G)
