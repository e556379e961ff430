"""Ranking metrics as pure functions of hits.

`hits_BxK` is 1.0 where the item at a user's rank is relevant, else 0.0, and `relevant_B` is the
number of the user's relevant items, at least one. An unfilled rank is a miss. No metric is a matrix
product, which accelerators round to a few bits. There are two sets of
definitions: `standard` is trec_eval's, `paper` that of the paper's own program.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax import custom

Summary = dict[str, dict[str, float]]  # by metric, see `Evaluation.summary`


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How users are chosen and metrics defined.

    Attributes:
      cutoffs: the k of every metric; 0 for the full ranking.
      definitions: "standard" or "paper".
      min_test_items: users with fewer relevant items are excluded; 0 excludes, at each k, users
        with fewer than k (for the full ranking, than the smallest k).
      n_cohorts: cohorts of users for the standard deviation.
      cohort_size: most users in a cohort.
      seed: of the shuffle into cohorts.
      metrics: dotted paths of custom metrics.
    """

    cutoffs: tuple[int, ...]
    definitions: str
    min_test_items: int
    n_cohorts: int
    cohort_size: int
    seed: int
    metrics: tuple[str, ...] = ()


def smallest(cutoffs: Sequence[int]) -> int:
    """The smallest k above 0, or 1 without any."""
    return min((k for k in cutoffs if k), default=1)


def shown(cutoffs: Sequence[int]) -> int:
    """The k that tables show: 10 if it is a cut-off, else the smallest."""
    return 10 if 10 in cutoffs else smallest(cutoffs)


def dcg(hits_BxK: jax.Array, k: int) -> jax.Array:
    """DCG@k = sum over ranks r <= k of hit_r / log2(r + 1)."""
    hits_Bxk = hits_BxK[:, :k]
    rank_1xk = 1.0 + jnp.arange(hits_Bxk.shape[1])[None]
    return jnp.sum(hits_Bxk / jnp.log2(1.0 + rank_1xk), axis=1)


def ideal_dcg(relevant_B: jax.Array, k: int) -> jax.Array:
    """DCG@k of a list with all relevant items first."""
    rank_1xk = jnp.arange(k)[None]
    return dcg(jnp.where(rank_1xk < relevant_B[:, None], 1.0, 0.0), k)


def ndcg(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """nDCG@k = DCG@k / ideal DCG@k over the relevant items.

    Examples:
      >>> round(float(ndcg(jnp.array([[0.0, 1.0]]), jnp.array([1]), 2)[0]), 4)
      0.6309
    """
    return dcg(hits_BxK, k) / ideal_dcg(relevant_B, _length(hits_BxK, k))


def _length(hits_BxK: jax.Array, k: int) -> int:
    """Length of the first k of a list: one that is shorter than k holds all items."""
    return min(k, hits_BxK.shape[1])


def ndcg_local(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """nDCG@k against the ideal order of the list's own hits; NaN (excluded) without a hit.

    As in the paper's program, the hits are those of the whole list of K items.
    """
    hits_B = jnp.sum(hits_BxK, axis=1)
    ideal_B = ideal_dcg(jnp.maximum(hits_B, 1), _length(hits_BxK, k))
    return jnp.where(hits_B > 0, dcg(hits_BxK, k) / ideal_B, jnp.nan)


def precision(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """P@k = hits among the first k / k."""
    return jnp.sum(hits_BxK[:, :k], axis=1) / k


def recall(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """R@k = hits among the first k / relevant items."""
    return jnp.sum(hits_BxK[:, :k], axis=1) / relevant_B


def hit_rate(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """1 if any of the first k is a hit."""
    return jnp.max(hits_BxK[:, :k], axis=1)


def sum_of_precisions(hits_BxK: jax.Array, k: int) -> jax.Array:
    """Sum over the hits' ranks r <= k of P@r."""
    hits_Bxk = hits_BxK[:, :k]
    rank_1xk = 1.0 + jnp.arange(hits_Bxk.shape[1])[None]
    return jnp.sum(hits_Bxk * jnp.cumsum(hits_Bxk, axis=1) / rank_1xk, axis=1)


def average_precision(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """AP@k = sum over the hits' ranks r <= k of P@r / relevant items."""
    return sum_of_precisions(hits_BxK, k) / relevant_B


def average_precision_by_k(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """The paper's AP@k: the same sum, divided by k."""
    return sum_of_precisions(hits_BxK, k) / k


def reciprocal_rank(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """RR@k = 1 / rank of the first hit, or 0."""
    hits_Bxk = hits_BxK[:, :k]
    rank_1xk = 1.0 + jnp.arange(hits_Bxk.shape[1])[None]
    return jnp.max(hits_Bxk / rank_1xk, axis=1)


def reciprocal_ranks(hits_BxK: jax.Array, relevant_B: jax.Array, k: int) -> jax.Array:
    """The paper's RR@k: the sum of 1 / rank over all hits."""
    hits_Bxk = hits_BxK[:, :k]
    rank_1xk = 1.0 + jnp.arange(hits_Bxk.shape[1])[None]
    return jnp.sum(hits_Bxk / rank_1xk, axis=1)


Metric = Callable[[jax.Array, jax.Array, int], jax.Array]

_SETS: dict[str, dict[str, Metric]] = {
    "standard": {
        "ndcg": ndcg,
        "map": average_precision,
        "mrr": reciprocal_rank,
        "precision": precision,
        "recall": recall,
        "hit_rate": hit_rate,
    },
    "paper": {
        "ndcg": ndcg,
        "ndcg_local": ndcg_local,
        "map": average_precision_by_k,
        "mrr": reciprocal_ranks,
        "precision": precision,
        "recall": recall,
        "hit_rate": recall,
    },
}


def metric_name(name: str, k: int) -> str:
    """ "metric@k", or "metric@all" for k = 0."""
    return f"{name}@{k or 'all'}"


def custom_metrics(paths: Sequence[str]) -> tuple[tuple[str, Metric], ...]:
    """(name, metric) of each custom metric, by its dotted path."""
    key = "evaluation.metrics"
    return tuple((custom.name_of(path), custom.bind(key, path, {})) for path in paths)


def user_metrics(
    hits_BxK: jax.Array,
    relevant_B: jax.Array,
    cutoffs: Sequence[int],
    definitions: str,
    own: Sequence[tuple[str, Metric]] = (),
) -> dict[str, jax.Array]:
    """Every metric at every cut-off for each user.

    Args:
      hits_BxK: 1.0 where the item at that rank is relevant.
      relevant_B: number of relevant items, at least 1.
      cutoffs: the k; K is at least the largest k, or the list holds all items; 0 is the full list,
        named "all".
      definitions: "standard" or "paper".
      own: (name, metric) of custom metrics.

    Returns:
      {"metric@k": values (B,)}.
    """
    return {
        metric_name(name, k): metric(hits_BxK, relevant_B, k or hits_BxK.shape[1])
        for k in cutoffs
        for name, metric in (*_SETS[definitions].items(), *own)
    }


def median_rank(recommended: np.ndarray, rank_I: np.ndarray) -> float:
    """Median popularity rank over the distinct recommended items (the paper's MMR).

    Args:
      recommended: item indices in any shape; negative for unfilled ranks.
      rank_I: popularity rank of each item, 1 for the most popular.
    """
    return float(np.median(rank_I[np.unique(recommended[recommended >= 0])]))


def coverage(recommended: np.ndarray, n_items: int) -> float:
    """Share of the catalogue that is recommended to anyone."""
    return len(np.unique(recommended[recommended >= 0])) / n_items
