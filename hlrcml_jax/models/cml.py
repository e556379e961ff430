"""Collaborative Metric Learning: the distance of user and item, without a relation."""

from hlrcml_jax.models import distances
from hlrcml_jax.models.distances import MetricModel


class CML(MetricModel):
    """score(u, t) = -||u - t||^2 (Hsieh et al., WWW 2017; paper, section 2)."""

    def meet(self, users, target_BxTxD):
        return {"distance_BxT": distances.squared(users["user_BxD"][:, None], target_BxTxD)}

    def scores(self, users, met, target_BxTxD, past):
        return -met["distance_BxT"]
