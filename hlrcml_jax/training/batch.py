"""The input of a training step: the user and item indices of its examples."""

from typing import NamedTuple

import flax.struct
import jax


class Example(NamedTuple):
    """One example: the arrays of a `Batch`, without the leading axis."""

    user: jax.Array
    positive: jax.Array
    negative_N: jax.Array
    log_weight_N: jax.Array
    prefs_S: jax.Array
    mask_S: jax.Array
    weight: jax.Array
    uniform: jax.Array


class Batch(flax.struct.PyTreeNode):
    """B examples, as drawn by `sampling.draw_batch`.

    Attributes:
      user_B: user indices.
      positive_B: item indices of the positives.
      negative_BxN: item indices of the negatives; (1, N) if the examples share them.
      log_weight_BxN: log weight of each negative in the loss; -inf for items of the user.
      prefs_BxS: item indices of the preferences, the positive excluded.
      mask_BxS: True where a preference is real.
      weight_B: of examples in the loss, 1 without `data.weight`; 0 for padding.
      uniform_B: uniform in [0, 1), for the choice among the negatives.
      shared: whether the examples share their negatives.
    """

    user_B: jax.Array
    positive_B: jax.Array
    negative_BxN: jax.Array
    log_weight_BxN: jax.Array
    prefs_BxS: jax.Array
    mask_BxS: jax.Array
    weight_B: jax.Array
    uniform_B: jax.Array | None = None
    shared: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, examples: Example) -> "Batch":
        """From arrays of examples that are stacked on a leading axis."""
        return cls(*examples)
