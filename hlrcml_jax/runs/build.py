"""Building from a run: model, trainer, sampler, scorer, states and parameters."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax import custom, devices, keys, registry, schema
from hlrcml_jax.data.dataset import Known
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import make_model
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.closed_form import closed_form
from hlrcml_jax.ranking.metrics import Protocol
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.ranking.untrained import add_means, embed_untrained_users
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.run import Run
from hlrcml_jax.training.fold_in import FoldIn
from hlrcml_jax.training.interactions import Positives, UserItems
from hlrcml_jax.training.losses import Loss, logistic
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import learning_rate, make_optimizer, row_radii
from hlrcml_jax.training.sampling import Sampler, rarity
from hlrcml_jax.training.step import (
    Trainer,
    TrainState,
    constants_of,
    init_params,
    init_state,
    steps_per_epoch,
    widen,
)

# Float keys that may differ between runs trained side by side: they change no shape.
HYPERPARAMETERS = (
    "optimizer.learning_rate",
    "loss.temperature",
    "loss.margin",
    "model.memory_radius",
    "model.key_scale",
    "model.sharpness",
)
MANY = 20  # times as many items as candidates: then ranking these takes much less time
MAX_FOLD_IN_CANDIDATES = 50  # negatives per example of a new user, each with its own relation


# What is drawn at random; each has keys of its own.
DRAWS = ("parameters", "training", "validation loss", "preferences", "new users")


def key_of(run: Run, draw: str) -> jax.Array:
    """The key of one of the run's `DRAWS`."""
    seed = run.config.seed - getattr(jax.config, "jax_random_seed_offset", 0)  # jax adds it
    return jax.random.fold_in(jax.random.key(seed), DRAWS.index(draw))


def model_of(run: Run) -> Model:
    """The model of a run's config."""
    return make_model(run.config.model)


def placement_of(run: Run) -> devices.Placement:
    """The placement of a run's tables; solved models are replicated."""
    solved = model_of(run).spec.closed_form
    return devices.REPLICATED if solved else devices.PLACEMENTS[run.config.parallel.tables]


def protocol_of(run: Run) -> Protocol:
    """The evaluation protocol of a run's config."""
    options = run.config.evaluation
    return Protocol(
        options.cutoffs,
        options.definitions,
        0 if options.min_test_items == "k" else int(options.min_test_items),
        options.n_cohorts,
        options.cohort_size,
        run.config.data.split.seed,
        options.metrics,
    )


def validation_candidates(run: Run) -> int:
    """Candidates that a validation while training ranks for each user; 0 for all items."""
    n = run.config.evaluation.validation_candidates
    is_large = run.dataset.n_items > MANY * n and placement_of(run).parts is None
    return n if is_large and model_of(run).spec.attends else 0


def make_loss(options: schema.Loss, is_logistic: bool = False) -> Loss:
    """The loss of a config's `loss` section, with its options bound.

    Each option of the loss takes the value of the config key with its name, in `loss.options`
    or in `loss`; else its default.

    Args:
      options: the section.
      is_logistic: whether the model's pairwise loss is logistic instead of the hinge.
    """
    if is_logistic and options.kind == "hinge":
        return logistic
    path = registry.LOSSES.get(options.kind, options.kind)
    return custom.bind("loss.kind", path, options.options, options)


def loss_of(run: Run) -> schema.Loss:
    """The `loss` section of a run's config, with its temperature.

    A softmax over more items needs larger logits to prefer one of them, in proportion to the
    logarithm of their number; a cosine is at most 1.
    """
    loss = run.config.loss
    if not (isinstance(loss.temperature, float) and loss.temperature == 0):
        return loss
    of_cosine = 1.7 / math.log(max(run.dataset.n_items, 3))
    on_sphere = run.config.model.space == "sphere"
    return dataclasses.replace(loss, temperature=of_cosine if on_sphere else 2 * of_cosine)


def make_objective(
    loss: schema.Loss, negatives: schema.Negatives, is_logistic: bool = False
) -> Objective:
    """The objective of a config's sections `loss` and `negatives`."""
    made = make_loss(loss, is_logistic)
    sampled, hardest = negatives.sampled, negatives.hardest
    return Objective(made, sampled, hardest, loss.temperature, loss.copy_relation)


