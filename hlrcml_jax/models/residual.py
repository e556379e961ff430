"""HLR with residual relations: the past item itself plus a relation from the memory."""

from hlrcml_jax import schema
from hlrcml_jax.models.adacml import similarities
from hlrcml_jax.models.attention import attend
from hlrcml_jax.models.base import Related
from hlrcml_jax.models.distances import MetricModel
from hlrcml_jax.models.hlr import HLR


class ResidualHLR(HLR):
    """score(u, t) = -||u + sum_k w_k (rel(t, p_k) + p_k) - t||^2, our own model.

    The sum runs over HLR's slots; slot 0, the user, contributes rel(t, u) only. The attention also
    depends on the similarity to the target: w_k is proportional to
    exp(<rel(t, p_k), u> + sharpness <p_k, t>). With zero memory values it is AdaCML with one more
    slot that contributes nothing; without past items it is LRML.
    """

    sharpness: float = schema.Model.sharpness

    def relate(self, past, target):
        return Related(self.memory.relate(past, target), similarities(past, target))

    def attention(self, users, met, target_BxTxD, past):
        prior_BxSxT = self.sharpness * past.similarity()
        logits = (users["query_BxMx1"], self.beta, met["rel_BxMxT"], prior_BxSxT)
        return {"share": attend(past, *logits)}

    def relation(self, users, met, target_BxTxD, past):
        (attended,) = self.attention(users, met, target_BxTxD, past).values()
        return self.memory.read(attended.mixture) + past.mix_rows(attended.weights_BxSxT)

    def pulls(self, related, target):
        return super().pulls(related, target) + related.similarity

    # Since past rows (D,) are added to the relation, building its vector is cheapest.
    scores = MetricModel.scores
