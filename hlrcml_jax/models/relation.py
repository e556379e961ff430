"""The latent relation memory and the attention over relations (paper, section 3).

The relation of two vectors is read from a memory of M slots,

    rel(a, b) = softmax((a * b) A) V,

and a hierarchy of relations is an attention-weighted sum of such reads. Every relation is
therefore a mixture of the M value rows, so this module carries the mixture weights (`_M`)
and leaves the D-dimensional vector unbuilt: with q = V x, the product <rel, x> is weights . q.

Axes are batch, slots, memory and then any targets: `BxSxM` for one target an example,
`BxSxMxT` for a block of T targets shared by the batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RelationMemory(nn.Module):
    """M slots of keys A (D, M) and values V (M, D), drawn from N(0, 1/D)."""

    dim: int
    slots: int

    def setup(self):
        init = nn.initializers.normal(stddev=self.dim**-0.5)
        self.keys_DxM = self.param("keys", init, (self.dim, self.slots))
        self.values_MxD = self.param("values", init, (self.slots, self.dim))

    def weights(self, a_D: jax.Array, b_D: jax.Array) -> jax.Array:
        """Mixture weights of rel(a, b): (..., D) and (..., D) of one rank to (..., M)."""
        return jax.nn.softmax((a_D * b_D) @ self.keys_DxM)

    def block_weights(self, a_BxD: jax.Array, target_TxD: jax.Array) -> jax.Array:
        """Mixture weights of rel(a, t) for every pair: one matrix product to (B, M, T)."""
        keyed_DxMxT = self.keys_DxM[:, :, None] * target_TxD.T[:, None, :]
        logits_BxMxT = jnp.tensordot(a_BxD, keyed_DxMxT, axes=1)
        return jax.nn.softmax(logits_BxMxT, axis=1)

    def query(self, x_BxD: jax.Array) -> jax.Array:
        """V x, (B, M): the inner product of x with each value row."""
        return x_BxD @ self.values_MxD.T

    def read(self, weights_BxM: jax.Array) -> jax.Array:
        """The relation itself, (B, D), from its mixture weights (B, M)."""
        return weights_BxM @ self.values_MxD


def attend(
    slots_BxSxM: jax.Array, query_BxM: jax.Array, mask_BxS: jax.Array, beta: float = 1.0
) -> jax.Array:
    """Attention-weighted sum of relations, in mixture form (paper, equations of both attentions).

    With x_k = <r_k, x>, the weight of relation k is exp(x_k) / (sum_j exp(x_j)) ** beta over the
    slots that the mask keeps, and exactly zero elsewhere; without any kept slot the sum is zero.

    Args:
      slots_BxSxM: mixture weights of the relations, (B, S, M) or (B, S, M, T).
      query_BxM: V x for the vector x that attends, (B, M) or (B, M, T or 1).
      mask_BxS: True for real slots, (B, S) or (B, S, T or 1).
      beta: power of the denominator, 1 for the softmax.

    Returns:
      Mixture weights of the sum, (B, M) or (B, M, T).
    """
    return jnp.sum(
        slots_BxSxM * attention(slots_BxSxM, query_BxM, mask_BxS, beta)[:, :, None], axis=1
    )


def attention(
    slots_BxSxM: jax.Array, query_BxM: jax.Array, mask_BxS: jax.Array, beta: float = 1.0
) -> jax.Array:
    """The weights of `attend` before the sum, (B, S) or (B, S, T)."""
    logits_BxS = jnp.sum(slots_BxSxM * query_BxM[:, None], axis=2)
    nonempty_Bx1 = jnp.any(mask_BxS, axis=1, keepdims=True)
    peak_Bx1 = jnp.max(jnp.where(mask_BxS, logits_BxS, -jnp.inf), axis=1, keepdims=True)
    # The weights do not depend on the peak, which only keeps exp in range.
    peak_Bx1 = jax.lax.stop_gradient(jnp.where(nonempty_Bx1, peak_Bx1, 0.0))
    mass_BxS = jnp.where(mask_BxS, jnp.exp(jnp.where(mask_BxS, logits_BxS - peak_Bx1, 0.0)), 0.0)
    total_Bx1 = jnp.where(nonempty_Bx1, jnp.sum(mass_BxS, axis=1, keepdims=True), 1.0)
    if beta == 1.0:
        return mass_BxS / total_Bx1
    return mass_BxS * jnp.exp((1.0 - beta) * peak_Bx1) / total_Bx1**beta