_constants_of = jax.jit(constants_of, static_argnums=0)
# One object for each config, so that what is compiled for new users is found again.
_known_objective = functools.lru_cache(maxsize=16)(make_objective)


def make_trainer(run: Run, hyperparameters: Mapping[str, jax.Array] | None = None) -> Trainer:
    """The trainer of a run's config; some of its `HYPERPARAMETERS` may be overridden by arrays."""
    run = dataclasses.replace(run, config=keys.replaced(run.config, hyperparameters or {}))
    config = run.config
    options, model = config.model, make_model(config.model)
    frozen = {"": (), "both": ("users", "items")}
    steps = steps_per_epoch(run.dataset.train.nnz, config.train.batch_size)
    return Trainer(
        model,
        make_objective(loss_of(run), config.negatives, model.spec.logistic),
        make_optimizer(
            learning_rate(config.optimizer, steps),
            row_radii(_radius(run), options.clip_memory, options.memory_radius),
            config.optimizer.clip_gradient,
            frozen.get(config.pretrained.freeze, (config.pretrained.freeze,)),
        ),
        config.train.batch_size,
        config.optimizer.rows,
        placement_of(run),
    )


def _radius(run: Run) -> float | None:
    """Radius of the ball of user and item embeddings; None without one."""
    return run.config.model.clip_norm if model_of(run).spec.ball else None


def _max_prefs(run: Run) -> int:
    spec = model_of(run).spec
    from_items = run.config.model.users == "items" and not spec.closed_form
    return run.config.model.max_prefs if spec.needs_past or from_items else 0


def make_sampler(run: Run, part: str = "train") -> Sampler:
    """The sampler of a part's examples, on the devices, sharded like the tables.

    Preferences of validation examples are drawn from the histories that validation may use.
    """
    negatives, known = run.config.negatives, run.dataset.train
    if part == "valid" and run.dataset.history.nnz:
        known = run.dataset.known("valid")[:]
    weights = negatives.weights
    if keys.is_path(weights):
        weights = custom.bind("negatives.weights", weights, negatives.options, negatives)
    return Sampler.of(
        known,
        _max_prefs(run),
        placement_of(run).parts,
        candidates=negatives.candidates,
        weights=run.config.model.prefs_sampling,
        candidate_weights=weights,
        shared=negatives.shared,
        correction=negatives.correction,
    ).place()


def make_positives(run: Run, part: str) -> Positives:
    """The interactions of a part, on the devices, sharded like the tables."""
    matrix = getattr(run.dataset, part)
    if part == "train":
        matrix = _weighted_train(run)
        if run.dataset.fresh is not None:
            more = run.config.train.new_weight - 1
            matrix = matrix + more * matrix.multiply(run.dataset.fresh)
            matrix = _with_mean_one(matrix, matrix.data)
    parts = placement_of(run).parts
    if parts is None:
        return devices.replicate(Positives.of(matrix))
    return devices.put(Positives.parts(matrix, *parts))


def _weighted_train(run: Run) -> scipy.sparse.csr_array:
    """The training part, with weights of mean 1 if it has any."""
    matrix = run.dataset.weighted_train()
    if run.dataset.weights is None:
        return matrix
    return _with_mean_one(matrix, matrix.data**run.config.loss.weight_power)


def _with_mean_one(matrix: scipy.sparse.csr_array, value_E: np.ndarray) -> scipy.sparse.csr_array:
    """A matrix with other values, divided by their mean, as float32."""
    value_E = (value_E / value_E.mean(dtype=float)).astype(np.float32)
    return scipy.sparse.csr_array((value_E, matrix.indices, matrix.indptr), shape=matrix.shape)


def make_serving_scorer(run: Run) -> Scorer:
    """As `make_scorer` for test, which also leaves out the items of test."""
    test = run.dataset.test
    return _scorer(run, run.dataset.known("test"), hidden=test if test.nnz else None)


def make_scorer(run: Run, part: str, relates: bool = True) -> Scorer:
    """A scorer with the histories for predicting a part, "valid" or "test".

    Without `relates`, it is of the model without its relation, which ranks faster.
    """
    return _scorer(run, run.dataset.known(part), relates=relates)


