"""A run: its config, its data and its workdir, and what the config makes of them."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import scipy.sparse

from hlrcml_jax import custom, devices, keys, schema
from hlrcml_jax.data.dataset import Dataset, Known
from hlrcml_jax.models import make_model
from hlrcml_jax.models.base import Model
from hlrcml_jax.models.closed_form import closed_form
from hlrcml_jax.ranking.evaluation import Protocol
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.ranking.untrained import place_untrained_users
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


@dataclasses.dataclass(frozen=True)
class Run:
    """A config, its data and its workdir.

    Attributes:
      config: validated.
      dataset: prepared.
      workdir: exists, and belongs to this config.
    """

    config: schema.Config
    dataset: Dataset
    workdir: pathlib.Path

    @property
    def model(self) -> Model:
        return make_model(self.config.model)

    @property
    def protocol(self) -> Protocol:
        """What the config says about evaluation."""
        options = self.config.evaluation
        return Protocol(
            options.cutoffs,
            options.definitions,
            0 if options.min_test_items == "k" else int(options.min_test_items),
            options.n_cohorts,
            options.cohort_size,
            self.config.data.split.seed,
            options.metrics,
        )

    def trainer(self, numbers: dict[str, jax.Array] | None = None) -> Trainer:
        """What the config says about training; some of its `NUMBERS` may be given as arrays."""
        config = keys.replaced(self.config, numbers or {})
        options, model = config.model, make_model(config.model)
        clip_norm = options.clip_norm if model.spec.ball else None
        frozen = {"": (), "both": ("users", "items")}
        steps = steps_per_epoch(self.dataset.train.nnz, config.train.batch_size)
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
                row_radii(clip_norm, options.clip_memory, options.memory_radius),
                config.optimizer.clip_gradient,
                frozen.get(config.pretrained.freeze, (config.pretrained.freeze,)),
            ),
            config.train.batch_size,
            config.optimizer.rows,
            config.parallel.tables,
        )

    def place(self, tree: Any, model: Model | None = None) -> Any:
        """A state, or parameters of a model, for mapped functions, as `parallel.tables` says."""
        sharded = self._is_sharded(model or self.model)
        return devices.divide(tree) if sharded else devices.replicate(tree)

    def keep(self, tree: Any) -> Any:
        """What `place` gave, to be kept: host arrays, and divided tables as a whole."""
        sharded = self._is_sharded(self.model)
        return devices.undivide(tree) if sharded else devices.first(tree)

    def collect(self, tree: Any) -> Any:
        """What `place` gave, as host arrays; divided tables may have rows of zeros at the end."""
        return jax.tree.map(devices.to_host, self.keep(tree))

    @property
    def n_parameters(self) -> int:
        """Numbers that the model has learnt."""
        params = self.empty_state().params
        rows = {"users": self.dataset.n_users, "items": self.dataset.n_items}
        tables = sum(rows[name] * params[name].shape[1] for name in rows if name in params)
        return tables + sum(leaf.size for leaf in jax.tree.leaves(params["model"]))

    def _is_sharded(self, model: Model) -> bool:
        return self.config.parallel.tables == "sharded" and not model.spec.closed_form

    def _max_prefs(self, model: Model) -> int:
        from_items = self.config.model.users == "items" and not model.spec.closed_form
        return self.config.model.max_prefs if model.spec.needs_past or from_items else 0

    def sampler(self) -> Sampler:
        """Draws the examples of training, as the config says; placed, and divided as tables are."""
        negatives = self.config.negatives
        weights = negatives.weights
        if keys.is_path(weights):
            weights = custom.bind("negatives.weights", weights, negatives.options)
        return Sampler.of(
            self.dataset.train,
            self._max_prefs(self.model),
            self._parts(),
            candidates=negatives.candidates,
            weights=self.config.model.prefs_sampling,
            candidate_weights=weights,
            shared=negatives.shared,
            correction=negatives.correction,
        ).place()

    def positives(self, part: str) -> Positives:
        """The interactions of a part, placed likewise."""
        matrix, parts = getattr(self.dataset, part), self._parts()
        if parts is None:
            return devices.replicate(Positives.of(matrix))
        return devices.put(Positives.parts(matrix, *parts))

    def _parts(self) -> tuple[int, range] | None:
        """Into how many parts interactions are divided, and which are this process's, if any."""
        divided = self._is_sharded(self.model)
        return (devices.device_count(), devices.own_devices()) if divided else None

    def scorer(self, part: str, model: Model | None = None) -> Scorer:
        """Ranks with what may be known when a part is predicted."""
        return self.scorer_of(self.dataset.known(part), model)

    def scorer_of(
        self,
        known: Known | scipy.sparse.csr_array,
        model: Model | None = None,
        rarity_I: np.ndarray | None = None,
    ) -> Scorer:
        """Ranks with what is known, see `Scorer`."""
        options, model = self.config.model, model or self.model
        return Scorer(
            model,
            known,
            self._max_prefs(model),
            options.prefs_sampling,
            self.config.scoring.memory_mb,
            self.config.seed,
            self.config.scoring.batch_size,
            self.config.scoring.storage,
            self._is_sharded(model),
            rarity_I,
        )

    def initial_state(self) -> TrainState:
        """The state before training, to be placed; of a solved model its solution."""
        if solved := closed_form(self.model):
            params = solved.fit(self.dataset.train, self.config.seed)
            return jax.device_get(init_state(params, optax.identity()))
        if not self._is_sharded(self.model):
            return jax.device_get(jax.jit(self._make_state)())
        # Each device draws its own rows, and no host has them all.
        shardings = devices.map_tables(
            lambda _: devices.divided(), lambda _: devices.everywhere(), self.empty_state()
        )
        state = jax.jit(self._make_state, out_shardings=shardings)()
        return devices.map_tables(lambda table: table, np.asarray, state)

    def empty_state(self) -> TrainState:
        """What `initial_state` gives without its values, to restore a checkpoint into."""
        solved = closed_form(self.model)
        if solved is None:
            table = devices.of_all if self._is_sharded(self.model) else _zeros
            return devices.map_tables(table, _zeros, jax.eval_shape(self._make_state))
        n_rows = {"users": self.dataset.n_users, "items": self.dataset.n_items}
        widths = zip(n_rows.items(), solved.widths(self.dataset.n_items), strict=True)
        tables = {name: np.zeros((n, width), np.float32) for (name, n), width in widths}
        return jax.device_get(init_state(tables | {"model": {}}, optax.identity()))

    def _make_state(self) -> TrainState:
        params = init_params(
            jax.random.key(self.config.seed),
            self.model,
            self.dataset.n_users,
            self.dataset.n_items,
            self.config.model.dim,
            self.config.model.users == "vectors",
        )
        if self._is_sharded(self.model):
            params = devices.map_tables(devices.fill_up, lambda x: x, params)
        return init_state(params, self.trainer().optimizer)

    def params_for(
        self, params: dict[str, Any], part: str, model: Model | None = None
    ) -> dict[str, Any]:
        """Parameters made ready to predict a part, and placed."""
        model = model or self.model
        has_users = "users" in params and not model.spec.rows_are_histories
        ready = self.place(params, model)
        if has_users:
            known = self.dataset.known(part)
            sharded = self._is_sharded(model)
            ready = place_untrained_users(ready, self.dataset.train, known, sharded)
        if model.spec.constants:
            trained = UserItems.of(self.dataset.train)
            ready = devices.first(ready)
            ready = jax.device_get(jax.jit(lambda params: widen(model, params, trained))(ready))
            ready = self.place(ready, model)
        return ready

    def with_new_users(
        self, params: dict[str, Any], histories: scipy.sparse.csr_array
    ) -> dict[str, Any]:
        """Parameters with the vectors of new users as `users`, placed.

        Args:
          params: of a checkpoint, not divided.
          histories: CSR (N, I), the items of each new user.
        """
        config, model = self.config, self.model
        if "users" not in params:  # they are made of their items
            return self.place(params)
        if solved := closed_form(model):
            users = solved.fold_in(params["items"], histories)
            return self.place(params | {"users": users.astype(np.float32)})
        constants = {}
        if model.spec.constants:
            constants_of_known = jax.jit(functools.partial(constants_of, model))
            trained = constants_of_known(params, UserItems.of(self.dataset.train))
            nobody = {"users": np.zeros((histories.shape[0], params["users"].shape[1]))}
            new = constants_of_known(params | nobody, UserItems.of(histories))
            constants = jax.device_get({"users": new["users"], "items": trained["items"]})
        radius = config.model.clip_norm if model.spec.ball else None
        fold_in = FoldIn(model, self.trainer().objective, radius)
        users = fold_in(
            params,
            histories,
            constants,
            config.seed,
            log_weight_I=rarity(self.dataset.train),
            max_prefs=self._max_prefs(model),
            candidates=min(config.negatives.candidates, MOST_CANDIDATES),
            weights=config.model.prefs_sampling,
            correction=config.negatives.correction,
        )
        params = params | {"users": users}
        wide = {name: np.hstack([params[name], constants[name]]) for name in constants}
        return self.place(params | wide)


def make_loss(options: schema.Loss, is_logistic: bool = False) -> Loss:
    """The loss that a config's `loss` section describes, with its options.

    Args:
      options: of the section.
      is_logistic: whether the model's pairwise loss is the logistic one in place of the hinge.
    """
    if is_logistic and options.kind == "hinge":
        return logistic
    path = schema.LOSSES.get(options.kind, options.kind)
    found = custom.resolve("loss.kind", path)
    own = custom.options_of("loss.kind", found)
    values = {name: getattr(options, name) for name in own if hasattr(options, name)}
    return custom.bind("loss.kind", path, values | dict(options.options))


def _zeros(x) -> np.ndarray:
    return np.zeros(x.shape, x.dtype)
