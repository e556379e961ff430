"""Ranking for few users, or of few targets: each user has relations of its own.

The shapes depend on neither the users nor their histories, so that few programs are compiled.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from hlrcml_jax import devices
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.past import Examples

USERS = (1, 8, 64)  # per device: the sizes that are compiled
ALL_TARGETS = 8  # most users for whom this is the way to rank the whole catalogue
TARGETS = 64  # in a block
SHORTEST = 16  # list that is compiled
SOME = 256  # most targets of a user's own for which `Recommender.warm_up` compiles


@dataclasses.dataclass(frozen=True)
class FewUsers:
    """Ranks targets of C users, on one device with whole tables.

    Attributes:
      model: the model.
      k: length of the lists.
    """

    model: Model
    k: int

    def __call__(
        self,
        params: dict[str, Any],
        user_C: jax.Array,
        prefs_CxS: jax.Array,
        mask_CxS: jax.Array,
        known_CxI: jax.Array,
        target_CxT: jax.Array,
        hidden_CxT: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(places among the targets, scores), each (C, k); -1 and -inf for unfilled ranks.

        Args:
          params: tables and the model's own.
          user_C: user indices.
          prefs_CxS: item indices of their preferences.
          mask_CxS: True where a preference is real.
          known_CxI: histories, for a model whose users are rows of them, else (C, 0).
          target_CxT: item indices, in whole blocks; (1, T) for all users.
          hidden_CxT: True for targets to leave out.
        """
        bound = self.model.bind({"params": params["model"]})
        items_IxD, shared = params["items"], len(target_CxT) == 1

        def rank_user(of_user):
            user, prefs_S, mask_S, known_I, hidden_T, target_T = of_user
            target_T = target_CxT[0] if shared else target_T
            past_1xSxD, mask_1xS = bound.embed(items_IxD[prefs_S])[None], mask_S[None]
            if self.model.spec.rows_are_histories:
                user_1xD = known_I[None].astype(float)
            elif "users" in params:
                user_1xD = params["users"][user][None]
            else:
                user_1xD = bound.represent(None, past_1xSxD, mask_1xS)
            example = Examples.of(bound, user_1xD, past_1xSxD, mask_1xS)

            def score_block(block_B):
                target_1xBxD = bound.embed(items_IxD[block_B])[None]
                return bound.scores(*example.with_targets(bound, target_1xBxD))[0]

            score_T = jax.lax.map(score_block, target_T.reshape(-1, TARGETS)).ravel()
            return jax.lax.top_k(jnp.where(hidden_T, -jnp.inf, score_T), self.k)

        at_a_time = min(devices.ranking_block()[1], ALL_TARGETS, len(user_C))
        own_CxT = hidden_CxT[:, :0] if shared else target_CxT
        of_users = (user_C, prefs_CxS, mask_CxS, known_CxI, hidden_CxT, own_CxT)
        score_Cxk, place_Cxk = jax.lax.map(rank_user, of_users, batch_size=at_a_time)
        return jnp.where(score_Cxk > -jnp.inf, place_Cxk, -1), score_Cxk


@functools.lru_cache(maxsize=64)
def compiled(model: Model, k: int) -> jax.stages.Wrapped:
    return devices.pmap(FewUsers(model, k))