def make_new_scorer(
    run: Run, histories: scipy.sparse.csr_array, rarity_I: np.ndarray | None = None
) -> Scorer:
    """A scorer of new users; the preferences of each depend on its history and the seed only.

    Args:
      run: the run.
      histories: of the new users, CSR (N, I).
      rarity_I: see `Scorer`.
    """
    rows = np.split(histories.indices.astype(np.int64), histories.indptr[1:-1])
    digest_N = np.array([zlib.crc32(item_R.tobytes()) >> 1 for item_R in rows], np.int32)
    return _scorer(run, histories, rarity_I, digest_N)


def _scorer(
    run: Run,
    known: Known | scipy.sparse.csr_array,
    rarity_I: np.ndarray | None = None,
    draw_U: np.ndarray | None = None,
    relates: bool = True,
    hidden: scipy.sparse.csr_array | None = None,
) -> Scorer:
    model, max_prefs = model_of(run), run.config.scoring.max_prefs or run.config.model.max_prefs
    if not relates:
        model, max_prefs = model.without_relation(), 0 if model.spec.offsets else max_prefs
    return Scorer(
        model,
        known,
        max_prefs if _max_prefs(run) else 0,
        run.config.model.prefs_sampling,
        run.config.scoring.memory_mb,
        key_of(run, "preferences"),
        run.config.scoring.batch_size,
        run.config.scoring.storage,
        placement_of(run),
        rarity_I,
        draw_U,
        hidden,
    )


def initial_state(run: Run) -> TrainState:
    """The state before training, in the kept form; for a solved model the solution."""
    if solved := closed_form(model_of(run)):
        params = solved.fit(_weighted_train(run), run.config.seed)
        return jax.device_get(init_state(params, optax.identity()))
    return placement_of(run).make(functools.partial(_make_state, run))


def empty_state(run: Run) -> TrainState:
    """A state like `initial_state` without its values, to restore a checkpoint into."""
    solved = closed_form(model_of(run))
    if solved is None:
        shapes = jax.eval_shape(functools.partial(_make_state, run))
        return placement_of(run).target(shapes)
    n_rows = {"users": run.dataset.n_users, "items": run.dataset.n_items}
    widths = zip(n_rows.items(), solved.widths(run.dataset.n_items), strict=True)
    tables = {name: np.zeros((n, width), np.float32) for (name, n), width in widths}
    return jax.device_get(init_state(tables | {"model": {}}, optax.identity()))


def _make_state(run: Run) -> TrainState:
    trainer = make_trainer(run)
    params = init_params(
        key_of(run, "parameters"),
        trainer.model,
        run.dataset.n_users,
        run.dataset.n_items,
        run.config.model.dim,
        run.config.model.users == "vectors",
    )
    return init_state(trainer.placement.fill_up(params), trainer.optimizer)


def least_bytes(run: Run) -> int:
    """Bytes of the parameters, their two moments and the indices of a batch; 0 if solved."""
    config, model = run.config, model_of(run)
    if model.spec.closed_form:
        return 0
    dim, slots = config.model.dim, config.model.memory_slots
    rows = run.dataset.n_users + run.dataset.n_items + (2 * slots if model.spec.needs_past else 0)
    indices = config.train.batch_size * (2 + _max_prefs(run) + config.negatives.candidates)
    return 4 * (3 * rows * dim + indices)


def count_parameters(run: Run) -> int:
    """Number of trained parameters."""
    params = empty_state(run).params
    rows = {"users": run.dataset.n_users, "items": run.dataset.n_items}
    tables = sum(rows[name] * params[name].shape[1] for name in rows if name in params)
    return tables + sum(leaf.size for leaf in jax.tree.leaves(params["model"]))


def params_for(run: Run, params: dict[str, Any], part: str) -> dict[str, Any]:
    """Parameters of a checkpoint for predicting a part, on the devices.

    Untrained users get embeddings, users of a model with offsets the mean of all their items, and
    tables the model's constants.
    """
    model, placement = model_of(run), placement_of(run)
    if model.spec.offsets:
        return with_means(run, params, run.dataset.known(part))
    ready = with_untrained_users(run, placement.place(params), part)
    if model.spec.constants:
        trained = devices.replicate(UserItems.of(run.dataset.train))
        ready = devices.pmap(functools.partial(widen, model))(ready, trained)
    return ready


