"""The optax chain: Adam on a schedule, then the projection of every row into its norm ball.

Everything works row by row, so it also applies to only the rows that a batch touches.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from hlrcml_jax import devices


def distinct(row_N: jax.Array, n_rows: int) -> tuple[jax.Array, jax.Array]:
    """The distinct row indices, and the index of each among them, in static shapes.

    Args:
      row_N: row indices in any order; R for none.
      n_rows: R.

    Returns:
      (chosen, index (N,)). If N < R, `chosen` (N,) has the distinct rows in ascending order, padded
      with R; else it is a mask (R,) of all rows, and `index` is `row_N`.
    """
    n = len(row_N)
    if n > n_rows // 16:
        # Unless R is much larger than N, marking rows is much cheaper than sorting.
        seen_R = jnp.zeros(n_rows, bool).at[row_N].set(True, mode="drop")
        if n >= n_rows:
            return seen_R, row_N
        index_R = jnp.cumsum(seen_R) - 1
        return jnp.nonzero(seen_R, size=n, fill_value=n_rows)[0], index_R[row_N]
    return jnp.unique(row_N, size=n, fill_value=n_rows, return_inverse=True)


def take_rows(tree: Any, chosen: dict[str, jax.Array]) -> Any:
    """Parameters, or their optimizer state, with only the chosen rows of the tables.

    Args:
      tree: with tables under the keys `users` and `items`; the rest is unchanged.
      chosen: rows of each table, as returned by `distinct`; a mask takes the whole table, and a row
        past the end is zeros.
    """

    def take(path, leaf):
        rows = chosen.get(devices.table_name(path) or "")
        whole = rows is None or rows.dtype == bool
        return leaf if whole else leaf.at[rows].get(mode="fill", fill_value=0)

    return jax.tree.map_with_path(take, tree)


def put_rows(tree: Any, chosen: dict[str, jax.Array], new: Any) -> Any:
    """The tree with the chosen rows replaced by those of `new`; the inverse of `take_rows`."""

    def put(path, leaf, new):
        rows = chosen.get(devices.table_name(path) or "")
        if rows is None:
            return new
        if rows.dtype == bool:
            return jnp.where(rows[:, None], new, leaf)
        return leaf.at[rows].set(new, mode="drop")

    return jax.tree.map_with_path(put, tree, new)


def project_rows(table_RxD: jax.Array, radius: float) -> jax.Array:
    """Projects rows (R, D) onto the ball of the radius."""
    norm_Rx1 = jnp.sqrt(jnp.sum(jnp.square(table_RxD), axis=1, keepdims=True))
    return table_RxD * (radius / jnp.maximum(norm_Rx1, radius))


def keep_rows_in_balls(radii: dict[str, Any]) -> optax.GradientTransformation:
    """Modifies updates so that the updated rows stay in their balls.

    Args:
      radii: nested like the parameters, with a radius for each bounded table; others are not
        bounded.

    Returns:
      A transformation to put last in an `optax.chain`; its `update` needs the parameters.

    >>> tx = optax.chain(optax.sgd(1.0), keep_rows_in_balls({"users": 1.0}))
    >>> params = {"users": jnp.array([[0.6, 0.0]])}
    >>> updates, _ = tx.update({"users": jnp.array([[-0.9, 0.0]])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["users"].tolist()
    [[1.0, 0.0]]
    """

    def project(updates, params, radii):
        if isinstance(radii, dict):
            if not isinstance(updates, dict):
                return updates
            return {
                name: project(update, params[name], radii[name]) if name in radii else update
                for name, update in updates.items()
            }
        return project_rows(params + updates, radii) - params

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "keep_rows_in_balls needs the parameters: update(updates, state, params)."
            )
        return project(updates, params, radii), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def row_radii(
    clip_norm: float | None, clip_memory: bool = False, memory_radius: float | None = None
) -> dict[str, Any]:
    """The radius of each table: `clip_norm` for users and items, and the memory's own.

    Args:
      clip_norm: radius of user and item rows; None for no bound.
      clip_memory: whether rows of keys and values have radius 1, as in the paper's option.
      memory_radius: radius of the value rows; None leaves them to `clip_memory`.
    """
    memory = {"keys": 1.0, "values": 1.0} if clip_memory else {}
    if memory_radius is not None:
        memory["values"] = memory_radius
    tables = {} if clip_norm is None else {"users": clip_norm, "items": clip_norm}
    return tables | {"model": {"memory": memory}}


def learning_rate(options: Any, steps_per_epoch: int) -> optax.ScalarOrSchedule:
    """The learning rate, constant or as a schedule over steps.

    Args:
      options: the `optimizer` section of a config.
      steps_per_epoch: converts epochs to steps.
    """

    def steps_of(epochs: int) -> int:
        return min(epochs * steps_per_epoch, 2**31 - 1)  # steps are counted in int32

    rate = options.learning_rate
    if options.schedule == "exponential":
        rate = optax.exponential_decay(rate, steps_per_epoch, options.decay, staircase=True)
    elif options.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, steps_of(options.cosine_epochs))
    if options.warmup_epochs:
        steps = steps_of(options.warmup_epochs)
        after = cast(optax.Schedule, rate) if callable(rate) else optax.constant_schedule(rate)
        warmup = optax.linear_schedule(0.0, options.learning_rate, steps)
        rate = optax.join_schedules([warmup, after], [steps])
    return rate


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    radii: dict[str, Any],
    clip_gradient: float | None = None,
    frozen: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam and the projection, as one transformation of all parameters.

    Args:
      learning_rate: constant, or a schedule over steps.
      radii: of the tables, see `keep_rows_in_balls`.
      clip_gradient: largest global norm of the gradient; None for no bound.
      frozen: names of tables that are not trained.
    """
    clip = [] if clip_gradient is None else [optax.clip_by_global_norm(clip_gradient)]
    chain = [*clip, optax.adam(learning_rate), keep_rows_in_balls(radii)]
    if frozen:
        still = optax.masked(optax.set_to_zero(), lambda params: _is_frozen(params, frozen))
        chain = [still, *chain, still]  # no part of the gradient's norm, and not projected
    return optax.chain(*chain)


def _is_frozen(params: Any, frozen: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: jax.tree.map(lambda _, name=name: name in frozen, value)
        for name, value in params.items()
    }
