"""Metrics by groups of users and of items: means over users, with confidence intervals."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from hlrcml_jax.ranking import intervals

QUARTILES = (0.0, 0.25, 0.5, 0.75)
SHARES = (0.0, 0.01, 0.1, 0.5, 1.0)  # of the catalogue, by popularity


@dataclasses.dataclass(frozen=True)
class Groups:
    """Means over users in G groups; a group without a value is absent.

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


def by_history(count_B: np.ndarray, value_B: np.ndarray, seed: int) -> Groups:
    """A metric by quartiles of the users' numbers of training items.

    Args:
      count_B: number of training items of each of B users, at least one user.
      value_B: the metric; NaN for users that it excludes.
      seed: of the intervals.
    """
    first_G = np.unique(np.quantile(count_B, QUARTILES).astype(int))
    last_G = np.append(first_G[1:] - 1, count_B.max())
    names = [
        f"{first:,}–{last:,}" if first < last else f"{first:,}"
        for first, last in zip(first_G, last_G, strict=True)
    ]
    group_B = np.searchsorted(first_G, count_B, side="right") - 1
    is_in_BxG = group_B[:, None] == np.arange(len(first_G))[None]
    return _means(names, np.where(is_in_BxG, value_B[:, None], np.nan), seed)


def by_popularity(
    relevant: scipy.sparse.csr_array, item_BxK: np.ndarray, rank_I: np.ndarray, seed: int
) -> Groups:
    """Recall@K of relevant items by their popularity rank, as a share of the catalogue.

    Args:
      relevant: the relevant items of B users, at least one user, (B, I).
      item_BxK: their lists; -1 for unfilled ranks.
      rank_I: popularity rank of each item, 1 for the most popular.
      seed: of the intervals.
    """
    (n_users, n_items), n_groups = relevant.shape, len(SHARES) - 1
    group_I = np.searchsorted(SHARES, (rank_I - 1) / n_items, side="right") - 1
    row_R, item_R = (index_R.astype(np.int64) for index_R in relevant.nonzero())
    key_BxK = np.arange(n_users)[:, None] * n_items + item_BxK
    is_hit_R = np.isin(row_R * n_items + item_R, key_BxK[item_BxK >= 0])
    cell_R = row_R * n_groups + group_I[item_R]
    relevant_C, hits_C = (
        np.bincount(cell_R, weights, n_users * n_groups) for weights in (None, is_hit_R)
    )
    recall_C = np.full(len(relevant_C), np.nan)
    np.divide(hits_C, relevant_C, out=recall_C, where=relevant_C > 0)
    names = [f"{100 * low:.0f}–{100 * high:.0f} %" for low, high in itertools.pairwise(SHARES)]
    return _means(names, recall_C.reshape(n_users, n_groups), seed)


def _means(names: Sequence[str], value_BxG: np.ndarray, seed: int) -> Groups:
    kept_K = np.flatnonzero(np.isfinite(value_BxG).any(axis=0)).tolist()
    value_BxK = value_BxG[:, kept_K]
    mean_K = np.nanmean(value_BxK, axis=0, dtype=float)
    low_K, high_K = intervals.of_means(value_BxK, seed)
    return Groups(tuple(names[group] for group in kept_K), mean_K, low_K, high_K)
