"""The interface of every model, and nothing else.

A model sees rows of tables, never tables, and is written once: for B users that have T targets
each, of their own (B, T, D), or the same T for all, (1, T, D). Training calls it with one target of
an example's own at a time, ranking with a block of the catalogue, shared candidates with those.

What a user and a target make of each other is computed in stages, so that each part is computed as
rarely as what it depends on allows:

* `users` from users and their past items, once for all targets;
* `relate` from past items and targets, once for all users that share the targets;
* `meet` from users and targets, batched over users;
* `scores` from all of these. The past items, and what `relate` found, come to it as a `Past`.

All but `closeness` has a default, and the `MetricModel` of `distances.py` has one for that too.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Users = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model needs of its callers, and what it allows them.

    Attributes:
      history: `users` looks at past items, so that they must be drawn.
      attends: `attention` and `scores` look at them too, so that reasons can be given.
      memory: it has a `mixture` over the slots of a relation memory.
      ball: rows of users and items are kept in a ball.
      logistic: its pairwise loss is the logistic one in place of the hinge.
      constants: rows are widened by its `constants`.
      closed_form: it is solved, not trained (see `closed_form.py`).
      rows_are_histories: a user's row is its history, (I,), and not in a table.
      users_from_items: a user may be represented by its items in place of an embedding.
      sharded: tables may be sharded by rows, since no method needs a table as a whole.
    """

    history: bool = False
    attends: bool = False
    memory: bool = False
    ball: bool = True
    logistic: bool = False
    constants: bool = False
    closed_form: bool = False
    rows_are_histories: bool = False
    users_from_items: bool = True
    sharded: bool = True

    @property
    def needs_past(self) -> bool:
        """Whether past items must be drawn and gathered."""
        return self.history or self.attends


class Related(flax.struct.PyTreeNode):
    """What past items and targets have in common, whoever the user is.

    Attributes:
      relation: mixture weights of rel(p, t): (X, M, T) of a table of X items with T targets, or
        (B, S, M) of the past items of each example with its one target; None without a memory.
      similarity: what an attention adds to its logits for them, (X, T) or (B, S); or None.
    """

    relation: jax.Array = flax.struct.field(default=None)
    similarity: jax.Array = flax.struct.field(default=None)


