"""What a config and its data make: model, training, sampling, scoring, states and parameters."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax import custom, devices, keys, schema
from hlrcml_jax.data.dataset import Known
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import make_model
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.closed_form import closed_form
from hlrcml_jax.ranking.metrics import Protocol
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.ranking.untrained import place_untrained_users
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.run import Run
from hlrcml_jax.training.fold_in import FoldIn
from hlrcml_jax.training.losses import Loss, logistic
from hlrcml_jax.training.objective import Objective
from hlrcml_jax.training.optimizer import learning_rate, make_optimizer, row_radii
from hlrcml_jax.training.sampling import Positives, Sampler, UserItems, rarity
from hlrcml_jax.training.step import (
    Trainer,
    TrainState,
    constants_of,
    init_params,
    init_state,
    steps_per_epoch,
    widen,
)

# Of a config, what changes the numbers of training and no shape.
NUMBERS = (
    "optimizer.learning_rate",
    "loss.temperature",
    "loss.margin",
    "model.memory_radius",
    "model.key_scale",
    "model.sharpness",
)
MOST_CANDIDATES = 50  # of a new user's examples, each with a relation of its own


def model_of(run: Run) -> Model:
    """The model of a run's config."""
    return make_model(run.config.model)


def placement_of(run: Run) -> devices.Placement:
    """Where the tables of a run are; what is solved is on every device."""
    solved = model_of(run).spec.closed_form
    return devices.REPLICATED if solved else devices.PLACEMENTS[run.config.parallel.tables]


def protocol_of(run: Run) -> Protocol:
    """What a run's config says about evaluation."""
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


def make_loss(options: schema.Loss, is_logistic: bool = False) -> Loss:
    """The loss that a config's `loss` section describes, with its options.

    Each keyword-only parameter of its function has the value of the key of its name, of `loss` or
    of `loss.options`; else its default.

    Args:
      options: of the section.
      is_logistic: whether the model's pairwise loss is the logistic one in place of the hinge.
    """
    if is_logistic and options.kind == "hinge":
        return logistic
    path = schema.LOSSES.get(options.kind, options.kind)
    parameters = inspect.signature(custom.resolve("loss.kind", path)).parameters
    keys_of_loss = {
        name: getattr(options, name)
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and hasattr(options, name)
    }
    return custom.bind("loss.kind", path, keys_of_loss | dict(options.options))


def make_trainer(run: Run, numbers: Mapping[str, jax.Array] | None = None) -> Trainer:
    """What a run's config says about training; some of its `NUMBERS` may be given as arrays."""
    config = keys.replaced(run.config, numbers or {})
    options, model = config.model, make_model(config.model)
    frozen = {"": (), "both": ("users", "items")}
    steps = steps_per_epoch(run.dataset.train.nnz, config.train.batch_size)
    return Trainer(
        model,
        Objective(
            make_loss(config.loss, model.spec.logistic),
            config.negatives.hardest,
            config.loss.temperature,
            config.loss.copy_relation,
        ),
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
    """Of the ball of user and item rows."""
    return run.config.model.clip_norm if model_of(run).spec.ball else None


def _max_prefs(run: Run) -> int:
    spec = model_of(run).spec
    from_items = run.config.model.users == "items" and not spec.closed_form
    return run.config.model.max_prefs if spec.needs_past or from_items else 0


def make_sampler(run: Run) -> Sampler:
    """Draws the examples of training, as the config says; placed, and sharded as tables are."""
    negatives = run.config.negatives
    weights = negatives.weights
    if keys.is_path(weights):
        weights = custom.bind("negatives.weights", weights, negatives.options)
    return Sampler.of(
        run.dataset.train,
        _max_prefs(run),
        placement_of(run).parts,
        candidates=negatives.candidates,
        weights=run.config.model.prefs_sampling,
        candidate_weights=weights,
        shared=negatives.shared,
        correction=negatives.correction,
    ).place()


def make_positives(run: Run, part: str) -> Positives:
    """The interactions of a part, placed likewise."""
    matrix, parts = getattr(run.dataset, part), placement_of(run).parts
    if parts is None:
        return devices.replicate(Positives.of(matrix))
    return devices.put(Positives.parts(matrix, *parts))


def make_scorer(
    run: Run, known: str | Known | scipy.sparse.csr_array, rarity_I: np.ndarray | None = None
) -> Scorer:
    """Ranks with what is known: when a part ("valid" or "test") is predicted, or to new users."""
    return Scorer(
        model_of(run),
        run.dataset.known(known) if isinstance(known, str) else known,
        _max_prefs(run),
        run.config.model.prefs_sampling,
        run.config.scoring.memory_mb,
        run.config.seed,
        run.config.scoring.batch_size,
        run.config.scoring.storage,
        placement_of(run),
        rarity_I,
    )


def initial_state(run: Run) -> TrainState:
    """The state before training, in the kept form; of a solved model its solution."""
    if solved := closed_form(model_of(run)):
        params = solved.fit(run.dataset.train, run.config.seed)
        return jax.device_get(init_state(params, optax.identity()))
    return placement_of(run).make(functools.partial(_make_state, run))


def empty_state(run: Run) -> TrainState:
    """What `initial_state` gives without its values, to restore a checkpoint into."""
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
        jax.random.key(run.config.seed),
        trainer.model,
        run.dataset.n_users,
        run.dataset.n_items,
        run.config.model.dim,
        run.config.model.users == "vectors",
    )
    return init_state(trainer.placement.fill_up(params), trainer.optimizer)


