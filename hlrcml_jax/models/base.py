"""The interface of every model, and nothing else.

A model sees rows of tables, never tables, and is written once: for B users with T targets of their
own, (B, T, D), or T targets shared by all users, (1, T, D). Training calls it with one target per
example, ranking with a block of the catalogue, shared negatives with those negatives.

Scores are computed in stages, so that no stage is repeated over an axis it does not depend on:

* `users`: users and their past items, once for all targets;
* `relate`: past items and targets, once for all users that share the targets;
* `meet`: users and targets, batched over users;
* `scores`: from all of these, with the past items and the result of `relate` as a `Past`.

Every method has a default but `closeness`, which `MetricModel` in `distances.py` defines, and two
that not every model needs: `mixture`, of models with a memory, and `item_similarity`, for similar
items. Who overrides `scores` may leave out `closeness`, unless negatives are chosen or copy the
positive's relation, or candidates are retrieved.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Users = dict[str, Any]
Attended = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spec:
    """The requirements and capabilities of a model.

    Attributes:
      history: `users` uses past items, so they must be drawn.
      attends: `attention` and `scores` use them too, so recommendations can be explained.
      memory: it has a relation memory named `memory`, and a `mixture` over its slots.
      ball: user and item embeddings are kept in a ball.
      logistic: its pairwise loss is logistic instead of the hinge.
      constants: its `constants` are appended to rows.
      closed_form: it is solved, not trained (see `closed_form.py`).
      offsets: a user's row is added to the mean of its items, and may be zero.
      rows_are_histories: a user's row is its history, (I,), instead of a row of a table.
      users_from_items: users can be represented by their items instead of an embedding.
      sharded: tables can be sharded by rows; no method needs a whole table.
    """

    history: bool = False
    attends: bool = False
    memory: bool = False
    ball: bool = True
    logistic: bool = False
    constants: bool = False
    closed_form: bool = False
    offsets: bool = False
    rows_are_histories: bool = False
    users_from_items: bool = True
    sharded: bool = True

    @property
    def needs_past(self) -> bool:
        """Whether past items must be drawn and gathered."""
        return self.history or self.attends


class Related(flax.struct.PyTreeNode):
    """Relations and similarities of past items and targets, independent of the user.

    Attributes:
      relation: mixture weights of rel(p, t): (X, M, T) of a table of X items with T targets, or of
        each example's past items with its one target, (B, S, M), or its T targets, (B, M, T, S);
        None without a memory.
      similarity: `<p, t>`, (X, T), (B, S) or (B, S, T); or None.
      pull: `<r, t>` of the translation r that a past item contributes, like `similarity`; on the
        sphere, else None.
    """

    relation: jax.Array = flax.struct.field(default=None)
    similarity: jax.Array = flax.struct.field(default=None)
    pull: jax.Array = flax.struct.field(default=None)


class Past(Protocol):
    """Past items of B users, with their relations to T targets (see `past.py`)."""

    @property
    def mask_BxS(self) -> jax.Array:
        """True where a past item is real."""
        ...

    def similarity(self) -> jax.Array:
        """`Related.similarity` of the past items, (B, S, T)."""
        ...

    def pull(self, weights_BxSxT: jax.Array) -> jax.Array:
        """`sum_k w_k <r_k, t>`, (B, T), from `Related.pull`."""
        ...

    def attend(
        self,
        query_BxMxT: jax.Array,
        beta: float,
        first_Bx1xT: jax.Array | None = None,
        prior_BxSxT: jax.Array | None = None,
    ) -> Attended:
        """Attends to the relations; `attention.attend` adds that of slot 0.

        Args:
          query_BxMxT: V x of the query vector x, one per target, or (B, M, 1) for all.
          beta: exponent of the denominator.
          first_Bx1xT: logit of slot 0, or None.
          prior_BxSxT: added to the logits `<rel_k, x>`, or None.

        Returns:
          Weights (B, S, T) of the past items, weight (B, 1, T) of slot 0, and mixture weights
          (B, M, T) of the sum over the past items.
        """
        ...

    def mix_rows(self, weights_BxSxT: jax.Array) -> jax.Array:
        """sum_k w_k p_k, (B, T, D)."""
        ...

    def map_rows(self, function: Callable[[jax.Array], jax.Array]) -> "Past":
        """With a function of the past items' rows instead of the rows."""
        ...


