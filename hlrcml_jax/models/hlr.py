"""HLR and HLR++ (Tran et al., RecSys 2021): hierarchies of latent relations.

Both measure d(u, t) = ||u + r - t||^2. They differ in the relation r, a mixture of the memory's
M value rows that is carried as its mixture weights (see `relation.py`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.relation import (
    attend,
    attend_shared,
    attention,
    mix_pairs,
    normalize,
    pair_logits,
)


class HLR(LRML):
    """User attention over item-item relations.

    r = sum_k w_k rel(t, p_k) over the user itself (slot 0) and its preferences, with
    w_k proportional to exp(<rel(t, p_k), u>).
    """

    uses_preferences: ClassVar[bool] = True
    relates_items: ClassVar[bool] = True

    beta: float = 1.0

    def history(self, user_BxD, prefs_BxSxD, mask_BxS):
        """The preferences, their mask with slot 0, and V u."""
        return {
            "prefs_BxSxD": prefs_BxSxD,
            "mask_BxS1": with_slot_0(mask_BxS),
            "query_BxM": self.memory.query(user_BxD),
        }

    def relation(self, user_BxD, target_BxD, history):
        """Mixture weights (B, M) of the relation of each user and its target."""
        slots_BxS1xM = self.slots(user_BxD, target_BxD, history)
        return attend(slots_BxS1xM, history["query_BxM"], history["mask_BxS1"], self.beta)

    def slots(self, user_BxD, target_BxD, history):
        """Mixture weights (B, S + 1, M) of rel(t, u) in slot 0 and rel(t, p_k) behind it."""
        slot_0_BxM = self.memory.weights(target_BxD, user_BxD)
        rest_BxSxM = self.memory.slot_weights(target_BxD, history["prefs_BxSxD"])
        return jnp.concatenate([slot_0_BxM[:, None], rest_BxSxM], axis=1)

    def block_items(self, context_XxD, target_TxD, out_XxMxT):
        """rel(t, p) of all pairs, which no user changes, and the targets' queries."""
        if out_XxMxT is None:
            pairs_XxMxT = self.memory.block_weights(context_XxD, target_TxD)
        else:
            pairs_XxMxT = self.memory.write_block_weights(context_XxD, target_TxD, out_XxMxT)
        return super().block_items(context_XxD, target_TxD, None) | {"pairs_XxMxT": pairs_XxMxT}

    def block_relation(self, items, pairs, history, prefs_S, mask_S):
        weights_S1xT = self.block_attention(items, pairs, history, prefs_S, mask_S)
        return self.block_mixture(items, pairs, prefs_S, weights_S1xT)

    def block_attention(self, items, pairs, history, prefs_S, mask_S, prior_SxT=0.0) -> jax.Array:
        """The user attention (S + 1, T) of one user; `prior_SxT` adds to its logits."""
        query_M = history["query_M"]
        logits_SxT = prior_SxT + pair_logits(items["pairs_XxMxT"], prefs_S, query_M)
        logits_S1xT = jnp.concatenate([(query_M @ pairs["weights_MxT"])[None], logits_SxT])
        return normalize(logits_S1xT, with_slot_0(mask_S[None]).T, self.beta)

    def block_mixture(self, items, pairs, prefs_S, weights_S1xT) -> jax.Array:
        """Mixture weights (M, T) of the attended relations."""
        mix_MxT = mix_pairs(items["pairs_XxMxT"], prefs_S, weights_S1xT[1:])
        return pairs["weights_MxT"] * weights_S1xT[:1] + mix_MxT

    def shared_distances(self, user_BxD, target_NxD, items_XxD, prefs_BxS, mask_BxS):
        items = LRML.block_items(self, items_XxD, target_NxD, None)
        pairs = self.block_users(user_BxD, target_NxD)
        history = jax.vmap(self.block_history)(user_BxD, items_XxD[prefs_BxS], mask_BxS)
        item_item_XxMxN = self.memory.block_weights(items_XxD, target_NxD)
        a_BxMxN = self.shared_relation(item_item_XxMxN, items, pairs, history, prefs_BxS, mask_BxS)
        moved = jax.vmap(self.moved_distances, in_axes=(None, 0, 0, 0))
        return moved(items, pairs, history, a_BxMxN)

    def shared_relation(self, item_item_XxMxN, items, pairs, history, prefs_BxS, mask_BxS):
        """`relation` of each example and the targets that all share: mixture weights (B, M, N)."""
        return attend_shared(
            item_item_XxMxN,
            prefs_BxS,
            pairs["weights_MxT"],
            history["query_M"],
            with_slot_0(mask_BxS),
            self.beta,
        )

    def reasons(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        """Shares of the user attention; slot 0, the user itself, has the rest."""
        history = self.history(user_BxD, prefs_BxSxD, mask_BxS)
        slots_BxS1xM = self.slots(user_BxD, target_BxD, history)
        return {"share": self.user_attention(slots_BxS1xM, target_BxD, history, beta=1.0)[:, 1:]}

    def user_attention(self, slots_BxS1xM, target_BxD, history, beta) -> jax.Array:
        """The weights (B, S + 1) of the slots; HLR's do not look at the target beyond them."""
        return attention(slots_BxS1xM, history["query_BxM"], history["mask_BxS1"], beta)


class HLRPlusPlus(HLR):
    """HLR++: item attention over user-item relations, added to the user attention.

    r = R + S with the same memory for both. R is HLR's sum over the preferences alone (zero
    without any); S = sum_k w'_k rel(u, p_k) over the target itself (slot 0) and the preferences,
    with w'_k proportional to exp(<rel(u, p_k), t>).
    """

    def history(self, user_BxD, prefs_BxSxD, mask_BxS):
        """As HLR's, with the mixture weights of rel(u, p_k), which no target changes."""
        slots_BxSxM = self.memory.slot_weights(user_BxD, prefs_BxSxD)
        history = super().history(user_BxD, prefs_BxSxD, mask_BxS)
        return history | {"mask_BxS": mask_BxS, "user_item_BxSxM": slots_BxSxM}

    def relation(self, user_BxD, target_BxD, history):
        item_item_BxSxM = self.memory.slot_weights(target_BxD, history["prefs_BxSxD"])
        by_user_BxM = attend(item_item_BxSxM, history["query_BxM"], history["mask_BxS"], self.beta)
        slot_0_BxM = self.memory.weights(user_BxD, target_BxD)
        slots_BxS1xM = jnp.concatenate([slot_0_BxM[:, None], history["user_item_BxSxM"]], axis=1)
        by_item_BxM = attend(
            slots_BxS1xM, self.memory.query(target_BxD), history["mask_BxS1"], self.beta
        )
        return by_user_BxM + by_item_BxM

    def block_history(self, user_D, prefs_SxD, mask_S):
        """As LRML's, with the mixture weights of rel(u, p_k)."""
        user_item_SxM = self.memory.slot_weights(user_D[None], prefs_SxD[None])[0]
        return super().block_history(user_D, prefs_SxD, mask_S) | {"user_item_SxM": user_item_SxM}

    def block_relation(self, items, pairs, history, prefs_S, mask_S):
        pairs_XxMxT, mask_Sx1 = items["pairs_XxMxT"], mask_S[:, None]
        logits_SxT = pair_logits(pairs_XxMxT, prefs_S, history["query_M"])
        by_user_MxT = mix_pairs(pairs_XxMxT, prefs_S, normalize(logits_SxT, mask_Sx1, self.beta))
        return by_user_MxT + self._by_item(items, pairs, history, mask_S)

    def shared_relation(self, item_item_XxMxN, items, pairs, history, prefs_BxS, mask_BxS):
        by_user_BxMxN = attend_shared(
            item_item_XxMxN,
            prefs_BxS,
            jnp.zeros_like(pairs["weights_MxT"]),
            history["query_M"],
            jnp.pad(mask_BxS, ((0, 0), (1, 0))),
            self.beta,
        )
        by_item = jax.vmap(self._by_item, in_axes=(None, 0, 0, 0))
        return by_user_BxMxN + by_item(items, pairs, history, mask_BxS)

    def _by_item(self, items, pairs, history, mask_S):
        """The item attention's part (M, T); of its slots only slot 0 depends on the target."""
        slot_0_MxT, slots_SxM = pairs["weights_MxT"], history["user_item_SxM"]
        logits_SxT = jnp.concatenate(
            [
                jnp.sum(slot_0_MxT * items["query_MxT"], axis=0, keepdims=True),
                slots_SxM @ items["query_MxT"],
            ]
        )
        weights_SxT = normalize(logits_SxT, with_slot_0(mask_S[None]).T, self.beta)
        return slot_0_MxT * weights_SxT[:1] + slots_SxM.T @ weights_SxT[1:]

    def reasons(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        """Both attentions; slot 0 of the item's, the target itself, has the rest of it."""
        item_item_BxSxM = self.memory.slot_weights(target_BxD, prefs_BxSxD)
        slot_0_BxM = self.memory.weights(user_BxD, target_BxD)
        user_item_BxSxM = self.memory.slot_weights(user_BxD, prefs_BxSxD)
        slots_BxS1xM = jnp.concatenate([slot_0_BxM[:, None], user_item_BxSxM], axis=1)
        by_item_BxS1 = attention(slots_BxS1xM, self.memory.query(target_BxD), with_slot_0(mask_BxS))
        return {
            "share": attention(item_item_BxSxM, self.memory.query(user_BxD), mask_BxS),
            "item_share": by_item_BxS1[:, 1:],
        }


def with_slot_0(mask_BxS: jax.Array) -> jax.Array:
    """The mask with a slot 0 that is always real, (B, S + 1)."""
    return jnp.pad(mask_BxS, ((0, 0), (1, 0)), constant_values=True)
