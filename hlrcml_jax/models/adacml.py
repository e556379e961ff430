"""AdaCML (Zhang et al., DASFAA 2019): the user moved by an attention over its items."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.relation import normalize


class AdaCML(CML):
    """d(u, t) = ||u + sum_k w_k p_k - t||^2 with w_k proportional to exp(sharpness <p_k, t>).

    The power `beta` of the attention's denominator is that of HLR.
    """

    uses_preferences: ClassVar[bool] = True

    beta: float = 1.0
    sharpness: float = 1.0

    def history(self, user_BxD, prefs_BxSxD, mask_BxS):
        """The preferences, zero where they are masked: the mask may hide any number."""
        return {
            "prefs_BxSxD": jnp.where(mask_BxS[:, :, None], prefs_BxSxD, 0.0),
            "mask_BxS": mask_BxS,
        }

    def relation(self, user_BxD, target_BxD, history):
        """The attended mixtures of preferences, (B, D)."""
        weights_BxS = self._weights(target_BxD, beta=self.beta, **history)
        return jnp.einsum("bs,bsd->bd", weights_BxS, history["prefs_BxSxD"])

    def translate(self, user_BxD, relation):
        return user_BxD + relation

    def block_items(self, context_XxD, target_TxD, out_XxMxT):
        """The attention's logits of all pairs of items."""
        return {
            "logits_XxT": self.sharpness * context_XxD @ target_TxD.T,
            "context_XxD": context_XxD,
            "target_TxD": target_TxD,
        }

    def block_users(self, user_CxD, target_TxD):
        return user_CxD

    def block_distances(self, items, pairs, history, prefs_S, mask_S):
        weights_SxT = normalize(items["logits_XxT"][prefs_S], mask_S[:, None], self.beta)
        moved_TxD = pairs[None] + weights_SxT.T @ items["context_XxD"][prefs_S]
        return jnp.sum(jnp.square(moved_TxD - items["target_TxD"]), axis=1)

    def reasons(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        history = self.history(user_BxD, prefs_BxSxD, mask_BxS)
        return {"share": self._weights(target_BxD, beta=1.0, **history)}

    def _weights(self, target_BxD, prefs_BxSxD, mask_BxS, beta) -> jax.Array:
        logits_BxS = self.sharpness * jnp.einsum("bsd,bd->bs", prefs_BxSxD, target_BxD)
        return normalize(logits_BxS.T, mask_BxS.T, beta).T
