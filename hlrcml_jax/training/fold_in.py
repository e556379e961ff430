"""Vectors for users that a trained model has never seen, with everything else fixed.

Relations use a new user's items at once. Its own vector starts at their mean and takes some steps
on the training loss of examples that are drawn from them, as in training: an item of the user, its
other items as preferences, and negatives from the rest of the catalogue, all equally likely.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax.models.base import Model
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import keep_rows_in_balls
from hlrcml_jax.training.sampling import Sampler, UserItems

USERS = 256  # at a time


@dataclasses.dataclass(frozen=True)
class FoldIn:
    """How vectors of new users are found.

    Attributes:
      model: the model.
      objective: that it was trained with.
      radius: of the ball of user rows; None leaves them free.
      steps: of Adam on each user's vector, whose rate falls to zero.
      examples: of each user in a step.
      learning_rate: of the first step.
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
        seed: int,
        **how: Any,
    ) -> np.ndarray:
        """Vectors (N, D); they depend on a user's items alone, not on the others.

        Args:
          params: of one device, tables without constants; `users` are not looked at.
          histories: CSR (N, I), the items of each new user.
          constants: of new users and of items, see `Model.constants`; or nothing.
          seed: of all draws.
          **how: attributes of `sampling.Sampler`.
        """
        n, key = histories.shape[0], jax.random.key(seed)
        fixed = {name: params[name] for name in ("items", "model")}
        longest = _rounded(int(np.diff(histories.indptr).max(initial=1)))
        found = []
        for start in range(0, n, USERS):
            part = histories[start : start + USERS]
            missing = _rounded(part.shape[0]) - part.shape[0]
            rows = UserItems.rows(part, longest)
            rows = rows.replace(start_U1=np.pad(rows.start_U1, (0, missing), mode="edge"))
            sampler = Sampler(rows, **how)
            begin_NxD = mean_of_items(part, np.asarray(params["items"]))
            begin_NxD = np.pad(begin_NxD, ((0, missing), (0, 0)))
            wide = dict(constants)
            if wide:
                of_users = constants["users"][start : start + USERS]
                wide["users"] = np.pad(of_users, ((0, missing), (0, 0)))
            found.append(_descend(self, fixed, sampler, wide, begin_NxD, key)[: part.shape[0]])
        return np.concatenate(found)


def _rounded(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def mean_of_items(histories: scipy.sparse.csr_array, items_IxD: np.ndarray) -> np.ndarray:
    """The mean of each user's items, zero without any."""
    count_Nx1 = np.maximum(np.diff(histories.indptr), 1)[:, None]
    return (histories.astype(np.float32) @ items_IxD / count_Nx1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _descend(how: FoldIn, fixed, sampler: Sampler, constants, users_NxD, key):
    schedule = optax.cosine_decay_schedule(how.learning_rate, how.steps)
    ball = {} if how.radius is None else {"users": how.radius}
    optimizer = optax.chain(optax.adam(schedule), keep_rows_in_balls(ball))
    rows_N, known = jnp.arange(len(users_NxD)), sampler.known

    def draw(key, row):
        place_key, example_key = jax.random.split(key)
        place = jax.random.randint(place_key, (), 0, jnp.maximum(known.count(row), 1))
        example = sampler.example(example_key, row, known.item_E[known.start(row) + place])
        return example.replace(weight_B=example.weight_B * (known.count(row) > 0))

    def step(carry, step_key):
        tables, state = carry
        # All users have the same keys, so that none depends on its place.
        keys_P = jax.random.split(step_key, how.examples)
        batch_NxP = jax.vmap(lambda row: jax.vmap(draw, (0, None))(keys_P, row))(rows_N)
        n = batch_NxP.weight_B.size
        batch = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), batch_NxP)

        def total(tables):
            return how.objective(how.model, fixed | tables, batch, constants)

        updates, state = optimizer.update(jax.grad(total)(tables), state, tables)
        # optax's types forget that a tree comes back as it was.
        tables = cast(dict[str, jax.Array], optax.apply_updates(tables, updates))
        return (tables, state), None

    tables = {"users": users_NxD}
    keys_T = jax.random.split(key, how.steps)
    with jax.default_matmul_precision("float32"):
        return jax.lax.scan(step, (tables, optimizer.init(tables)), keys_T)[0][0]["users"]
