"""The softmax of the attentions: over slots that may be masked, with a power of its denominator."""

import jax
import jax.numpy as jnp


def softmax(
    logits_BxSxT: jax.Array,
    mask_BxS: jax.Array,
    beta: float = 1.0,
    first_Bx1xT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """exp(x_k) / (sum_j exp(x_j)) ** beta over the slots; exactly zero outside the mask.

    Args:
      logits_BxSxT: x_k of the slots.
      mask_BxS: True for real slots.
      beta: exponent of the denominator.
      first_Bx1xT: logit of slot 0, which is never masked; or None.

    Returns:
      (weights (B, S, T), weight of slot 0 (B, 1, T), zero without one).
    """
    if logits_BxSxT.shape[2] > 1:
        return _softmax(logits_BxSxT, mask_BxS[:, :, None], beta, first_Bx1xT)
    # With users last the inner loops run over them, not over one target.
    first_1x1xB = None if first_Bx1xT is None else first_Bx1xT.T
    weights_1xSxB, weight_1x1xB = _softmax(logits_BxSxT.T, mask_BxS.T[None], beta, first_1x1xB)
    return weights_1xSxB.T, weight_1x1xB.T


def _softmax(logits, mask, beta, first):
    """As `softmax`, over axis 1."""
    if first is None:
        first = jnp.full_like(logits, -jnp.inf, shape=(logits.shape[0], 1, logits.shape[2]))
    # The weights do not depend on the peak, which only keeps exp in range.
    peak = jnp.max(logits, axis=1, keepdims=True, where=mask, initial=-jnp.inf)
    peak = jnp.maximum(first, peak)
    peak = jax.lax.stop_gradient(jnp.where(peak == -jnp.inf, 0.0, peak))
    mass = jnp.where(mask, jnp.exp(jnp.where(mask, logits - peak, 0.0)), 0.0)
    first = jnp.exp(first - peak)
    total = jnp.sum(mass, axis=1, keepdims=True) + first
    total = jnp.where(total == 0.0, 1.0, total)
    scale = 1.0 / total if beta == 1.0 else jnp.exp((1.0 - beta) * peak) / total**beta
    return mass * scale, first * scale
