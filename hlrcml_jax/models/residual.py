"""HLR with residual relations: an item is related to another by itself, moved by the memory."""

import jax.numpy as jnp

from hlrcml_jax.models.cml import CML
from hlrcml_jax.models.hlr import HLR
from hlrcml_jax.models.relation import attention


class ResidualHLR(HLR):
    """d(u, t) = ||u + sum_k w_k (rel(t, p_k) + p_k) - t||^2, of our own.

    The sum runs over HLR's slots, and slot 0, the user, adds rel(t, u) alone. Preferences are
    attended to for their likeness to the target too: w_k is proportional to
    exp(<rel(t, p_k), u> + sharpness <p_k, t>). An empty memory leaves AdaCML with one more
    slot that adds nothing, and no preferences LRML. A relation is carried as M mixture weights and
    the D numbers of sum_k w_k p_k.
    """

    sharpness: float = 1.0

    def history(self, user_BxD, prefs_BxSxD, mask_BxS):
        """As HLR's; preferences are zero where they are masked."""
        return super().history(user_BxD, jnp.where(mask_BxS[:, :, None], prefs_BxSxD, 0), mask_BxS)

    def relation(self, user_BxD, target_BxD, history):
        """Mixture weights and attended preferences, (B, M + D)."""
        slots_BxS1xM = self.slots(user_BxD, target_BxD, history)
        weights_BxS1 = self.user_attention(slots_BxS1xM, target_BxD, history, self.beta)
        mixture_BxM = jnp.sum(slots_BxS1xM * weights_BxS1[:, :, None], axis=1)
        prefs_BxD = jnp.einsum("bs,bsd->bd", weights_BxS1[:, 1:], history["prefs_BxSxD"])
        return jnp.concatenate([mixture_BxM, prefs_BxD], axis=1)

    def translate(self, user_BxD, relation):
        mixture_BxM, prefs_BxD = jnp.split(relation, [self.memory_slots], axis=1)
        return super().translate(user_BxD, mixture_BxM) + prefs_BxD

    def block_items(self, context_XxD, target_TxD, out_XxMxT):
        """As HLR's, with the likeness of all pairs of items."""
        return super().block_items(context_XxD, target_TxD, out_XxMxT) | {
            "likeness_XxT": self.sharpness * context_XxD @ target_TxD.T,
            "context_XxD": context_XxD,
            "target_TxD": target_TxD,
        }

    def block_users(self, user_CxD, target_TxD):
        """rel(t, u) of all pairs, and the users."""
        weights_CxMxT = self.memory.block_weights(user_CxD, target_TxD)
        return {"weights_MxT": weights_CxMxT, "user_D": user_CxD}

    def block_distances(self, items, pairs, history, prefs_S, mask_S):
        """As CML's, through the moved users (T, D)."""
        likeness_SxT = items["likeness_XxT"][prefs_S]
        weights_S1xT = self.block_attention(items, pairs, history, prefs_S, mask_S, likeness_SxT)
        relation_TxD = self.memory.read(self.block_mixture(items, pairs, prefs_S, weights_S1xT).T)
        prefs_TxD = weights_S1xT[1:].T @ items["context_XxD"][prefs_S]
        moved_TxD = pairs["user_D"][None] + relation_TxD + prefs_TxD
        return jnp.sum(jnp.square(moved_TxD - items["target_TxD"]), axis=1)

    def shared_distances(self, user_BxD, target_NxD, items_XxD, prefs_BxS, mask_BxS):
        return CML.shared_distances(self, user_BxD, target_NxD, items_XxD, prefs_BxS, mask_BxS)

    def user_attention(self, slots_BxS1xM, target_BxD, history, beta):
        likeness_BxS = jnp.einsum("bsd,bd->bs", history["prefs_BxSxD"], target_BxD)
        likeness_BxS1 = jnp.pad(self.sharpness * likeness_BxS, ((0, 0), (1, 0)))
        return attention(
            slots_BxS1xM, history["query_BxM"], history["mask_BxS1"], beta, likeness_BxS1
        )
