"""What a training step is given: the ids of its examples."""

import flax.struct
import jax


class Batch(flax.struct.PyTreeNode):
    """B examples of ids, as `sampling.draw_batch` makes them.

    Attributes:
      user_B: user ids.
      positive_B: an item of each user.
      negative_BxN: candidates of each example, or (1, N) when all share them.
      log_weight_BxN: of each candidate in a softmax; -inf for those that are items of the user.
      prefs_BxS: preferences of the user, the positive not among them.
      mask_BxS: True where a preference is real.
      weight_B: 1 for real examples, 0 for those that only fill the batch.
      shared: whether all examples have the same candidates.
    """

    user_B: jax.Array
    positive_B: jax.Array
    negative_BxN: jax.Array
    log_weight_BxN: jax.Array
    prefs_BxS: jax.Array
    mask_BxS: jax.Array
    weight_B: jax.Array
    shared: bool = flax.struct.field(pytree_node=False, default=False)
