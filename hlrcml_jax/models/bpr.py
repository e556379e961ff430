"""BPR: matrix factorisation by a pairwise ranking loss."""

from typing import ClassVar

import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, cosine


class BPR(CML):
    """score(u, t) = <u, t> + b_t (Rendle et al., UAI 2009); its "distance" is minus the score.

    A row is a vector with its bias behind. A user's bias ranks nothing, and is only there because
    the paper's program regularises one. The weights are those of that program, for each example.
    """

    in_ball: ClassVar[bool] = False
    loss: ClassVar[str] = "logistic"

    l2_vector: float = 0.0025
    l2_negative: float = 0.00025
    l2_bias: float = 0.001

    def init_rows(self, key, n_rows, dim):
        """(n_rows, D + 1): vectors from N(0, 1/D), biases of zero."""
        return jnp.pad(super().init_rows(key, n_rows, dim), ((0, 0), (0, 1)))

    def distance(self, user_BxD, relation, target_BxD):
        return -jnp.sum(user_BxD[:, :-1] * target_BxD[:, :-1], axis=1) - target_BxD[:, -1]

    def penalty(self, user_BxD, relation, positive_BxD, negative_NxBxD):
        def squares(row_BxD, l2):
            vector_B = jnp.sum(jnp.square(row_BxD[:, :-1]), axis=1)
            return l2 * vector_B + self.l2_bias * jnp.square(row_BxD[:, -1])

        negative_B = sum(squares(row_BxD, self.l2_negative) for row_BxD in negative_NxBxD)
        return (
            squares(user_BxD, self.l2_vector) + squares(positive_BxD, self.l2_vector) + negative_B
        )

    def likeness(self, items_IxD, item_T):
        """The cosine of the vectors."""
        return cosine(items_IxD[:, :-1], item_T)

    def block_users(self, user_CxD, target_TxD):
        return -user_CxD[:, :-1] @ target_TxD[:, :-1].T - target_TxD[:, -1][None]
