"""TransCF (Park et al., ICDM 2018): a relation from the neighbourhoods of user and item."""

import jax
import jax.numpy as jnp

from hlrcml_jax import schema
from hlrcml_jax.keys import field_of
from hlrcml_jax.models import distances
from hlrcml_jax.models.base import Spec
from hlrcml_jax.models.distances import MetricModel

CHUNK = 1 << 16


class TransCF(MetricModel):
    """score(u, t) = -||u + n_u * n_t - t||^2, with the neighbourhood means n, element-wise.

    n_u is the mean embedding of the user's items, n_t that of the item's users; they are computed
    at the start of an epoch and have no gradient. A row is an embedding followed by its n.
    """

    spec = Spec(constants=True, users_from_items=False, sharded=False)

    weight_neighbours: float = field_of(schema.TransCF, "weight_neighbours")
    weight_distance: float = field_of(schema.TransCF, "weight_distance")

    def constants(self, tables, user_E, item_E):
        """Neighbourhood means, `users` (U, D) and `items` (I, D); zero without neighbours."""
        user_UxD, item_IxD = tables["users"], tables["items"]
        n_users, n_items = len(user_UxD), len(item_IxD)
        # In chunks, since one vector per interaction would not fit; the last is padded with
        # row indices past the end of the tables, which a scatter drops.
        pad = (0, -len(user_E) % CHUNK)
        user_NxE = jnp.pad(user_E, pad, constant_values=n_users).reshape(-1, CHUNK)
        item_NxE = jnp.pad(item_E, pad, constant_values=n_items).reshape(-1, CHUNK)

        def add(sums, pairs):
            user_E, item_E = pairs
            return (
                sums[0].at[user_E].add(item_IxD[item_E], mode="drop"),
                sums[1].at[item_E].add(user_UxD[user_E], mode="drop"),
            ), None

        zeros = (jnp.zeros_like(user_UxD), jnp.zeros_like(item_IxD))
        (sum_UxD, sum_IxD), _ = jax.lax.scan(add, zeros, (user_NxE, item_NxE))
        count_Ux1 = jnp.bincount(user_E, length=n_users)[:, None]
        count_Ix1 = jnp.bincount(item_E, length=n_items)[:, None]
        return {
            "users": sum_UxD / jnp.maximum(count_Ux1, 1),
            "items": sum_IxD / jnp.maximum(count_Ix1, 1),
        }

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        user_BxD, neighbours_BxD = _halves(user_BxD)
        return {"user_BxD": user_BxD, "neighbours_BxD": neighbours_BxD}

    def relation(self, users, met, target_BxTxD, past):
        return users["neighbours_BxD"][:, None] * _halves(target_BxTxD)[1]

    def closeness(self, moved_BxTxD, target_BxTxD):
        return super().closeness(moved_BxTxD, _halves(target_BxTxD)[0])

    def item_factors(self, target_TxD):
        return super().item_factors(_halves(target_TxD)[0])

    def scores(self, users, met, target_BxTxD, past):
        """For shared targets by matrix products.

        ||u - t + n_u * n_t||^2 = ||u - t||^2 + 2 <u - t, n_u * n_t> + ||n_u * n_t||^2.
        """
        if not distances.are_shared(target_BxTxD):
            return super().scores(users, met, target_BxTxD, past)
        u_Bx1xD, nu_Bx1xD = users["user_BxD"][:, None], users["neighbours_BxD"][:, None]
        t_BxTxD, nt_BxTxD = _halves(target_BxTxD)
        linear_BxT = distances.products(u_Bx1xD * nu_Bx1xD, nt_BxTxD)
        linear_BxT -= distances.products(nu_Bx1xD, t_BxTxD * nt_BxTxD)
        square_BxT = distances.products(jnp.square(nu_Bx1xD), jnp.square(nt_BxTxD))
        return -distances.squared(u_Bx1xD, t_BxTxD) - 2.0 * linear_BxT - square_BxT

    def penalty(self, user_BxD, positive_BxD, negative_NxBxD, score_B):
        """The neighbourhood and the distance regulariser."""

        def neighbourhood(row):
            vector, mean = _halves(row)
            return jnp.sum(jnp.square(vector - mean), axis=-1)

        neighbourhood_B = neighbourhood(user_BxD) + neighbourhood(positive_BxD)
        neighbourhood_B += jnp.mean(neighbourhood(negative_NxBxD), axis=0)
        return self.weight_neighbours * neighbourhood_B - self.weight_distance * score_B


def _halves(row: jax.Array) -> list[jax.Array]:
    """[embedding, neighbourhood mean] of rows with any leading axes."""
    return jnp.split(row, 2, axis=-1)
