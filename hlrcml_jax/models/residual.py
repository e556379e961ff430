"""HLR with residual relations: an item is related to another by itself, moved by the memory."""

from hlrcml_jax import schema
from hlrcml_jax.models.adacml import similarities
from hlrcml_jax.models.attention import attend
from hlrcml_jax.models.base import Related
from hlrcml_jax.models.distances import MetricModel
from hlrcml_jax.models.hlr import HLR


class ResidualHLR(HLR):
    """score(u, t) = -||u + sum_k w_k (rel(t, p_k) + p_k) - t||^2, of our own.

    The sum runs over HLR's slots, and slot 0, the user, adds rel(t, u) alone. Past items are
    attended to for their similarity to the target too: w_k is proportional to
    exp(<rel(t, p_k), u> + sharpness <p_k, t>). An empty memory leaves AdaCML with one more
    slot that adds nothing, and no past items LRML.
    """

    sharpness: float = schema.Model.sharpness

    def relate(self, past, target):
        similarity = self.sharpness * similarities(past, target)
        return Related(self.memory.relate(past, target), similarity)

    def attention(self, users, met, target_BxTxD, past):
        query, first, prior = users["query_BxMx1"], met["rel_BxMxT"], past.similarity()
        return {"share": attend(past, query, self.beta, first, prior)}

    def relation(self, users, met, target_BxTxD, past):
        (attended,) = self.attention(users, met, target_BxTxD, past).values()
        return self.memory.read(attended.mixture) + past.mix_rows(attended.weights_BxSxT)

    # With D numbers to add to a relation, its vector is what is cheapest.
    scores = MetricModel.scores
