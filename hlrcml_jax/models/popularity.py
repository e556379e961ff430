"""Popularity: every user gets the items that most users have."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hlrcml_jax.models.cml import CML


class Popularity(CML):
    """Not trained: an item's vector is its number of training interactions, a user's does nothing.

    The "distance" is minus that number, so that this baseline is scored like every other model.
    """

    @staticmethod
    def fit(train: scipy.sparse.csr_array) -> dict[str, jax.Array]:
        """The tables: `users` (U, 1) and `items` (I, 1)."""
        count_I = np.bincount(train.indices, minlength=train.shape[1])
        return {
            "users": jnp.zeros((train.shape[0], 1)),
            "items": jnp.asarray(count_I[:, None], jnp.float32),
            "model": {},
        }

    def __call__(self, user_BxD, target_BxD, prefs_BxSxD, mask_BxS):
        return -target_BxD[:, 0]

    def block_users(self, user_CxD, target_TxD):
        return jnp.broadcast_to(-target_TxD.T, (user_CxD.shape[0], target_TxD.shape[0]))
