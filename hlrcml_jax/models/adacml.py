"""AdaCML (Zhang et al., DASFAA 2019): the user translated by attention over its items."""

import jax
import jax.numpy as jnp

from hlrcml_jax import schema
from hlrcml_jax.models.base import Attention, Related, Spec
from hlrcml_jax.models.distances import MetricModel
from hlrcml_jax.models.softmax import softmax


class AdaCML(MetricModel):
    """score(u, t) = -||u + sum_k w_k p_k - t||^2 with w_k proportional to exp(sharpness <p_k, t>).

    `beta` is the exponent of the attention's denominator, as in HLR.
    """

    spec = Spec(attends=True)

    beta: float = schema.Model.beta
    sharpness: float = schema.Model.sharpness

    def relate(self, past, target):
        return Related(similarity=similarities(past, target))

    def attention(self, users, met, target_BxTxD, past):
        logits_BxSxT = self.sharpness * past.similarity()
        return {"share": Attention(*softmax(logits_BxSxT, past.mask_BxS, self.beta))}

    def relation(self, users, met, target_BxTxD, past):
        (attended,) = self.attention(users, met, target_BxTxD, past).values()
        return past.mix_rows(attended.weights_BxSxT)

    def pulls(self, related, target):
        return related.similarity

    def pull(self, users, met, target_BxTxD, past):
        """sum_k w_k <p_k, t>."""
        (attended,) = self.attention(users, met, target_BxTxD, past).values()
        return past.pull(attended.weights_BxSxT)


def similarities(past: jax.Array, target: jax.Array) -> jax.Array:
    """<p, t>: (X, T) of a table with targets, or (B, S) of past items with one target each."""
    if past.ndim == 2:
        return past @ target.T
    if target.shape[1] > 1:
        return jnp.einsum("bsd,btd->bst", past, target)
    return jnp.einsum("bsd,bd->bs", past, target[:, 0])
