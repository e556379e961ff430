"""LRML (Tay et al., WWW 2018): one latent relation of user and target, read from a memory."""

import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, pairwise_squared_distance
from hlrcml_jax.models.relation import RelationMemory


class LRML(CML):
    """d(u, t) = ||u + rel(u, t) - t||^2.

    Models with hierarchies of such relations (see `hlr.py`) give `relation` and `block_relation`
    anew; both are mixture weights of the memory's rows.
    """

    dim: int
    memory_slots: int = 20
    key_scale: float = 1.0
    value_scale: float = 1.0

    def setup(self):
        self.memory = RelationMemory(self.dim, self.memory_slots, self.key_scale, self.value_scale)

    def relation(self, user_BxD, target_BxD, history):
        """Mixture weights (B, M) of the relation of each user and its target."""
        return self.memory.weights(user_BxD, target_BxD)

    def translate(self, user_BxD, relation):
        return user_BxD + self.memory.read(relation)

    def block_items(self, context_XxD, target_TxD, out_XxMxT):
        """The targets' queries."""
        return {"query_MxT": self.memory.query(target_TxD).T}

    def block_users(self, user_CxD, target_TxD):
        """rel(t, u) of all pairs, and their distances without a relation."""
        return {
            "weights_MxT": self.memory.block_weights(user_CxD, target_TxD),
            "distance_T": pairwise_squared_distance(user_CxD, target_TxD),
        }

    def block_history(self, user_D, prefs_SxD, mask_S):
        """The user's query."""
        return {"query_M": self.memory.query(user_D)}

    def block_relation(self, items, pairs, history, prefs_S, mask_S) -> jax.Array:
        """`relation` of one user and a block of targets: mixture weights (M, T)."""
        return pairs["weights_MxT"]

    def block_distances(self, items, pairs, history, prefs_S, mask_S):
        a_MxT = self.block_relation(items, pairs, history, prefs_S, mask_S)
        return self.moved_distances(items, pairs, history, a_MxT)

    def moved_distances(self, items, pairs, history, a_MxT) -> jax.Array:
        """||u - t + aV||^2 = ||u - t||^2 + 2 a.(Vu - Vt) + a (VV') a', without the vector aV."""
        linear_MxT = 2.0 * (history["query_M"][:, None] - items["query_MxT"])
        gram_MxM = self.memory.query(self.memory.values_MxD)
        return pairs["distance_T"] + jnp.sum(a_MxT * (linear_MxT + gram_MxM @ a_MxT), axis=0)