class Attention(NamedTuple):
    """The weights of an attention over past items.

    Attributes:
      weights_BxSxT: of the past items; zero outside the mask.
      first_Bx1xT: of slot 0, the user or the target itself; zero without one.
      mixture_BxMxT: mixture weights of the attended sum; None for attention over rows.
    """

    weights_BxSxT: jax.Array
    first_Bx1xT: jax.Array
    mixture_BxMxT: jax.Array | None = None

    @property
    def mixture(self) -> jax.Array:
        """`mixture_BxMxT`, for attention over relations."""
        assert self.mixture_BxMxT is not None
        return self.mixture_BxMxT

    def shares(self) -> jax.Array:
        """Attention normalised to shares, (B, S, T); slot 0 has the rest to 1."""
        total_Bx1xT = self.first_Bx1xT + jnp.sum(self.weights_BxSxT, axis=1, keepdims=True)
        return self.weights_BxSxT / jnp.where(total_Bx1xT > 0, total_Bx1xT, 1.0)


class Model(nn.Module):
    """score(u, t) = closeness(u + relation(u, t), t), or closeness(u, t) without a relation.

    The dataclass fields of a model are its options. A row is a vector of D components, unless
    `init_rows` makes it wider or `constants` appends to it.
    """

    spec: ClassVar[Spec] = Spec()

    if TYPE_CHECKING:
        # Flax generates it from the fields; its types do not say so.
        def __hash__(self) -> int: ...

    def embed(self, row: jax.Array) -> jax.Array:
        """Items as all other methods take them, from their rows of the table, (..., D)."""
        return row

    def represent(
        self, user_BxD: jax.Array | None, past_BxSxD: jax.Array, mask_BxS: jax.Array
    ) -> jax.Array:
        """Vectors (B, D) of users: their rows; without a table of users, from their n items.

        Those have the sum of the items / sqrt(n) (Koren, KDD 2008). In training the positive is
        excluded, so that a user is predicted from its other items.

        Args:
          user_BxD: user rows, or None.
          past_BxSxD: past items.
          mask_BxS: True where a past item is real.
        """
        if user_BxD is not None:
            return user_BxD
        count_Bx1 = jnp.maximum(jnp.sum(mask_BxS, axis=1, keepdims=True), 1)
        return jnp.einsum("bsd,bs->bd", past_BxSxD, mask_BxS / jnp.sqrt(count_Bx1))

    def users(self, user_BxD: jax.Array, past_BxSxD: jax.Array, mask_BxS: jax.Array) -> Users:
        """Per-user arrays for all targets, including the user embedding `user_BxD`.

        Args:
          user_BxD: user vectors, see `represent`.
          past_BxSxD: rows of past items, zero where masked.
          mask_BxS: True where a past item is real.
        """
        return {"user_BxD": user_BxD}

    def relate(self, past: jax.Array, target: jax.Array) -> Related:
        """Relations and similarities of past items and targets.

        Args:
          past: a table (X, D), or each example's past items (B, S, D).
          target: (T, D), or targets of each example (B, T, D).
        """
        return Related()

    def meet(self, users: Users, target_BxTxD: jax.Array) -> Any:
        """Arrays per pair of user and target, with a leading axis B."""
        return {}

    def attention(
        self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past
    ) -> dict[str, Attention]:
        """The attentions by name, `share` first; `scores` uses the same."""
        return {}

    def mixture(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """Mixture weights (B, M, T) of the relations; for a model with a memory."""
        raise TypeError(f"{type(self).__name__} has no relation memory")

    def relation(
        self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past
    ) -> jax.Array | None:
        """Relations (B, T, D) that translate users to targets; None for no relation."""
        return None

    def pulls(self, related: Related, target: jax.Array) -> jax.Array | None:
        """`Related.pull`, from the rest and the targets of `relate`; None if `pull` needs none."""
        return None

    def user_pull(self, met: Any, target_BxTxD: jax.Array) -> jax.Array | float:
        """`<r, t>`, (B, T), of the relation r of the user itself, from the result of `meet`."""
        return 0.0

    def pull(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """`<relation, t>`, (B, T): all that the sphere needs of a relation (see `sphere.py`).

        There `past.pull` sums what `pulls` returned, and `met["pull_BxT"]` that of `user_pull`.
        """
        relation_BxTxD = self.relation(users, met, target_BxTxD, past)
        if relation_BxTxD is None:
            return jnp.zeros(())
        return jnp.sum(relation_BxTxD * target_BxTxD, axis=2)

    def without_relation(self) -> "Model":
        """The model with the relation left out, for training while its gate is zero."""
        return self

    def closeness(self, moved_BxTxD: jax.Array, target_BxTxD: jax.Array) -> jax.Array:
        """Scores (B, T) of translated users, higher is better.

        Args:
          moved_BxTxD: user + relation per target, or (B, 1, D) for all targets.
          target_BxTxD: item rows per user, or (1, T, D) for all users.
        """
        raise TypeError(f"{type(self).__name__} has no closeness")

    def user_factors(self, user_BxD: jax.Array) -> jax.Array:
        """(B, F) of user vectors, see `users`; their inner products order items as `closeness`."""
        raise TypeError(f"{type(self).__name__} has no closeness that is an inner product")

    def item_factors(self, target_TxD: jax.Array) -> jax.Array:
        """(T, F) of item rows, to go with `user_factors`."""
        return target_TxD

    def moved(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """Users translated by their relations: (B, T, D), or (B, 1, D) without relations."""
        relation_BxTxD = self.relation(users, met, target_BxTxD, past)
        user_Bx1xD = users["user_BxD"][:, None]
        return user_Bx1xD if relation_BxTxD is None else user_Bx1xD + relation_BxTxD

    def scores(self, users: Users, met: Any, target_BxTxD: jax.Array, past: Past) -> jax.Array:
        """Scores (B, T), higher is better.

        Args:
          users: result of `users`.
          met: result of `meet`.
          target_BxTxD: item rows per user, or (1, T, D) for all users.
          past: the past items.
        """
        return self.closeness(self.moved(users, met, target_BxTxD, past), target_BxTxD)

    def penalty(
        self,
        user_BxD: jax.Array | None,
        positive_BxD: jax.Array,
        negative_NxBxD: jax.Array,
        score_B: jax.Array,
    ) -> jax.Array | float:
        """Regularisation of each example, (B,).

        Args:
          user_BxD: user rows; None without a table of users.
          positive_BxD: rows of the positives.
          negative_NxBxD: rows of the negatives that enter the loss, of which the mean counts;
            (N, 1, D) if the examples share them.
          score_B: scores of the positives.
        """
        return 0.0

    def init_rows(self, key: jax.Array, n_rows: int, dim: int) -> jax.Array:
        """The initial table: (n_rows, D) from N(0, 1/D)."""
        return jax.random.normal(key, (n_rows, dim)) * dim**-0.5

    def init_users(self, key: jax.Array, n_rows: int, dim: int) -> jax.Array:
        """The initial table of users; by default as that of items."""
        return self.init_rows(key, n_rows, dim)

    def constants(
        self, tables: dict[str, jax.Array], user_E: jax.Array, item_E: jax.Array
    ) -> dict[str, jax.Array]:
        """Columns appended to each table, constant during an epoch and without gradient.

        Args:
          tables: `users` (U, D) and `items` (I, D).
          user_E: user indices of the training interactions.
          item_E: item indices of the training interactions.
        """
        return {}

    def item_similarity(self, items_IxD: np.ndarray, item_T: np.ndarray) -> np.ndarray:
        """Similarity (T, I) of every item to the given ones."""
        raise TypeError(f"{type(self).__name__} has no item similarity")
