"""The memory of latent relations (paper, section 3).

The relation of two vectors is read from M slots, rel(a, b) = softmax((a * b) A) V, and a hierarchy
of relations is a weighted sum of such reads. Every relation is thus a mixture of the M value rows
and is represented by its mixture weights (`_M`); the D-dimensional vector is never built. With
q = V x, <rel, x> = weights . q.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hlrcml_jax.models.distances import are_shared


class RelationMemory(nn.Module):
    """M slots of keys A (D, M) and values V (M, D).

    Initialised from N(0, 1/D), times the scales. With rows in a unit ball, the paper's keys
    make all initial mixture weights almost equal; a value scale of 0 starts training as CML.
    """

    dim: int
    slots: int
    key_scale: float
    value_scale: float

    def setup(self) -> None:
        def init(scale):
            return nn.initializers.normal(stddev=scale * self.dim**-0.5)

        self.keys_DxM = self.param("keys", init(self.key_scale), (self.dim, self.slots))
        self.values_MxD = self.param("values", init(self.value_scale), (self.slots, self.dim))

    def weights(self, a_BxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
        """Mixture weights (B, M, T) of rel(a, t), for targets per user or shared, (1, T, D)."""
        if are_shared(target_BxTxD):  # one matrix product for every pair
            keyed_DxMxT = self.keys_DxM[:, :, None] * target_BxTxD[0].T[:, None]
            return jax.nn.softmax(jnp.tensordot(a_BxD, keyed_DxMxT, axes=1), axis=1)
        product_NxD = (a_BxD[:, None] * target_BxTxD).reshape(-1, self.dim)
        weights_NxM = jax.nn.softmax(product_NxD @ self.keys_DxM)
        return jnp.swapaxes(weights_NxM.reshape(*target_BxTxD.shape[:2], self.slots), 1, 2)

    def slot_weights(self, slots_BxSxD: jax.Array, b_BxD: jax.Array) -> jax.Array:
        """Mixture weights (B, S, M) of rel(s, b) for the S slots of each example."""
        return jax.nn.softmax((slots_BxSxD * b_BxD[:, None]) @ self.keys_DxM)

    def relate(self, past: jax.Array, target: jax.Array) -> jax.Array:
        """Mixture weights of rel(p, t): (X, M, T) or (B, S, M), see `Related`."""
        if past.ndim == 2:
            return self.weights(past, target[None])
        if target.shape[1] > 1:
            keyed_BxMxTxD = self.keys_DxM.T[None, :, None] * target[:, None]
            return jax.nn.softmax(jnp.einsum("bmtd,bsd->bmts", keyed_BxMxTxD, past), axis=1)
        return self.slot_weights(past, target[:, 0])

    def query(self, x: jax.Array) -> jax.Array:
        """V x, the inner products with the value rows: (..., D) to (..., M)."""
        return x @ self.values_MxD.T

    def pulls(self, weights: jax.Array, target: jax.Array) -> jax.Array:
        """<rel(p, t), t> from the weights of `relate`: (X, T), (B, S) or (B, S, T)."""
        query = self.query(target)
        if target.ndim == 2:
            return jnp.einsum("xmt,tm->xt", weights, query)
        if weights.ndim == 3:
            return jnp.einsum("bsm,bm->bs", weights, query[:, 0])
        # For one user and many targets, XLA takes ten times as long for a sum of products.
        return jnp.einsum("bmts,btm->bst", weights, query)

    def read(self, mixture_BxMxT: jax.Array) -> jax.Array:
        """Relations (B, T, D) from their mixture weights."""
        b, m, t = mixture_BxMxT.shape
        mixture_NxM = jnp.swapaxes(mixture_BxMxT, 1, 2).reshape(b * t, m)
        return (mixture_NxM @ self.values_MxD).reshape(b, t, self.dim)
