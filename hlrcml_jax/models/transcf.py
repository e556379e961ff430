"""TransCF (Park et al., ICDM 2018): the relation of two neighbourhoods."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from hlrcml_jax.models.cml import CML, pairwise_squared_distance, squared_distance

CHUNK = 1 << 16


class TransCF(CML):
    """d(u, t) = ||u + n_u * n_t - t||^2, element-wise, with the means of the neighbours n.

    n_u is the mean vector of the user's items, n_t that of the item's users; they are taken at the
    beginning of an epoch and no gradient flows through them. A row is a vector with its n behind.
    """

    adds_constants: ClassVar[bool] = True

    weight_neighbours: float = 0.1
    weight_distance: float = 0.1

    def constants(self, tables, user_E, item_E):
        """The means of the neighbours, `users` (U, D) and `items` (I, D); zero without any."""
        user_UxD, item_IxD = tables["users"], tables["items"]
        n_users, n_items = len(user_UxD), len(item_IxD)
        # In chunks, since one vector an interaction would not fit; the last is padded with
        # pairs past the end of the tables, which a scatter drops.
        pad = (0, -len(user_E) % CHUNK)
        user_KxE = jnp.pad(user_E, pad, constant_values=n_users).reshape(-1, CHUNK)
        item_KxE = jnp.pad(item_E, pad, constant_values=n_items).reshape(-1, CHUNK)

        def add(sums, pairs):
            user_E, item_E = pairs
            return (
                sums[0].at[user_E].add(item_IxD[item_E], mode="drop"),
                sums[1].at[item_E].add(user_UxD[user_E], mode="drop"),
            ), None

        zeros = (jnp.zeros_like(user_UxD), jnp.zeros_like(item_IxD))
        (of_user_UxD, of_item_IxD), _ = jax.lax.scan(add, zeros, (user_KxE, item_KxE))
        count_Ux1 = jnp.bincount(user_E, length=n_users)[:, None]
        count_Ix1 = jnp.bincount(item_E, length=n_items)[:, None]
        return {
            "users": of_user_UxD / jnp.maximum(count_Ux1, 1),
            "items": of_item_IxD / jnp.maximum(count_Ix1, 1),
        }

    def relation(self, user_BxD, target_BxD, history):
        """The relation vectors (B, D)."""
        return _halves(user_BxD)[1] * _halves(target_BxD)[1]

    def translate(self, user_BxD, relation):
        return _halves(user_BxD)[0] + relation

    def distance(self, user_BxD, relation, target_BxD):
        return squared_distance(self.translate(user_BxD, relation), _halves(target_BxD)[0])

    def penalty(self, user_BxD, relation, positive_BxD, negative_NxBxD):
        """Vectors near the means of their neighbours, and positives near the moved users."""
        rows = (user_BxD, positive_BxD, *negative_NxBxD)
        neighbours_B = sum(squared_distance(*_halves(row_BxD)) for row_BxD in rows)
        distance_B = self.distance(user_BxD, relation, positive_BxD)
        return self.weight_neighbours * neighbours_B + self.weight_distance * distance_B

    def block_users(self, user_CxD, target_TxD):
        """||u - t||^2 + 2 <u - t, n_u * n_t> + ||n_u * n_t||^2 of all pairs, by matrix products."""
        (u_CxD, nu_CxD), (t_TxD, nt_TxD) = _halves(user_CxD), _halves(target_TxD)
        linear_CxT = (u_CxD * nu_CxD) @ nt_TxD.T - nu_CxD @ (t_TxD * nt_TxD).T
        square_CxT = jnp.square(nu_CxD) @ jnp.square(nt_TxD).T
        return pairwise_squared_distance(u_CxD, t_TxD) + 2.0 * linear_CxT + square_CxT


def _halves(row_BxD: jax.Array) -> list[jax.Array]:
    """(vector, mean of the neighbours) of wide rows."""
    return jnp.split(row_BxD, 2, axis=-1)
