"""Attention over past items (paper, section 3, equations of both attentions)."""

import jax
import jax.numpy as jnp

from hlrcml_jax.models.base import Attention, Past


def attend(
    past: Past,
    query_BxMxT: jax.Array,
    beta: float,
    first_BxMxT: jax.Array | None = None,
    prior_BxSxT: jax.Array | None = None,
) -> Attention:
    """Attention-weighted sum of the relations r_k of past items, as a mixture of the memory.

    The weight of r_k, queried by a vector x, is exp(<r_k, x>) / (sum_j exp(<r_j, x>)) ** beta.

    Args:
      past: the past items.
      query_BxMxT: V x of the query vector x, one per target, or (B, M, 1) for all.
      beta: exponent of the denominator, 1 for the softmax.
      first_BxMxT: mixture weights of slot 0, before the past items and never masked; or None.
      prior_BxSxT: added to the logits; or None.
    """
    if first_BxMxT is None:
        return Attention(*past.attend(query_BxMxT, beta, None, prior_BxSxT))
    first_Bx1xT = jnp.sum(first_BxMxT * query_BxMxT, axis=1, keepdims=True)
    weights_BxSxT, weight, mixture = past.attend(query_BxMxT, beta, first_Bx1xT, prior_BxSxT)
    return Attention(weights_BxSxT, weight, first_BxMxT * weight + mixture)
