"""BPR: matrix factorisation with a pairwise ranking loss."""

import jax.numpy as jnp

from hlrcml_jax import schema
from hlrcml_jax.keys import field_of
from hlrcml_jax.models import distances
from hlrcml_jax.models.base import Model, Spec


class BPR(Model):
    """score(u, t) = <u, t> + b_t (Rendle et al., UAI 2009).

    A row is a vector followed by a bias. The user bias does not affect the ranking; it exists as
    the paper's program regularises one. The weights are per example, as in that program.
    """

    spec = Spec(ball=False, logistic=True, users_from_items=False)

    l2_vector: float = field_of(schema.BPR, "l2_vector")
    l2_negative: float = field_of(schema.BPR, "l2_negative")
    l2_bias: float = field_of(schema.BPR, "l2_bias")

    def init_rows(self, key, n_rows, dim):
        """(n_rows, D + 1): vectors from N(0, 1/D), biases zero."""
        return jnp.pad(super().init_rows(key, n_rows, dim), ((0, 0), (0, 1)))

    def closeness(self, moved_BxTxD, target_BxTxD):
        """The product of the rows, with a user's bias of 1."""
        missing_BxT = (1.0 - moved_BxTxD[..., -1]) * target_BxTxD[..., -1]
        return distances.products(moved_BxTxD, target_BxTxD) + missing_BxT

    def user_factors(self, user_BxD):
        return user_BxD.at[:, -1].set(1.0)

    def penalty(self, user_BxD, positive_BxD, negative_NxBxD, score_B):
        def squares(row, l2):
            vector = jnp.sum(jnp.square(row[..., :-1]), axis=-1)
            return l2 * vector + self.l2_bias * jnp.square(row[..., -1])

        own_B = squares(user_BxD, self.l2_vector) + squares(positive_BxD, self.l2_vector)
        return own_B + jnp.mean(squares(negative_NxBxD, self.l2_negative), axis=0)

    def item_similarity(self, items_IxD, item_T):
        """Cosine of the vectors."""
        return distances.cosine(items_IxD[:, :-1], item_T)
