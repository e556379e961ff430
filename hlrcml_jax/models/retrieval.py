"""Retrieval of candidates by vectors alone, to be ranked by the whole model afterwards."""

import dataclasses

import flax.linen as nn

from hlrcml_jax.models.base import Model, Spec


class ByVectors(Model):
    """score(u, t) = closeness(u, t): a model without the relation of user and target.

    It is a product of matrices, as an index of nearest neighbours would compute it.

    Attributes:
      whole: the model.
    """

    whole: Model

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        return dataclasses.replace(self.whole.spec, attends=False, memory=False)

    def setup(self) -> None:
        nn.share_scope(self, self.whole)

    def embed(self, row):
        return self.whole.embed(row)

    def represent(self, user_BxD, past_BxSxD, mask_BxS):
        return self.whole.represent(user_BxD, past_BxSxD, mask_BxS)

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        return {"user_BxD": self.whole.users(user_BxD, past_BxSxD, mask_BxS)["user_BxD"]}

    def scores(self, users, met, target_BxTxD, past):
        return self.whole.closeness(users["user_BxD"][:, None], target_BxTxD)
