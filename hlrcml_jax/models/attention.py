"""Attention over past items (paper, section 3, equations of both attentions)."""

import jax
import jax.numpy as jnp

from hlrcml_jax.models.base import Attention, Past


def attend(
    past: Past,
    query_BxMxT: jax.Array,
    beta: float = 1.0,
    first_BxMxT: jax.Array | None = None,
    prior_BxSxT: jax.Array | float = 0.0,
) -> Attention:
    """Attention-weighted sum of the relations r_k of past items, as a mixture of the memory.

    The weight of r_k, queried by a vector x, is exp(<r_k, x>) / (sum_j exp(<r_j, x>)) ** beta.

    Args:
      past: the past items.
      query_BxMxT: V x of the query vector x, one per target, or (B, M, 1) for all.
      beta: exponent of the denominator, 1 for the softmax.
      first_BxMxT: mixture weights of slot 0, before the past items and never masked; or None.
      prior_BxSxT: added to the logits.
    """
    logits_BxSxT = prior_BxSxT + past.dot(query_BxMxT)
    if first_BxMxT is None:
        weights_BxSxT, none_Bx1xT = softmax(logits_BxSxT, past.mask_BxS, beta)
        return Attention(weights_BxSxT, none_Bx1xT, past.mix(weights_BxSxT))
    first_Bx1xT = jnp.sum(first_BxMxT * query_BxMxT, axis=1, keepdims=True)
    weights_BxSxT, weight_Bx1xT = softmax(logits_BxSxT, past.mask_BxS, beta, first_Bx1xT)
    mixture_BxMxT = first_BxMxT * weight_Bx1xT + past.mix(weights_BxSxT)
    return Attention(weights_BxSxT, weight_Bx1xT, mixture_BxMxT)


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
    b, s, t = logits_BxSxT.shape
    # With slots as the first axis, the inner loops run over users and targets.
    logits_SxN = jnp.moveaxis(logits_BxSxT, 1, 0).reshape(s, b * t)
    mask_SxN = jnp.repeat(mask_BxS.T, t, axis=1) if t > 1 else mask_BxS.T
    none_1xN = jnp.full((1, b * t), -jnp.inf)
    first_1xN = none_1xN if first_Bx1xT is None else first_Bx1xT.reshape(1, b * t)
    # The weights do not depend on the peak; it only keeps exp in range.
    peak_1xN = jnp.max(logits_SxN, axis=0, keepdims=True, where=mask_SxN, initial=-jnp.inf)
    peak_1xN = jnp.maximum(first_1xN, peak_1xN)
    peak_1xN = jax.lax.stop_gradient(jnp.where(peak_1xN == -jnp.inf, 0.0, peak_1xN))
    mass_SxN = jnp.where(mask_SxN, jnp.exp(jnp.where(mask_SxN, logits_SxN - peak_1xN, 0.0)), 0.0)
    first_1xN = jnp.exp(first_1xN - peak_1xN)
    total_1xN = jnp.sum(mass_SxN, axis=0, keepdims=True) + first_1xN
    total_1xN = jnp.where(total_1xN == 0.0, 1.0, total_1xN)
    scale_1xN = 1.0 / total_1xN
    if beta != 1.0:
        scale_1xN = jnp.exp((1.0 - beta) * peak_1xN) / total_1xN**beta
    weights_BxSxT = jnp.moveaxis((mass_SxN * scale_1xN).reshape(s, b, t), 0, 1)
    return weights_BxSxT, (first_1xN * scale_1xN).reshape(b, 1, t)