def with_means(
    run: Run, params: dict[str, Any], histories: Known | scipy.sparse.csr_array
) -> dict[str, Any]:
    """Parameters on the devices, with users made of their embedding and of all their items."""
    model, placement = model_of(run), placement_of(run)
    n, dim = histories.shape[0], run.config.model.dim
    if "users" not in params:
        params = params | {"users": np.zeros((n, dim), np.float32)}
    placed = placement.place(params)
    return add_means(placed, np.arange(n), histories, _vectors_of(model, dim), placement)


@functools.lru_cache(maxsize=16)
def _vectors_of(model: Model, dim: int) -> Callable[[jax.Array], jax.Array]:
    """From rows of items to their vectors; one function for each model."""
    return lambda row: model.embed(row)[..., :dim]


def with_untrained_users(run: Run, placed: dict[str, Any], part: str) -> dict[str, Any]:
    """Placed parameters, with embeddings of users without training interactions."""
    if "users" not in placed or model_of(run).spec.rows_are_histories:
        return placed
    known = run.dataset.known(part)
    return embed_untrained_users(placed, run.dataset.train, known, placement_of(run))


def on_host(run: Run, placed: dict[str, Any]) -> dict[str, Any]:
    """Placed parameters as host arrays; sharded tables may end with zero rows."""
    return jax.tree.map(devices.to_host, placement_of(run).keep(placed))


def with_new_users(
    run: Run, params: dict[str, Any], histories: scipy.sparse.csr_array
) -> dict[str, Any]:
    """Parameters with the embeddings of new users as `users`, on the devices.

    Args:
      run: with replicated tables.
      params: of a checkpoint.
      histories: of the new users, CSR (N, I).
    """
    config, model, place = run.config, model_of(run), placement_of(run).place
    if model.spec.offsets:
        return with_means(run, {name: params[name] for name in ("items", "model")}, histories)
    if "users" not in params:  # they are represented by their items
        return place(params)
    if solved := closed_form(model):
        users = solved.fold_in(params["items"], histories)
        return place(params | {"users": users.astype(np.float32)})
    constants = {}
    if model.spec.constants:
        trained = _constants_of(model, params, UserItems.of(run.dataset.train))
        zeros = {"users": np.zeros((histories.shape[0], params["users"].shape[1]))}
        new = _constants_of(model, params | zeros, UserItems.of(histories))
        constants = jax.device_get({"users": new["users"], "items": trained["items"]})
    objective = _known_objective(loss_of(run), config.negatives, model.spec.logistic)
    fold_in = FoldIn(model, objective, _radius(run))
    users = fold_in(
        params,
        histories,
        constants,
        key_of(run, "new users"),
        log_weight_I=rarity(run.dataset.train),
        max_prefs=_max_prefs(run),
        candidates=min(config.negatives.candidates, MAX_FOLD_IN_CANDIDATES),
        weights=config.model.prefs_sampling,
        correction=config.negatives.correction,
    )
    params = params | {"users": users}
    wide = {name: np.hstack([params[name], constants[name]]) for name in constants}
    return place(params | wide)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint of a run.

    Attributes:
      run: the run; of one that was refitted, with validation in the training part.
      epoch: of the checkpoint.
      params: in the kept form.
    """

    run: Run
    epoch: int
    params: dict[str, Any]

    @functools.cached_property
    def ready(self) -> dict[str, Any]:
        """Parameters for predicting test, on the devices."""
        return params_for(self.run, self.params, "test")

    @functools.cached_property
    def on_host(self) -> dict[str, Any]:
        """The same as host arrays; all processes must call this."""
        return on_host(self.run, self.ready)


def best_checkpoint(run: Run) -> Best:
    """Loads the best checkpoint of a run.

    Raises:
      UserError: when there is none.
    """
    trained = _trained(run)
    epoch, state = _best(trained)
    return Best(dataclasses.replace(run, dataset=trained.dataset), epoch, state.params)


def best_state(run: Run) -> TrainState:
    """The state of the best checkpoint of a run; raises `UserError` as `best_checkpoint` does."""
    return _best(_trained(run))[1]


def _trained(run: Run) -> Run:
    return run.refitted() if run.is_refitted else run


def _best(run: Run) -> tuple[int, TrainState]:
    with Checkpoints(run.workdir) as checkpoints:
        best = checkpoints.best(empty_state(run))
    if best is None:
        raise UserError(f"{run.workdir}: there is no checkpoint yet; train first (--mode=train).")
    return best
