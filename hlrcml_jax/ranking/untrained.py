"""Embeddings of users without training interactions: the mean of their items'."""

from typing import Any

import numpy as np
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.data.dataset import Known

PAIRS_PER_STEP = 100_000  # (user, item) pairs added at a time


def embed_untrained_users(
    params: dict[str, Any],
    train: scipy.sparse.csr_array,
    known: Known | scipy.sparse.csr_array,
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

    def add(users_RxD, items_RxD, user_P, item_P, weight_P):
        rows_PxD = placement.gather(items_RxD, item_P)
        own_P = placement.own(user_P, len(users_RxD))
        return users_RxD.at[own_P].add(weight_P[:, None] * rows_PxD, mode="drop")

    users = devices.pmap(clear)(params["users"], devices.replicate(new_N))
    items_NxI = known[new_N]
    row_P, item_P = items_NxI.nonzero()
    weight_P = 1 / np.diff(items_NxI.indptr)[row_P].astype(np.float32)
    step = devices.pmap(add, donate=(0,))
    for start in range(0, len(row_P), PAIRS_PER_STEP):
        # Padded with pairs of weight 0, so that all steps have one shape.
        pairs = [x[start : start + PAIRS_PER_STEP] for x in (new_N[row_P], item_P, weight_P)]
        missing = min(PAIRS_PER_STEP, len(row_P)) - len(pairs[0])
        pairs = devices.replicate([np.pad(x, (0, missing)) for x in pairs])
        users = step(users, params["items"], *pairs)
    return params | {"users": users}
