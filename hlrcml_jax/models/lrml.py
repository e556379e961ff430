"""LRML (Tay et al., WWW 2018): one latent relation of user and target, read from a memory."""

import jax
import jax.numpy as jnp

from hlrcml_jax import schema
from hlrcml_jax.models import distances
from hlrcml_jax.models.base import Spec
from hlrcml_jax.models.distances import MetricModel
from hlrcml_jax.models.memory import RelationMemory


class LRML(MetricModel):
    """score(u, t) = -||u + rel(u, t) - t||^2.

    The base of models that attend to several such relations (see `hlr.py`).
    """

    spec = Spec(memory=True)

    dim: int
    memory_slots: int = schema.Model.memory_slots
    key_scale: float = schema.Model.key_scale
    value_scale: float = schema.Model.value_scale

    def setup(self) -> None:
        self.memory = RelationMemory(self.dim, self.memory_slots, self.key_scale, self.value_scale)

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        return {"user_BxD": user_BxD, "query_BxMx1": self.memory.query(user_BxD)[:, :, None]}

    def meet(self, users, target_BxTxD):
        """rel(u, t), and the squared distance of u and t."""
        return {
            "rel_BxMxT": self.memory.weights(users["user_BxD"], target_BxTxD),
            "distance_BxT": distances.squared(users["user_BxD"][:, None], target_BxTxD),
        }

    def user_pull(self, met, target_BxTxD):
        return self._inner_product(met["rel_BxMxT"], target_BxTxD)

    def mixture(self, users, met, target_BxTxD, past) -> jax.Array:
        """Mixture weights (B, M, T) of the relation: the sum over attentions, or rel(u, t)."""
        attentions = self.attention(users, met, target_BxTxD, past).values()
        if not attentions:
            return met["rel_BxMxT"]
        return sum((each.mixture for each in attentions), jnp.zeros(()))

    def relation(self, users, met, target_BxTxD, past):
        return self.memory.read(self.mixture(users, met, target_BxTxD, past))

    def pull(self, users, met, target_BxTxD, past):
        return met["pull_BxT"]

    def _inner_product(self, a_BxMxT, target_BxTxD):
        """<aV, t> = a.(Vt), (B, T)."""
        return jnp.sum(a_BxMxT * self._query(target_BxTxD), axis=1)

    def _query(self, target_BxTxD):
        return jnp.swapaxes(self.memory.query(target_BxTxD), 1, 2)

    def scores(self, users, met, target_BxTxD, past):
        """For shared targets without the vector aV.

        ||u - t + aV||^2 = ||u - t||^2 + 2 a.(Vu - Vt) + a (VV') a'.
        """
        if not distances.are_shared(target_BxTxD):
            return super().scores(users, met, target_BxTxD, past)
        a_BxMxT = self.mixture(users, met, target_BxTxD, past)
        query_BxMxT = self._query(target_BxTxD)
        gram_1xMxM = self.memory.query(self.memory.values_MxD)[None]
        terms_BxMxT = 2.0 * (users["query_BxMx1"] - query_BxMxT) + gram_1xMxM @ a_BxMxT
        return -met["distance_BxT"] - jnp.sum(a_BxMxT * terms_BxMxT, axis=1)
