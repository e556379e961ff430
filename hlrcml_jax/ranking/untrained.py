"""Vectors of users from the mean of all their items, where training leaves that to be done."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data.dataset import Known

PAIRS_PER_STEP = 100_000  # (user, item) pairs added at a time
FEW_PAIRS = 512
USERS_PER_STEP = 10_000  # whose items are on the host at a time

History = Known | scipy.sparse.csr_array


def embed_untrained_users(
    params: dict[str, Any],
    train: scipy.sparse.csr_array,
    known: History,
    placement: devices.Placement = devices.REPLICATED,
) -> dict[str, Any]:
    """Parameters where users without training interactions have the mean embedding of their items.

    It is zero without items. Users with training interactions keep their embedding.

    Args:
      params: on the devices.
      train: CSR (U, I) of training.
      known: the users' histories, (U, I).
      placement: of the tables.
    """
    new_N = np.flatnonzero(np.diff(train.indptr) == 0).astype(np.int32)
    if not len(new_N):
        return params

    def clear(users_RxD, new_N):
        own_N = placement.own(new_N, len(users_RxD))
        return users_RxD.at[own_N].set(0, mode="drop")

    cleared = params | {"users": devices.pmap(clear)(params["users"], devices.replicate(new_N))}
    return add_means(cleared, new_N, known, _itself, placement)


def add_means(
    params: dict[str, Any],
    user_N: np.ndarray,
    known: History,
    vectors: Callable[[jax.Array], jax.Array],
    placement: devices.Placement = devices.REPLICATED,
) -> dict[str, Any]:
    """Parameters where the mean of their items' vectors is added to the rows of some users.

    Args:
      params: on the devices.
      user_N: the users.
      known: the users' histories, (U, I).
      vectors: from rows of items to vectors as wide as rows of users; compiled once per function.
      placement: of the tables.
    """

    users, step = params["users"], _compiled(vectors, placement)
    for first in range(0, len(user_N), USERS_PER_STEP):
        part_N = user_N[first : first + USERS_PER_STEP].astype(np.int32)
        items_NxI = known[part_N]
        row_P, item_P = items_NxI.nonzero()
        weight_P = 1 / np.diff(items_NxI.indptr)[row_P].astype(np.float32)
        for start in range(0, len(row_P), PAIRS_PER_STEP):
            pairs = [x[start : start + PAIRS_PER_STEP] for x in (part_N[row_P], item_P, weight_P)]
            # Padded with pairs of weight 0.
            size = min(PAIRS_PER_STEP, devices.padded_size(max(len(row_P), FEW_PAIRS), 8))
            pairs = devices.replicate([np.pad(x, (0, size - len(x))) for x in pairs])
            users = step(users, params["items"], *pairs)
    return params | {"users": users}


def _itself(row: jax.Array) -> jax.Array:
    return row


@functools.lru_cache(maxsize=16)
def _compiled(
    vectors: Callable[[jax.Array], jax.Array], placement: devices.Placement
) -> jax.stages.Wrapped:
    def add(users_RxD, items_RxD, user_P, item_P, weight_P):
        vector_PxD = vectors(placement.gather(items_RxD, item_P))
        own_P = placement.own(user_P, len(users_RxD))
        return users_RxD.at[own_P].add(weight_P[:, None] * vector_PxD, mode="drop")

    return devices.pmap(add)
