"""The loop over epochs, with validation, checkpoints and early stopping.

It trains one run, or several side by side in one program to fill a GPU. Validating, saving and
reporting are passed as functions, so that the loop knows neither files nor data sets.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlrcml_jax import devices, processes
from hlrcml_jax.errors import Diverged, warn
from hlrcml_jax.training.interactions import Positives
from hlrcml_jax.training.preemption import Terminations
from hlrcml_jax.training.sampling import Sampler
from hlrcml_jax.training.step import Trainer, TrainState, improves, steps_per_epoch

Record = dict[str, float]


@dataclasses.dataclass
class Training:
    """A run in training.

    Attributes:
      name: of the run, for warnings.
      state: on the devices.
      epoch: completed epochs.
      n_examples: examples per epoch.
      batch_size: examples per step.
      epochs: most epochs.
      patience: epochs without improvement before training stops.
      min_improvement: share of the best value that counts as an improvement.
      validate_every: epochs between validations and checkpoints.
      validate: maps a state and epoch to (value, higher is better; record of metrics).
      save: saves a checkpoint of an epoch, state and value.
      report: logs the record of an epoch.
      started: the epoch after which the stage began; patience counts from it, or the best epoch.
      advance: maps the state at the end of patience, its epoch and `started` to the first state of
        the next stage; None to end.
      on_epoch: the caller's, told the record of an epoch when all of it is saved.
      ended: whether training is over.
    """

    name: str
    state: TrainState
    epoch: int
    n_examples: int
    batch_size: int
    epochs: int
    patience: int
    min_improvement: float
    validate_every: int
    validate: Callable[[TrainState, int], tuple[float, Record]]
    save: Callable[[int, TrainState, float], None]
    report: Callable[[Record], None]
    started: int = 0
    advance: Callable[[TrainState, int, int], TrainState | None] = lambda *_: None
    on_epoch: Callable[[Record], object] = lambda _: None
    ended: bool = False

    def __post_init__(self) -> None:
        self._end_or_advance()

    def _end_or_advance(self) -> None:
        best_epoch = int(devices.first(self.state.best_epoch))
        self.ended = self.epoch >= self.epochs
        if self.ended or self.epoch - max(self.started, best_epoch) < self.patience:
            return
        state = self.advance(self.state, self.epoch, self.started)
        self.ended = state is None
        if state is not None:
            self.state, self.started = state, self.epoch

    def after_epoch(self, loss_T: np.ndarray, seconds: float, stopping: bool) -> None:
        """Validates and saves, if due, and reports the epoch.

        Args:
          loss_T: loss of each step.
          seconds: duration of the epoch.
          stopping: whether the program must save and stop.

        Raises:
          Diverged: when a loss or a parameter is not finite.
        """
        self._check(loss_T)
        self.epoch += 1
        record = {
            "epoch": self.epoch,
            "step": self.epoch * steps_per_epoch(self.n_examples, self.batch_size),
            "loss": float(loss_T.sum()) / self.n_examples,
            "examples_per_s": round(self.n_examples / seconds, 1),
            "train_s": round(seconds, 3),
        }
        value = None
        if self.epoch % self.validate_every == 0 or self.epoch == self.epochs:
            started = time.perf_counter()
            value, metrics = self.validate(self.state, self.epoch)
            record |= metrics | {"validation_s": round(time.perf_counter() - started, 3)}
            self.state = improves(self.state, value, self.epoch, self.min_improvement)
        elif stopping:
            value = -math.inf  # never the best
        # Record first: one without a checkpoint is dropped when resuming, a gap would remain.
        self.report(record)
        if value is not None:
            self.save(self.epoch, self.state, value)
        self.on_epoch(dict(record))
        self._end_or_advance()

    def _check(self, loss_T: np.ndarray) -> None:
        if np.isfinite(loss_T).all():
            if processes.any_process(not _all_finite(self.state.params)):
                raise Diverged(
                    f"parameters became NaN or infinite in epoch {self.epoch + 1}, in a step after "
                    f"which no loss shows it; {self._kept()}"
                )
            return
        step = int(np.argmin(np.isfinite(loss_T)))
        last = min((step + 1) * self.batch_size, self.n_examples)
        raise Diverged(
            f"the loss became {loss_T[step]} in step {step + 1} of epoch {self.epoch + 1}, "
            f"examples {step * self.batch_size + 1:,}-{last:,} of the shuffled epoch; "
            f"{self._kept()}"
        )

    def _kept(self) -> str:
        good = self.epoch - self.epoch % self.validate_every
        kept = f"the checkpoint of epoch {good} is" if good else "there is no checkpoint"
        return f"{kept} before it; lower optimizer.learning_rate, in another --workdir."


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def train(runs: Sequence[Training], train_epoch: "Epoch", keep_going: bool = False) -> None:
    """Trains until the last epoch or early stopping.

    Runs that end before the others stay in the program, without effect, to avoid recompiling.

    Args:
      runs: those that have not ended.
      train_epoch: trains an epoch of all of them.
      keep_going: when the loss of one run is no longer finite, warn and train the others.

    Raises:
      Diverged: the loss or a parameter is no longer finite.
      Terminated: on SIGTERM or SIGINT, after saving.
    """
    with Terminations() as terminations:
        while going_on := [each for each in runs if not each.ended]:
            started = time.perf_counter()
            states, losses = train_epoch([each.state for each in runs])
            seconds = (time.perf_counter() - started) / len(runs)
            stopping = terminations.asked()
            for each, state, loss_T in zip(runs, states, losses, strict=True):
                each.state = state
                try:
                    if not each.ended:
                        each.after_epoch(loss_T, seconds, stopping)
                except Diverged as error:
                    if not keep_going:
                        raise
                    warn(f"{each.name}: {error}")
                    each.ended = True
            if stopping:
                raise terminations.notice(max(each.epoch for each in going_on))


class Epoch:
    """An epoch of R runs as one compiled program.

    Args:
      trainer: makes a `Trainer` from the values of some hyperparameters.
      states: of the runs, on the devices.
      data: the sampler and the positives, on the devices.
      key_data_Rx2: key data of the runs.
      hyperparameters: values (R,) of those that may differ between the runs.
    """

    def __init__(
        self,
        trainer: Callable[[Mapping[str, jax.Array]], Trainer],
        states: Sequence[TrainState],
        data: tuple[Sampler, Positives],
        key_data_Rx2: np.ndarray,
        hyperparameters: Mapping[str, np.ndarray],
    ):
        self._data = (*data, *devices.replicate((key_data_Rx2, dict(hyperparameters))))
        self._trainer, self._compiled = trainer, {}
        self._program(states)

    def __call__(self, states: list[TrainState]) -> tuple[list[TrainState], np.ndarray]:
        """(new states, losses (R, T) of T steps); the given states are donated."""
        train = self._program(states)
        with jax.transfer_guard("disallow"):
            states, loss_RxT = train(states, *self._data)
        return states, devices.first(loss_RxT)

    def _program(self, states: Sequence[TrainState]) -> Callable[..., Any]:
        """The program of an epoch; without relations while all of their gates are zero."""
        relates = any(gate_of(state) != 0 for state in states)
        if relates not in self._compiled:
            train = functools.partial(_train_epochs, self._trainer, relates)
            self._compiled[relates] = devices.compiled(
                train, (list(states), *self._data), donate=(0,)
            )
        return self._compiled[relates]


def gate_of(state: TrainState) -> float:
    """The gate of a model's relation; 1 for a model without one (see `models/sphere.py`)."""
    gate = state.params["model"].get("relation_gate")
    return 1.0 if gate is None else float(devices.first(gate))


def with_gate(state: TrainState, gate: float) -> TrainState:
    """The state with another gate, if its model has one."""
    model = state.params["model"]
    if "relation_gate" not in model:
        return state
    gates = model | {"relation_gate": devices.replicate(np.float32(gate))}
    return state.replace(params=state.params | {"model": gates})


def _train_epochs(trainer, relates, states, sampler, positives, key_data_Rx2, hyperparameters):
    def trainer_of(hyperparameters):
        made = trainer(hyperparameters)
        return made if relates else made.without_relation()

    if len(states) == 1:
        state, loss_T = trainer_of({}).train_epoch(states[0], sampler, positives, key_data_Rx2[0])
        return [state], loss_T[None]

    def train_epoch(state, key_data, hyperparameters):
        return trainer_of(hyperparameters).train_epoch(state, sampler, positives, key_data)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    stacked, loss_RxT = jax.vmap(train_epoch)(stacked, key_data_Rx2, hyperparameters)
    return [jax.tree.map(lambda x, r=r: x[r], stacked) for r in range(len(states))], loss_RxT
