"""Embeddings of new users, with all trained parameters fixed.

Relations use a new user's history directly. Its embedding is initialised at the mean of its items'
and takes some steps on the training loss. Examples are drawn from the history as in training: an
item as the positive, others as preferences, and uniform negatives.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax import devices
from hlrcml_jax.models.base import Model
from hlrcml_jax.training.batch import Batch
from hlrcml_jax.training.interactions import UserItems
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import keep_rows_in_balls
from hlrcml_jax.training.sampling import Sampler

USERS_PER_CALL = 256


@dataclasses.dataclass(frozen=True)
class FoldIn:
    """Folds in new users.

    Attributes:
      model: the model.
      objective: the loss that it was trained with.
      radius: of the ball of user embeddings; None for no bound.
      steps: Adam steps on each user's embedding.
      examples: examples per user and step.
      learning_rate: of the first step; it decays to zero (cosine).
    """

    model: Model
    objective: Objective
    radius: float | None
    steps: int = 12
    examples: int = 32
    learning_rate: float = 0.08

    def __call__(
        self,
        params: dict[str, Any],
        histories: scipy.sparse.csr_array,
        constants: dict[str, np.ndarray],
        key: jax.Array,
        **how: Any,
    ) -> np.ndarray:
        """Embeddings (N, D); each depends on the user's own history only.

        Args:
          params: of one device, tables without constants; `users` is not used.
          histories: of the new users, CSR (N, I).
          constants: of new users and of items, see `Model.constants`; may be empty.
          key: of all draws.
          **how: attributes of `sampling.Sampler`.
        """
        n, width = histories.shape[0], params["items"].shape[1]
        fixed = {name: params[name] for name in ("items", "model")}
        longest = int(np.diff(histories.indptr).max(initial=1))
        parts = [np.zeros((0, width), np.float32)]
        for start in range(0, n, USERS_PER_CALL):
            part = histories[start : start + USERS_PER_CALL]
            missing = devices.padded_size(part.shape[0]) - part.shape[0]
            rows = UserItems.rows(part, longest)
            rows = rows.replace(start_U1=np.pad(rows.start_U1, (0, missing), mode="edge"))
            sampler = Sampler(rows, **how)
            initial_NxD = mean_of_items(part, np.asarray(params["items"]))
            initial_NxD = np.pad(initial_NxD, ((0, missing), (0, 0)))
            wide = dict(constants)
            if wide:
                of_users = constants["users"][start : start + USERS_PER_CALL]
                wide["users"] = np.pad(of_users, ((0, missing), (0, 0)))
            parts.append(_descend(self, fixed, sampler, wide, initial_NxD, key)[: part.shape[0]])
        return np.concatenate(parts)


def mean_of_items(histories: scipy.sparse.csr_array, items_IxD: np.ndarray) -> np.ndarray:
    """The mean embedding (N, D) of each user's items, zero without any."""
    count_Nx1 = np.maximum(np.diff(histories.indptr), 1)[:, None]
    return (histories.astype(np.float32) @ items_IxD / count_Nx1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
@devices.exact
def _descend(how: FoldIn, fixed, sampler: Sampler, constants, users_NxD, key):
    schedule = optax.cosine_decay_schedule(how.learning_rate, how.steps)
    ball = {} if how.radius is None else {"users": how.radius}
    optimizer = optax.chain(optax.adam(schedule), keep_rows_in_balls(ball))
    rows_N, known = jnp.arange(len(users_NxD)), sampler.known

    def draw(key, row):
        offset_key, example_key = jax.random.split(key)
        offset = jax.random.randint(offset_key, (), 0, jnp.maximum(known.count(row), 1))
        example = sampler.example(example_key, row, known.item_E[known.start(row) + offset])
        return example._replace(weight=example.weight * (known.count(row) > 0))

    def step(carry, step_key):
        tables, state = carry
        # All users have the same keys, so that none depends on its row.
        keys_P = jax.random.split(step_key, how.examples)
        examples = jax.vmap(lambda row: jax.vmap(draw, (0, None))(keys_P, row))(rows_N)
        n = len(rows_N) * how.examples
        batch = Batch.of(jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), examples))

        def total(tables):
            return how.objective(how.model, fixed | tables, batch, constants)

        updates, state = optimizer.update(jax.grad(total)(tables), state, tables)
        # optax's types lose the type of the tree.
        tables = cast(dict[str, jax.Array], optax.apply_updates(tables, updates))
        return (tables, state), None

    tables = {"users": users_NxD}
    keys_T = jax.random.split(key, how.steps)
    return jax.lax.scan(step, (tables, optimizer.init(tables)), keys_T)[0][0]["users"]