def count_parameters(run: Run) -> int:
    """Numbers that the model has learnt."""
    params = empty_state(run).params
    rows = {"users": run.dataset.n_users, "items": run.dataset.n_items}
    tables = sum(rows[name] * params[name].shape[1] for name in rows if name in params)
    return tables + sum(leaf.size for leaf in jax.tree.leaves(params["model"]))


def params_for(run: Run, params: dict[str, Any], part: str) -> dict[str, Any]:
    """Parameters of a checkpoint made ready to predict a part, and placed."""
    model, placement = model_of(run), placement_of(run)
    ready = placement.place(params)
    if "users" in params and not model.spec.rows_are_histories:
        known = run.dataset.known(part)
        ready = place_untrained_users(ready, run.dataset.train, known, placement)
    if model.spec.constants:
        trained = devices.replicate(UserItems.of(run.dataset.train))
        ready = devices.pmap(functools.partial(widen, model))(ready, trained)
    return ready


def on_host(run: Run, placed: dict[str, Any]) -> dict[str, Any]:
    """Placed parameters as host arrays; sharded tables may have rows of zeros at the end."""
    return jax.tree.map(devices.to_host, placement_of(run).keep(placed))


def with_new_users(
    run: Run, params: dict[str, Any], histories: scipy.sparse.csr_array
) -> dict[str, Any]:
    """Parameters with the vectors of new users as `users`, placed.

    Args:
      run: whose tables are not sharded.
      params: of a checkpoint.
      histories: CSR (N, I), the items of each new user.
    """
    config, model, place = run.config, model_of(run), placement_of(run).place
    if "users" not in params:  # they are represented by their items
        return place(params)
    if solved := closed_form(model):
        users = solved.fold_in(params["items"], histories)
        return place(params | {"users": users.astype(np.float32)})
    constants = {}
    if model.spec.constants:
        constants_of_known = jax.jit(functools.partial(constants_of, model))
        trained = constants_of_known(params, UserItems.of(run.dataset.train))
        nobody = {"users": np.zeros((histories.shape[0], params["users"].shape[1]))}
        new = constants_of_known(params | nobody, UserItems.of(histories))
        constants = jax.device_get({"users": new["users"], "items": trained["items"]})
    fold_in = FoldIn(model, make_trainer(run).objective, _radius(run))
    users = fold_in(
        params,
        histories,
        constants,
        config.seed,
        log_weight_I=rarity(run.dataset.train),
        max_prefs=_max_prefs(run),
        candidates=min(config.negatives.candidates, MOST_CANDIDATES),
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
      run: the run.
      epoch: of the checkpoint.
      params: in the kept form.
    """

    run: Run
    epoch: int
    params: dict[str, Any]

    @functools.cached_property
    def ready(self) -> dict[str, Any]:
        """Parameters made ready to predict test, placed."""
        return params_for(self.run, self.params, "test")

    @functools.cached_property
    def on_host(self) -> dict[str, Any]:
        """The same as host arrays; all processes must ask together."""
        return on_host(self.run, self.ready)


def best_checkpoint(run: Run) -> Best:
    """Reads the best checkpoint of a run.

    Raises:
      UserError: when there is none yet.
    """
    with Checkpoints(run.workdir) as checkpoints:
        best = checkpoints.best(empty_state(run))
    if best is None:
        raise UserError(f"{run.workdir}: there is no checkpoint yet; train first.")
    epoch, state = best
    return Best(run, epoch, state.params)
