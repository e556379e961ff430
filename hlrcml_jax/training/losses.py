"""Losses per example: pure functions of the scores of its positive and its negatives.

A loss is `loss(positive_B, negative_BxN, log_weight_BxN, **options)` and returns (B,). Higher
scores are better. A negative has weight exp(log weight) in a softmax; with -inf it is an item of
the user and excluded.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Loss = Callable[..., jax.Array]


def hinge(
    positive_B: jax.Array,
    negative_BxN: jax.Array,
    log_weight_BxN: jax.Array,
    *,
    margin: float,
) -> jax.Array:
    """Mean over negatives of max(0, margin + s_n - s_positive) (paper, equation of the loss).

    Examples:
      >>> log_weight_BxN = jnp.zeros((1, 2))
      >>> hinge(jnp.array([1.0]), jnp.array([[0.5, 2.0]]), log_weight_BxN, margin=1.0).tolist()
      [1.25]

    Args:
      positive_B: scores of the positives.
      negative_BxN: scores of the negatives.
      log_weight_BxN: -inf for excluded negatives.
      margin: in units of the score.
    """
    loss_BxN = jnp.maximum(0.0, margin + negative_BxN - positive_B[:, None])
    return _mean(loss_BxN, log_weight_BxN)


def logistic(
    positive_B: jax.Array, negative_BxN: jax.Array, log_weight_BxN: jax.Array
) -> jax.Array:
    """Mean over negatives of -log sigmoid(s_positive - s_n) (Rendle et al., UAI 2009).

    Examples:
      >>> logistic(jnp.array([1.0]), jnp.array([[1.0, 5.0]]), jnp.array([[0.0, -jnp.inf]]))[0]
      Array(0.6931472, dtype=float32)
    """
    return _mean(jax.nn.softplus(negative_BxN - positive_B[:, None]), log_weight_BxN)


def softmax(
    positive_B: jax.Array,
    negative_BxN: jax.Array,
    log_weight_BxN: jax.Array,
    *,
    temperature: float,
) -> jax.Array:
    """log(1 + sum_n w_n exp((s_n - s_positive) / temperature)).

    The cross-entropy of the positive among the negatives; with logQ weights, sampled softmax over
    the catalogue.

    Examples:
      >>> softmax(jnp.ones(1), jnp.ones((1, 2)), jnp.zeros((1, 2)), temperature=0.3)[0]
      Array(1.0986123, dtype=float32)

    Args:
      positive_B: scores of the positives.
      negative_BxN: scores of the negatives.
      log_weight_BxN: log w_n.
      temperature: in units of the score.
    """
    logits_BxN = (negative_BxN - positive_B[:, None]) / temperature + log_weight_BxN
    return jax.nn.logsumexp(jnp.pad(logits_BxN, ((0, 0), (1, 0))), axis=1)


def _mean(loss_BxN: jax.Array, log_weight_BxN: jax.Array) -> jax.Array:
    counts_BxN = log_weight_BxN != -jnp.inf  # not isfinite: a NaN weight must show in the loss
    total_B = jnp.sum(jnp.where(counts_BxN, loss_BxN, 0.0), axis=1)
    return total_B / jnp.maximum(jnp.sum(counts_BxN, axis=1), 1)
