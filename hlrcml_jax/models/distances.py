"""Products and distances of users and targets, and the models that score by distance."""

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax.models.base import Model


def products(user_BxTxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
    """<u, t>, (B, T).

    Args:
      user_BxTxD: user rows per target, or (B, 1, D) for all targets.
      target_BxTxD: target rows per user, or (1, T, D) for all users.
    """
    if are_shared(target_BxTxD) and user_BxTxD.shape[1] == 1:
        return user_BxTxD[:, 0] @ target_BxTxD[0].T
    user_NxD, target_NxD = flat(user_BxTxD, target_BxTxD)
    return jnp.sum(user_NxD * target_NxD, axis=1).reshape(-1, target_BxTxD.shape[1])


def squared(user_BxTxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
    """||u - t||^2, (B, T), arguments as in `products`; a matrix product for shared targets."""
    if are_shared(target_BxTxD) and user_BxTxD.shape[1] == 1:
        user_Bx1 = jnp.sum(jnp.square(user_BxTxD), axis=2)
        target_1xT = jnp.sum(jnp.square(target_BxTxD), axis=2)
        return user_Bx1 + target_1xT - 2.0 * products(user_BxTxD, target_BxTxD)
    user_NxD, target_NxD = flat(user_BxTxD, target_BxTxD)
    return jnp.sum(jnp.square(user_NxD - target_NxD), axis=1).reshape(-1, target_BxTxD.shape[1])


def are_shared(target_BxTxD: jax.Array) -> bool:
    """Whether all users share the targets."""
    return target_BxTxD.shape[0] == 1  # in an export B is symbolic, and len fails


def flat(*arrays: jax.Array) -> list[jax.Array]:
    """Broadcasts arrays (B, T, D), (B, 1, D) or (1, T, D) to the rows (B T, D) of all pairs.

    A middle axis of length 1 would keep XLA from fusing.
    """
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape).reshape(-1, shape[2]) for x in arrays]


def cosine(rows_IxD: np.ndarray, row_T: np.ndarray) -> np.ndarray:
    """Cosines (T, I) of rows `row_T` with all; 0 for a zero row."""
    unit_IxD = rows_IxD / np.maximum(np.linalg.norm(rows_IxD, axis=1, keepdims=True), 1e-30)
    return unit_IxD[row_T] @ unit_IxD.T


class MetricModel(Model):
    """score(u, t) = -||u + relation(u, t) - t||^2.

    Without further methods it is Collaborative Metric Learning; `cml.py` ranks faster.
    """

    def closeness(self, moved_BxTxD, target_BxTxD):
        return -squared(moved_BxTxD, target_BxTxD)

    def item_similarity(self, items_IxD, item_T):
        """Minus the squared distance."""
        items_TxD, square_I = items_IxD[item_T], np.square(items_IxD).sum(axis=1)
        return 2 * items_TxD @ items_IxD.T - square_I[None] - square_I[item_T][:, None]
