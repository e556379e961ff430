"""What the relations of a trained model mean (paper, section 4: analysis of the relations).

The relation of each test interaction is a vector. If relations mean something, those that are close
to each other belong to interactions of one kind: to users who like a category and items that have
it. The share of interactions for which that holds is compared with pairing them at random.
"""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax import explain
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.base import Model
from hlrcml_jax.ranking.lists import Ranker

TOP_CATEGORIES = 3
BATCH = 512
N_PAIRS = 2000  # test interactions whose relations show how the memory is used


@dataclasses.dataclass(frozen=True)
class Relations:
    """Relations of N test interactions.

    Attributes:
      user_N: user numbers.
      item_N: item numbers.
      vector_NxD: the relations.
      shared_N: the categories that user and item have in common, none of them empty.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    vector_NxD: np.ndarray
    shared_N: list[frozenset[str]]


def top_categories(dataset: Dataset) -> list[frozenset[str]]:
    """The categories that are most frequent among each user's training items."""
    assert dataset.categories is not None
    by_item = [names or () for names in dataset.categories.to_list()]
    found = []
    for start, end in zip(dataset.train.indptr, dataset.train.indptr[1:], strict=False):
        items = dataset.train.indices[start:end]
        count = collections.Counter(name for item in items for name in by_item[item])
        # Equally frequent ones go by name, so that the result does not depend on an order.
        ordered = sorted(count, key=lambda name: (-count[name], name))
        found.append(frozenset(ordered[:TOP_CATEGORIES]))
    return found


def relations(
    model: Model, params: dict[str, Any], scorer: Ranker, dataset: Dataset, most: int, seed: int
) -> Relations:
    """Relations of test interactions whose user and item have a category in common.

    Args:
      model: the model.
      params: of one device.
      scorer: gives each user's preferences.
      dataset: with categories.
      most: at most so many, chosen at random.
      seed: of the choice.

    Raises:
      UserError: without categories, or when the model has no relation.
    """
    if dataset.categories is None:
        raise UserError("the data has no categories of items; set data.titles.categories.")
    by_user, by_item = top_categories(dataset), dataset.categories.to_list()
    user_E, item_E = dataset.test.nonzero()
    shared_E = [
        by_user[user].intersection(by_item[item] or ())
        for user, item in zip(user_E, item_E, strict=True)
    ]
    usable_E = np.flatnonzero([bool(shared) for shared in shared_E])
    if len(usable_E) < 2:
        raise UserError("fewer than two test interactions have a category of their user.")
    chosen_N = np.sort(np.random.default_rng(seed).permutation(usable_E)[:most])
    user_N, item_N = user_E[chosen_N], item_E[chosen_N]
    vector_NxD = relation_vectors(model, params, scorer, user_N, item_N)
    return Relations(user_N, item_N, vector_NxD, [shared_E[place] for place in chosen_N])


def relation_vectors(
    model: Model, params: dict[str, Any], scorer: Ranker, user_N: np.ndarray, item_N: np.ndarray
) -> np.ndarray:
    """The vectors (N, D) that move users towards items."""
    return explain.of_pairs(_vectors, model, params, scorer, user_N, item_N)[0]


def _vectors(bound: Model, *arguments) -> jax.Array:
    relation_Bx1xD = bound.relation(*arguments)
    if relation_Bx1xD is None:
        raise UserError(f"{type(bound).__name__} has no relations to analyse.")
    return relation_Bx1xD[:, 0]


def memory_usage(
    model: Model, params: dict[str, Any], scorer: Ranker, dataset: Dataset
) -> np.ndarray | None:
    """Mean mixture weights (M,) of the relations of test interactions, with a sum of 1.

    None without a memory or test interactions.
    """
    if not model.spec.memory or not dataset.test.nnz:
        return None
    user_E, item_E = dataset.test.nonzero()
    chosen = np.random.default_rng(0).permutation(len(user_E))[:N_PAIRS]
    pairs = user_E[chosen], item_E[chosen]
    weight_NxM = explain.of_pairs(_mixture, model, params, scorer, *pairs)[0]
    weight_M = np.abs(weight_NxM).mean(axis=0)
    return weight_M / weight_M.sum()


def _mixture(bound, *arguments):
    return bound.mixture(*arguments)[:, :, 0]


def nearest(vector_NxD: np.ndarray) -> np.ndarray:
    """For each vector the other one with the largest cosine, (N,), the first of equals.

    Blocks of rows against all, so that memory is bounded by BATCH x N.
    """
    norm_Nx1 = np.linalg.norm(vector_NxD, axis=1, keepdims=True)
    unit_NxD = jnp.asarray(vector_NxD / np.maximum(norm_Nx1, 1e-30))

    @jax.jit
    def block(row_B):
        cosine_BxN = unit_NxD[row_B] @ unit_NxD.T
        others_BxN = row_B[:, None] != jnp.arange(len(unit_NxD))[None]
        return jnp.argmax(jnp.where(others_BxN, cosine_BxN, -jnp.inf), axis=1)

    n = len(vector_NxD)
    starts = range(0, n, BATCH)
    rows = (np.minimum(np.arange(start, start + BATCH), n - 1) for start in starts)
    return np.concatenate([block(row_B) for row_B in rows])[:n]


def matching(found: Relations, seed: int) -> dict[str, dict[str, float]]:
    """Probabilities that an interaction's nearest relation is of the same kind.

    Two interactions match when the categories that user and item have in common overlap.

    Args:
      found: the relations.
      seed: of the random pairing.

    Returns:
      For "all", and for each category (the interactions that share it), the share of matches
      with the `nearest` relation and with a `random` other one, and the number of interactions.
    """
    n = len(found.user_N)
    by_nearest_N = nearest(found.vector_NxD)
    # Any other interaction, all equally likely.
    step_N = np.random.default_rng(seed).integers(1, n, n)
    pairings = {"nearest": by_nearest_N, "random": (np.arange(n) + step_N) % n}
    shared_N = found.shared_N
    matches = {
        name: np.array([bool(shared_N[a] & shared_N[b]) for a, b in enumerate(other_N)])
        for name, other_N in pairings.items()
    }
    kinds = collections.Counter(name for shared in found.shared_N for name in shared)
    groups = {"all": np.ones(n, bool)}
    for kind, _ in kinds.most_common():
        groups[kind] = np.array([kind in shared for shared in found.shared_N])
    return {
        kind: {name: float(match_N[group_N].mean()) for name, match_N in matches.items()}
        | {"interactions": int(group_N.sum())}
        for kind, group_N in groups.items()
    }


def in_two_dimensions(vector_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components, (N, 2), and their shares of the variance."""
    # In float64, since relations may differ by much less than their mean.
    centred_NxD = vector_NxD - vector_NxD.mean(axis=0, dtype=np.float64)
    _, scale_D, axes_DxD = np.linalg.svd(centred_NxD, full_matrices=False)
    return centred_NxD @ axes_DxD[:2].T, scale_D[:2] ** 2 / max(np.sum(scale_D**2), 1e-30)
