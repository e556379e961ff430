"""HLR and HLR++ (Tran et al., RecSys 2021): hierarchies of latent relations.

Both score a target by -||u + r - t||^2. They differ in the relation r, a mixture of the memory's
M value rows, represented by its mixture weights (see `memory.py`).
"""

import jax.numpy as jnp

from hlrcml_jax import schema
from hlrcml_jax.models.attention import attend
from hlrcml_jax.models.base import Related, Spec
from hlrcml_jax.models.lrml import LRML
from hlrcml_jax.models.past import OwnPast


class HLR(LRML):
    """User attention over item-item relations.

    r = sum_k w_k rel(t, p_k) over the user itself (slot 0) and its past items p_k, with
    w_k proportional to exp(<rel(t, p_k), u>).
    """

    spec = Spec(attends=True, memory=True)

    beta: float = schema.Model.beta

    def relate(self, past, target):
        return Related(relation=self.memory.relate(past, target))

    def attention(self, users, met, target_BxTxD, past):
        return {"share": attend(past, users["query_BxMx1"], self.beta, met["rel_BxMxT"])}

    def pulls(self, related, target):
        return self.memory.pulls(related.relation, target)

    def pull(self, users, met, target_BxTxD, past):
        """sum_k w_k <rel(t, p_k), t>."""
        share = self.attention(users, met, target_BxTxD, past)["share"]
        return share.first_Bx1xT[:, 0] * met["pull_BxT"] + past.pull(share.weights_BxSxT)


class HLRPlusPlus(HLR):
    """HLR++: item attention over user-item relations, added to the user attention.

    r = R + S with the same memory for both. R is HLR's sum over the past items alone (zero without
    any); S = sum_k w'_k rel(u, p_k) over the target itself (slot 0) and the past items, with
    w'_k proportional to exp(<rel(u, p_k), t>).
    """

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        """As HLR's, with the relations rel(u, p_k), which do not depend on the target."""
        own = OwnPast(Related(self.memory.slot_weights(past_BxSxD, user_BxD)), mask_BxS)
        return super().users(user_BxD, past_BxSxD, mask_BxS) | {"past": own}

    def attention(self, users, met, target_BxTxD, past):
        query_BxMxT = jnp.swapaxes(self.memory.query(target_BxTxD), 1, 2)
        return {
            "share": attend(past, users["query_BxMx1"], self.beta),
            "item_share": attend(users["past"], query_BxMxT, self.beta, met["rel_BxMxT"]),
        }

    def pull(self, users, met, target_BxTxD, past):
        """<R, t> + <S, t>."""
        share, own = self.attention(users, met, target_BxTxD, past).values()
        own_BxT = self._inner_product(own.mixture, target_BxTxD)
        return past.pull(share.weights_BxSxT) + own_BxT