class Past(Protocol):
    """The past items of B users as seen from T targets (see `past.py`)."""

    @property
    def mask_BxS(self) -> jax.Array:
        """True where a past item is real."""
        ...

    def similarity(self) -> jax.Array:
        """What `relate` found, (B, S, T)."""
        ...

    def attend(
        self,
        query_BxMxT: jax.Array,
        beta: float,
        first_Bx1xT: jax.Array | None = None,
        prior_BxSxT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Attends to the relations; `attention.attend` adds that of the slot before them.

        Args:
          query_BxMxT: V x of the vector x that attends, one for each target or (B, M, 1).
          beta: power of the denominator.
          first_Bx1xT: the logit of a slot before the past items, or None.
          prior_BxSxT: is added to the logits <rel_k, x>, or None.

        Returns:
          Weights (B, S, T) of the past items, weight (B, 1, T) of the slot before them, and mixture
          weights (B, M, T) of the sum over the past items.
        """
        ...

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        """sum_k w_k p_k, (B, T, D)."""
        ...


class Attention(NamedTuple):
    """The weights of an attention over past items.

    Attributes:
      weights_BxSxT: of the past items; zero outside the mask.
      first_Bx1xT: of a slot before them, the user or the target itself; zero without one.
      mixture_BxMxT: the attended sum of relations; None of an attention over rows.
    """

    weights_BxSxT: jax.Array
    first_Bx1xT: jax.Array
    mixture_BxMxT: jax.Array | None = None

    @property
    def mixture(self) -> jax.Array:
        """`mixture_BxMxT`, of an attention over relations."""
        assert self.mixture_BxMxT is not None
        return self.mixture_BxMxT

    def shares(self) -> jax.Array:
        """Shares (B, S, T) of the attention; the slot before has what is missing of 1."""
        total_Bx1xT = self.first_Bx1xT + jnp.sum(self.weights_BxSxT, axis=1, keepdims=True)
        return self.weights_BxSxT / jnp.where(total_Bx1xT > 0, total_Bx1xT, 1.0)


class Model(nn.Module):
    """score(u, t) is the closeness of u + relation(u, t) and t; without a relation that of u and t.

    The dataclass fields of a model are its options. A row is a vector of D numbers, unless
    `init_rows` makes it wider or `constants` adds to it.
    """

    spec: ClassVar[Spec] = Spec()

    if TYPE_CHECKING:
        # Flax makes one of the fields, which its types do not tell.
        def __hash__(self) -> int: ...

    def users(self, user_BxD: jax.Array, past_BxSxD: jax.Array, mask_BxS: jax.Array) -> Users:
        """What all targets of a user need, with the user's vector as `user_BxD`.

        Args:
          user_BxD: user rows.
          past_BxSxD: rows of past items, zero where they are masked.
          mask_BxS: True where a past item is real.
        """
        return {"user_BxD": user_BxD}

    def relate(self, past: jax.Array, target: jax.Array) -> Related:
        """What past items and targets have in common.

        Args:
          past: a table (X, D), or the past items of each example (B, S, D).
          target: (T, D), or one target of each example (B, 1, D).
        """
        return Related()

    def meet(self, users: Users, target_BxTxD: jax.Array) -> Any:
        """What each pair of user and target needs: arrays with a leading axis B."""
        return {}

    def attention(
        self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past
    ) -> dict[str, Attention]:
        """The attentions by name, `share` first; `scores` itself calls it."""
        return {}

    def relation(
        self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past
    ) -> jax.Array | None:
        """The vectors (B, T, D) that move each user towards its targets; None: it stays."""
        return None

    def closeness(self, moved_BxTxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
        """Scores (B, T) of users that are moved already, higher is better.

        Args:
          moved_BxTxD: a moved user for each target, or (B, 1, D) for all.
          target_BxTxD: item rows, of each user's own or (1, T, D) for all.
        """
        raise TypeError(f"{type(self).__name__} has no closeness")

    def moved(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """The users moved by their relations: (B, T, D), or (B, 1, D) where there are none."""
        relation_BxTxD = self.relation(users, met, target_BxTxD, past)
        user_Bx1xD = users["user_BxD"][:, None]
        return user_Bx1xD if relation_BxTxD is None else user_Bx1xD + relation_BxTxD

    def scores(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """Scores (B, T), higher is better.

        Args:
          users: what `users` gave.
          met: what `meet` gave.
          target_BxTxD: item rows, of each user's own or (1, T, D) for all.
          past: the past items.
        """
        return self.closeness(self.moved(users, met, target_BxTxD, past), target_BxTxD)

    def penalty(
        self,
        user_BxD: jax.Array,
        positive_BxD: jax.Array,
        negative_NxBxD: jax.Array,
        score_B: jax.Array,
    ) -> jax.Array | float:
        """What each example adds to its loss, (B,); `score_B` is the positive's."""
        return 0.0

    def init_rows(self, key: jax.Array, n_rows: int, dim: int) -> jax.Array:
        """A table as training starts: (n_rows, D) from N(0, 1/D)."""
        return jax.random.normal(key, (n_rows, dim)) * dim**-0.5

    def constants(
        self, tables: dict[str, jax.Array], user_E: jax.Array, item_E: jax.Array
    ) -> dict[str, jax.Array]:
        """Columns behind the rows of each table, constant during an epoch and without a gradient.

        Args:
          tables: `users` (U, D) and `items` (I, D).
          user_E: users of the training interactions.
          item_E: their items.
        """
        return {}

    def item_similarity(self, items_IxD: np.ndarray, item_T: np.ndarray) -> np.ndarray:
        """Similarity of some items to all, (T, I)."""
        raise TypeError(f"{type(self).__name__} has no item similarity")
