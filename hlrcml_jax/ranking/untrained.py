"""Users that training never saw: placed among their items, without any training."""

from typing import Any

import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data.dataset import Known

PAIRS = 100_000  # of such users and their items, placed at a time


def place_untrained_users(
    params: dict[str, Any],
    train: scipy.sparse.csr_array,
    known: Known | scipy.sparse.csr_array,
    placement: devices.Placement = devices.REPLICATED,
) -> dict[str, Any]:
    """Parameters with each user that training never saw at the mean of its known items.

    Without any known item that is the origin. Users with training interactions keep their vector.

    Args:
      params: on the devices.
      train: CSR (U, I) of training.
      known: what is known, (U, I).
      placement: of the tables.
    """
    new_N = np.flatnonzero(np.diff(train.indptr) == 0).astype(np.int32)
    if not len(new_N):
        return params

    def begin(users_RxD, new_N):
        own_N = placement.own(new_N, len(users_RxD))
        return users_RxD.at[own_N].set(0, mode="drop")

    def add(users_RxD, items_RxD, user_P, item_P, weight_P):
        rows_PxD = placement.gather(items_RxD, item_P)
        own_P = placement.own(user_P, len(users_RxD))
        return users_RxD.at[own_P].add(weight_P[:, None] * rows_PxD, mode="drop")

    users = devices.pmap(begin)(params["users"], devices.replicate(new_N))
    items_NxI = known[new_N]
    row_P, item_P = items_NxI.nonzero()
    weight_P = 1 / np.diff(items_NxI.indptr)[row_P].astype(np.float32)
    step = devices.pmap(add, donate=(0,))
    for start in range(0, len(row_P), PAIRS):
        # Filled up with what adds nothing, so that all pieces have one shape.
        pairs = [x[start : start + PAIRS] for x in (new_N[row_P], item_P, weight_P)]
        missing = min(PAIRS, len(row_P)) - len(pairs[0])
        pairs = devices.replicate([np.pad(x, (0, missing)) for x in pairs])
        users = step(users, params["items"], *pairs)
    return params | {"users": users}
