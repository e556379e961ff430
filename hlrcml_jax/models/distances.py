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
    return _over_dims(jnp.multiply, user_BxTxD, target_BxTxD)


def squared(user_BxTxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
    """||u - t||^2, (B, T), arguments as in `products`; a matrix product for shared targets."""
    if are_shared(target_BxTxD) and user_BxTxD.shape[1] == 1:
        user_Bx1 = jnp.sum(jnp.square(user_BxTxD), axis=2)
        target_1xT = jnp.sum(jnp.square(target_BxTxD), axis=2)
        return user_Bx1 + target_1xT - 2.0 * products(user_BxTxD, target_BxTxD)
    return _over_dims(lambda a, b: jnp.square(a - b), user_BxTxD, target_BxTxD)


def are_shared(target_BxTxD: jax.Array) -> bool:
    """Whether all users share the targets."""
    return target_BxTxD.shape[0] == 1  # in an export B is symbolic, and len fails


def _over_dims(function, user_BxTxD, target_BxTxD):
    """The sum of a function of two numbers over the D of each pair, (B, T)."""
    if target_BxTxD.shape[1] == 1:  # an axis of one between the others would keep XLA from fusing
        return jnp.sum(function(user_BxTxD[:, 0], target_BxTxD[:, 0]), axis=1, keepdims=True)
    return jnp.sum(function(user_BxTxD, target_BxTxD), axis=2)


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

    def user_factors(self, user_BxD):
        """2 <u, t> - ||t||^2 is the closeness plus ||u||^2."""
        return jnp.pad(2.0 * user_BxD, ((0, 0), (0, 1)), constant_values=-1.0)

    def item_factors(self, target_TxD):
        square_Tx1 = jnp.sum(jnp.square(target_TxD), axis=1, keepdims=True)
        return jnp.concatenate([target_TxD, square_Tx1], axis=1)

    def item_similarity(self, items_IxD, item_T):
        """Minus the squared distance."""
        items_TxD, square_I = items_IxD[item_T], np.square(items_IxD).sum(axis=1)
        return 2 * items_TxD @ items_IxD.T - square_I[None] - square_I[item_T][:, None]
