"""HLR and HLR++ (Tran et al., RecSys 2021): hierarchies of latent relations.

Both measure d(u, t) = ||u + r - t||^2. They differ in the relation r, a mixture of the memory's
M value rows that is carried as its mixture weights (see `relation.py`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, pairwise_squared_distance
from hlrcml_jax.models.relation import RelationMemory, attend, attention


class HLR(CML):
    """User attention over item-item relations.

    r = sum_k w_k rel(t, p_k) over the user itself (slot 0) and its preferences, with
    w_k proportional to exp(<rel(t, p_k), u>).
    """

    uses_preferences: ClassVar[bool] = True

    dim: int
    memory_slots: int = 20
    beta: float = 1.0

    def setup(self):
        self.memory = RelationMemory(self.dim, self.memory_slots)

    def relation(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        """Mixture weights (B, M) of the relation of each user and its target."""
        slots_BxSxM = self.memory.weights(target_BxD[:, None], prepend(user_BxD, prefs_BxSxD))
        return attend(slots_BxSxM, self.memory.query(user_BxD), with_slot_0(mask_BxS), self.beta)

    def translate(self, user_BxD, relation):
        return user_BxD + self.memory.read(relation)

    def item_pairs(self, context_CxD, target_TxD):
        """Mixture weights (C, M, T) of rel(t, p): they do not depend on the user."""
        return self.memory.block_weights(context_CxD, target_TxD)

    def block_relation(self, user_BxD, target_TxD, pairs_CxMxT, context_CxD, prefs_BxS, mask_BxS):
        """`relation` for a block of shared targets: mixture weights (B, M, T)."""
        user_BxMxT = self.memory.block_weights(user_BxD, target_TxD)
        slots_BxSxMxT = prepend(user_BxMxT, pairs_CxMxT[prefs_BxS])
        query_BxMx1 = self.memory.query(user_BxD)[:, :, None]
        return attend(slots_BxSxMxT, query_BxMx1, with_slot_0(mask_BxS)[:, :, None], self.beta)

    def block_distances(self, user_BxD, target_TxD, pairs, context_CxD, prefs_BxS, mask_BxS):
        """||u - t + aV||^2 = ||u - t||^2 + 2 a.(Vu - Vt) + a (VV') a', without the vector aV."""
        a_BxMxT = self.block_relation(user_BxD, target_TxD, pairs, context_CxD, prefs_BxS, mask_BxS)
        query_BxMx1 = self.memory.query(user_BxD)[:, :, None]
        query_1xMxT = self.memory.query(target_TxD).T[None]
        gram_MxM = self.memory.query(self.memory.values_MxD)
        linear_BxMxT = 2.0 * (query_BxMx1 - query_1xMxT)
        quadratic_BxMxT = jnp.einsum("mn,bnt->bmt", gram_MxM, a_BxMxT)
        moved_BxT = jnp.sum(a_BxMxT * (linear_BxMxT + quadratic_BxMxT), axis=1)
        return pairwise_squared_distance(user_BxD, target_TxD) + moved_BxT

    def preference_shares(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS) -> jax.Array:
        """Shares (B, S) of the user attention that fall on each preference; slot 0 has the rest."""
        slots_BxSxM = self.memory.weights(target_BxD[:, None], prepend(user_BxD, prefs_BxSxD))
        query_BxM = self.memory.query(user_BxD)
        return attention(slots_BxSxM, query_BxM, with_slot_0(mask_BxS))[:, 1:]


class HLRPlusPlus(HLR):
    """HLR++: item attention over user-item relations, added to the user attention.

    r = R + S with the same memory for both. R is HLR's sum over the preferences alone (zero
    without any); S = sum_k w'_k rel(u, p_k) over the target itself (slot 0) and the preferences,
    with w'_k proportional to exp(<rel(u, p_k), t>).
    """

    def relation(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        item_item_BxSxM = self.memory.weights(target_BxD[:, None], prefs_BxSxD)
        by_user_BxM = attend(item_item_BxSxM, self.memory.query(user_BxD), mask_BxS, self.beta)
        user_item_BxSxM = self.memory.weights(user_BxD[:, None], prepend(target_BxD, prefs_BxSxD))
        by_item_BxM = attend(
            user_item_BxSxM, self.memory.query(target_BxD), with_slot_0(mask_BxS), self.beta
        )
        return by_user_BxM + by_item_BxM

    def block_relation(self, user_BxD, target_TxD, pairs_CxMxT, context_CxD, prefs_BxS, mask_BxS):
        query_BxMx1 = self.memory.query(user_BxD)[:, :, None]
        mask_BxSx1 = mask_BxS[:, :, None]
        by_user_BxMxT = attend(pairs_CxMxT[prefs_BxS], query_BxMx1, mask_BxSx1, self.beta)

        # Only slot 0 of the item attention depends on the target.
        prefs_BxSxM = self.memory.weights(user_BxD[:, None], context_CxD[prefs_BxS])
        targets_BxMxT = self.memory.block_weights(user_BxD, target_TxD)
        shape = (*prefs_BxSxM.shape, target_TxD.shape[0])
        slots_BxSxMxT = prepend(targets_BxMxT, jnp.broadcast_to(prefs_BxSxM[..., None], shape))
        query_1xMxT = self.memory.query(target_TxD).T[None]
        mask_BxSx1 = with_slot_0(mask_BxS)[:, :, None]
        return by_user_BxMxT + attend(slots_BxSxMxT, query_1xMxT, mask_BxSx1, self.beta)

    def preference_shares(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        item_item_BxSxM = self.memory.weights(target_BxD[:, None], prefs_BxSxD)
        return attention(item_item_BxSxM, self.memory.query(user_BxD), mask_BxS)


def prepend(first: jax.Array, rest: jax.Array) -> jax.Array:
    """Puts slot 0, (B, ...), before the other slots, (B, S, ...)."""
    return jnp.concatenate([first[:, None], rest], axis=1)


def with_slot_0(mask_BxS: jax.Array) -> jax.Array:
    """The mask with a slot 0 that is always real, (B, S + 1)."""
    return jnp.pad(mask_BxS, ((0, 0), (1, 0)), constant_values=True)
