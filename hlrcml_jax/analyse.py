"""Do the relations of a trained model encode categories? (paper, section 4)

Each test interaction has a relation vector. If relations encode preferences for categories, nearby
vectors belong to interactions that match: users who like a category, and items that have it. The
probability of a match is compared with random pairing.
"""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from hlrcml_jax import explain
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model
from hlrcml_jax.ranking.lists import Ranker

TOP_CATEGORIES = 3
BATCH = 512
N_PAIRS = 2000  # test interactions for the memory usage


@dataclasses.dataclass(frozen=True)
class Relations:
    """Relations of N test interactions.

    Attributes:
      user_N: user indices.
      item_N: item indices.
      vector_NxD: the relations.
      shared_N: nonempty sets of the categories that user and item share.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    vector_NxD: np.ndarray
    shared_N: list[frozenset[str]]


def top_categories(dataset: Dataset) -> list[frozenset[str]]:
    """The most frequent categories among each user's training items, by user index."""
    assert dataset.categories is not None
    by_item = [names or () for names in dataset.categories.to_list()]
    by_user = []
    for start, end in zip(dataset.train.indptr, dataset.train.indptr[1:], strict=False):
        items = dataset.train.indices[start:end]
        count = collections.Counter(name for item in items for name in by_item[item])
        # Ties are broken by name, so that the result does not depend on the order of items.
        ordered = sorted(count, key=lambda name: (-count[name], name))
        by_user.append(frozenset(ordered[:TOP_CATEGORIES]))
    return by_user


def relations(
    model: Model, params: dict[str, Any], scorer: Ranker, dataset: Dataset, most: int, seed: int
) -> Relations:
    """Relations of test interactions whose user and item share a category.

    Args:
      model: the model.
      params: host arrays.
      scorer: source of each user's preferences.
      dataset: with categories.
      most: most interactions, chosen at random.
      seed: of the choice.

    Raises:
      UserError: when the data has no categories, or the model no relation.
    """
    if dataset.categories is None:
        raise UserError("the data has no item categories; set data.titles.categories.")
    by_user, by_item = top_categories(dataset), dataset.categories.to_list()
    user_E, item_E = dataset.test.nonzero()
    shared_E = [
        by_user[user].intersection(by_item[item] or ())
        for user, item in zip(user_E, item_E, strict=True)
    ]
    usable_E = np.flatnonzero([bool(shared) for shared in shared_E])
    if len(usable_E) < 2:
        raise UserError(
            "fewer than two test interactions share a category with their user; use data with more "
            "categories or interactions."
        )
    chosen_N = np.sort(np.random.default_rng(seed).permutation(usable_E)[:most])
    user_N, item_N = user_E[chosen_N], item_E[chosen_N]
    vector_NxD = relation_vectors(model, params, scorer, user_N, item_N)
    return Relations(user_N, item_N, vector_NxD, [shared_E[index] for index in chosen_N])


def relation_vectors(
    model: Model, params: dict[str, Any], scorer: Ranker, user_N: np.ndarray, item_N: np.ndarray
) -> np.ndarray:
    """Relations (N, D) of pairs of users and items."""
    return explain.apply_to_pairs(_vectors, model, params, scorer, user_N, item_N)[0]


def _vectors(bound: Model, *arguments) -> jax.Array:
    relation_Bx1xD = bound.relation(*arguments)
    if relation_Bx1xD is None:
        raise UserError(
            f"{type(bound).__name__} has no relations to analyse; train a model that has, see "
            "README.md."
        )
    return relation_Bx1xD[:, 0]


def memory_usage(
    model: Model, params: dict[str, Any], scorer: Ranker, dataset: Dataset
) -> np.ndarray | None:
    """Mean mixture weights (M,) of the relations of test interactions, summing to 1.

    None without a memory, or without test interactions.
    """
    if not model.spec.memory or not dataset.test.nnz:
        return None
    user_E, item_E = dataset.test.nonzero()
    chosen = np.random.default_rng(0).permutation(len(user_E))[:N_PAIRS]
    pairs = user_E[chosen], item_E[chosen]
    weight_NxM = explain.apply_to_pairs(_mixture, model, params, scorer, *pairs)[0]
    weight_M = np.abs(weight_NxM).mean(axis=0)
    return weight_M / weight_M.sum()


def _mixture(bound, *arguments):
    return bound.mixture(*arguments)[:, :, 0]


def nearest(vector_NxD: np.ndarray) -> np.ndarray:
    """Index (N,) of the nearest other vector by cosine, the first of equals.

    Computed in blocks, so that memory is bounded by BATCH x N, and in float64, since relations can
    differ by much less than their mean.
    """
    vector_NxD = vector_NxD.astype(np.float64)
    norm_Nx1 = np.linalg.norm(vector_NxD, axis=1, keepdims=True)
    unit_NxD = vector_NxD / np.maximum(norm_Nx1, 1e-30)
    nearest = []
    for row_B in np.split(np.arange(len(unit_NxD)), range(BATCH, len(unit_NxD), BATCH)):
        cosine_BxN = unit_NxD[row_B] @ unit_NxD.T
        cosine_BxN[np.arange(len(row_B)), row_B] = -np.inf
        nearest.append(np.argmax(cosine_BxN, axis=1))
    return np.concatenate(nearest)


def matching(relations: Relations, seed: int) -> dict[str, dict[str, float]]:
    """Probability that an interaction matches the one with the nearest relation.

    Two interactions match when their `shared_N` overlap.

    Args:
      relations: of test interactions.
      seed: of the random pairing.

    Returns:
      For "all", and for each category (interactions that share it): the probability of a match
      with the `nearest` and with a `random` other interaction, and the number of `interactions`.
    """
    n = len(relations.user_N)
    by_nearest_N = nearest(relations.vector_NxD)
    # Every other interaction is equally likely.
    step_N = np.random.default_rng(seed).integers(1, n, n)
    pairings = {"nearest": by_nearest_N, "random": (np.arange(n) + step_N) % n}
    shared_N = relations.shared_N
    matches = {
        name: np.array([bool(shared_N[a] & shared_N[b]) for a, b in enumerate(other_N)])
        for name, other_N in pairings.items()
    }
    kinds = collections.Counter(name for shared in shared_N for name in shared)
    groups = {"all": np.ones(n, bool)}
    for kind, _ in kinds.most_common():
        groups[kind] = np.array([kind in shared for shared in shared_N])
    return {
        kind: {name: float(match_N[group_N].mean()) for name, match_N in matches.items()}
        | {"interactions": int(group_N.sum())}
        for kind, group_N in groups.items()
    }


def in_two_dimensions(vector_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first two principal components (N, 2), their shares of the variance (2,))."""
    # In float64, since relations can differ by much less than their mean.
    centred_NxD = vector_NxD - vector_NxD.mean(axis=0, dtype=np.float64)
    _, scale_D, axes_DxD = np.linalg.svd(centred_NxD, full_matrices=False)
    return centred_NxD @ axes_DxD[:2].T, scale_D[:2] ** 2 / max(np.sum(scale_D**2), 1e-30)
