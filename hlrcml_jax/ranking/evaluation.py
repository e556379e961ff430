"""Full-ranking evaluation: metrics per user, summarised over cohorts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax.data.dataset import Dataset, count_items
from hlrcml_jax.ranking import intervals, metrics
from hlrcml_jax.ranking.lists import Ranker
from hlrcml_jax.ranking.metrics import Protocol, Summary, smallest
from hlrcml_jax.training.interactions import UserItems


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of the evaluated users.

    Attributes:
      user_B: user indices, in the order of the cohorts.
      values: (B,) values by "metric@k"; NaN for users that the metric excludes.
      overall: "median_rank@k" and "coverage@k" over all lists.
      item_BxK: the lists, K the largest cut-off, at most I; -1 for unfilled ranks.
      protocol: of the evaluation.
    """

    user_B: np.ndarray
    values: dict[str, np.ndarray]
    overall: dict[str, float]
    item_BxK: np.ndarray
    protocol: Protocol

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """The k of the protocol that have users; all of them if none has."""
        reached = [k for k in self.protocol.cutoffs if self.n_users(k)]
        return tuple(reached) or self.protocol.cutoffs

    def n_users(self, k: int) -> int:
        """Number of users with enough relevant items for metrics at k."""
        value_B = self.values.get(metrics.metric_name("recall", k), np.empty(0))
        return int(np.isfinite(value_B).sum())

    def means(self) -> dict[str, float]:
        """Mean over users of each metric; metrics without a user are absent."""
        return {
            name: float(np.nanmean(value_B, dtype=float))
            for name, value_B in self.values.items()
            if np.isfinite(value_B).any()
        }

    def summary(self, against: "Evaluation | None" = None) -> Summary:
        """Each metric as `mean` over users, its 95 % confidence interval `low` to `high`, and more.

        `sd_over_cohorts` is the standard deviation between the means of the cohorts, as in the
        paper, and `p` that of a paired test against the evaluation of another model on the same
        users. Metrics without a user are absent; those of all lists have a `mean` alone.
        """
        means = self.means()
        if not means:
            return {name: {"mean": value} for name, value in self.overall.items()}
        value_BxN = np.stack([self.values[name] for name in means], axis=1).astype(float)
        low_N, high_N = intervals.of_means(value_BxN, self.protocol.seed)
        n_cohorts = min(self.protocol.n_cohorts, len(self.user_B))
        table = {}
        for column, (name, mean) in enumerate(means.items()):
            cohorts = np.array_split(value_BxN[:, column], n_cohorts)
            measured = [np.nanmean(value_N) for value_N in cohorts if np.isfinite(value_N).any()]
            table[name] = {
                "mean": mean,
                "low": float(low_N[column]),
                "high": float(high_N[column]),
                "sd_over_cohorts": float(np.std(measured)),
            }
            if against is not None:
                table[name]["p"] = intervals.p_value(self.values[name], against.values[name])
        return table | {name: {"mean": value} for name, value in self.overall.items()}


def choose_users(
    relevant: scipy.sparse.csr_array, protocol: Protocol, cutoffs: Sequence[int] | None = None
) -> np.ndarray:
    """User indices to evaluate: with enough relevant items, shuffled, truncated to the cohorts."""
    cutoffs = cutoffs or protocol.cutoffs
    count_U = np.diff(relevant.indptr)
    user_B = np.flatnonzero(count_U >= (protocol.min_test_items or smallest(cutoffs)))
    np.random.default_rng(protocol.seed).shuffle(user_B)
    return user_B[: protocol.n_cohorts * protocol.cohort_size]


def evaluate(
    scorer: Ranker,
    params: dict[str, Any],
    dataset: Dataset,
    part: str,
    protocol: Protocol,
    cutoffs: Sequence[int] | None = None,
    most_users: int = 0,
    candidates: int = 0,
) -> Evaluation:
    """Ranks the catalogue for each user with items in a part, and computes the metrics.

    Args:
      scorer: with the histories `dataset.known(part)`.
      params: on the devices.
      dataset: the interactions.
      part: "valid" or "test".
      protocol: choice of users and definitions of metrics.
      cutoffs: overrides the protocol's.
      most_users: most users, the first of the cohorts; 0 for all.
      candidates: of each user, see `Scorer.rank`; 0 for all items.
    """
    cutoffs = tuple(cutoffs or protocol.cutoffs)
    relevant = getattr(dataset, part)
    user_B = choose_users(relevant, protocol, cutoffs)
    user_B = user_B[:most_users] if most_users else user_B
    # A list holds no more than the catalogue.
    longest = dataset.n_items if 0 in cutoffs else min(max(cutoffs), dataset.n_items)
    kept = min(max(cutoffs), dataset.n_items)
    by_k = protocol.min_test_items == 0
    longest_row = int(np.diff(relevant.indptr).max(initial=1))
    values: list[dict[str, np.ndarray]] = []
    lists = [np.empty((0, kept), np.int32)]
    own = metrics.custom_metrics(protocol.metrics)
    for ranking in scorer.rank(params, user_B, longest, candidates=candidates):
        rows = UserItems.rows(relevant[ranking.user_C], longest_row)
        rows, items = jax.device_put((rows, ranking.item_CxK))
        measured = _measure(rows, items, cutoffs, protocol.definitions, by_k, own)
        values.append(jax.device_get(measured))
        # Only the top of a full ranking is kept, to bound memory.
        lists.append(ranking.item_CxK[:, :kept])
    joined = {}
    if values:
        joined = {name: np.concatenate([chunk[name] for chunk in values]) for name in values[0]}
    item_BxK = np.concatenate(lists)
    overall = _overall(item_BxK, dataset, cutoffs) if values else {}
    return Evaluation(user_B, joined, overall, item_BxK, protocol)


def _measure_lists(relevant, item_BxK, cutoffs, definitions, by_k, own):
    def is_hit(row, item):
        return relevant.find(row, item)[1]

    row_B = jnp.arange(len(item_BxK))
    hits_BxK = jax.vmap(jax.vmap(is_hit, in_axes=(None, 0)))(row_B, item_BxK)
    relevant_B = jax.vmap(relevant.count)(row_B)
    values = {}
    for k in cutoffs:
        enough_B = relevant_B >= (k or smallest(cutoffs))
        at_k = metrics.user_metrics(hits_BxK.astype(float), relevant_B, (k,), definitions, own)
        for name, value_B in at_k.items():
            values[name] = jnp.where(enough_B, value_B, jnp.nan) if by_k else value_B
    return values


_measure = jax.jit(_measure_lists, static_argnums=(2, 3, 4, 5))


def popularity_ranks(dataset: Dataset) -> np.ndarray:
    """Popularity rank (I,) of each item by training interactions; 1 is the most popular."""
    rank_I = np.empty(dataset.n_items, np.int64)
    order_I = np.argsort(-count_items(dataset.train), kind="stable")
    rank_I[order_I] = 1 + np.arange(dataset.n_items)
    return rank_I


def _overall(item_BxK: np.ndarray, dataset: Dataset, cutoffs) -> dict[str, float]:
    rank_I = popularity_ranks(dataset)
    overall = {}
    for k in filter(None, cutoffs):
        overall[f"median_rank@{k}"] = metrics.median_rank(item_BxK[:, :k], rank_I)
        overall[f"coverage@{k}"] = metrics.coverage(item_BxK[:, :k], dataset.n_items)
    return overall
