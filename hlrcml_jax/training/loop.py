"""The loop over epochs, with validations, checkpoints and early stopping.

It trains one run, or several side by side in one program, which fills a GPU better.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich

from hlrcml_jax import config as config_lib
from hlrcml_jax import devices
from hlrcml_jax.errors import Diverged, Terminated, warn
from hlrcml_jax.models.closed_form import Solved
from hlrcml_jax.ranking.evaluation import evaluate
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.reporting import console as report
from hlrcml_jax.runs.build import NUMBERS, Run
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.workdir import write_config
from hlrcml_jax.training import warm_start as pretrained
from hlrcml_jax.training.preemption import Terminations
from hlrcml_jax.training.step import TrainState, improves, steps_per_epoch


def in_common(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What runs must have in common to be trained side by side: all but the seed and `NUMBERS`."""
    values = config_lib.flatten(config)
    return values | {name: values[name] is None for name in NUMBERS} | {"seed": None}


def train(begun: Sequence[tuple[Run, Checkpoints]], go_on: bool = False) -> None:
    """Trains from the latest checkpoint until the last epoch, or until nothing improves.

    Args:
      begun: a run and its checkpoints, or several that have the same `in_common`.
      go_on: with the others, and a warning, when the loss of one is not finite any more.

    Raises:
      Diverged: the loss is not finite any more.
      Terminated: SIGTERM came; what was trained is saved.
    """
    if isinstance(begun[0][0].model, Solved):
        for run, checkpoints in begun:
            _solve(run, checkpoints)
        return
    several = len(begun) > 1
    with report.TrainingProgress() as progress, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_open(*each, progress, several)) for each in begun]
        terminations = stack.enter_context(Terminations())
        # What ends before the others is trained on, unseen: fewer would have to be compiled anew.
        runs = [each for each in opened if not each.ended]
        train_epoch = _Epoch(runs) if runs else None
        while going_on := [each for each in runs if not each.ended]:
            watch = report.Stopwatch()
            losses = train_epoch()
            seconds = watch.lap() / len(runs)
            asked = terminations.asked()
            for each, loss_T in zip(runs, losses, strict=True):
                try:
                    if not each.ended:
                        each.after_epoch(loss_T, seconds, asked)
                except Diverged as error:
                    if not go_on:
                        raise
                    warn(f"{each.run.workdir}: {error}")
                    each.ended = True
            if asked:
                epoch = max(each.epoch for each in going_on)
                raise Terminated(
                    f"asked to end, and saved after epoch {epoch}; the same command goes on."
                )


@contextlib.contextmanager
def _open(
    run: Run, checkpoints: Checkpoints, progress: report.TrainingProgress, several: bool
) -> Iterator["_Training"]:
    """A run where its latest checkpoint left it."""
    latest = checkpoints.latest(run.empty_state())
    if latest is None:
        epoch, state = 0, pretrained.begin(run, run.initial_state())
    else:
        epoch, state = latest
        # What may change may have changed.
        devices.in_first_process(lambda: write_config(run))
        rich.print(f"Going on after epoch {epoch}.")
    config = run.config
    show = progress.add(
        run.workdir.name if several else "",
        config.train.epochs,
        epoch,
        config.early_stopping.metric,
    )
    with report.MetricsLog(run.workdir / "metrics.jsonl", epoch) as log:
        yield _Training(run, checkpoints, epoch, run.place(state), log, show)


class _Training:
    """A run in training.

    Attributes:
      run: the run.
      epoch: completed epochs.
      state: on the devices.
      ended: whether nothing is left to do.
    """

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        epoch: int,
        state: TrainState,
        log: report.MetricsLog,
        show: Callable,
    ):
        self.run, self.epoch, self.state = run, epoch, state
        self._checkpoints, self._log, self._show = checkpoints, log, show
        self._n = run.dataset.train.nnz
        self._steps = steps_per_epoch(self._n, run.config.train.batch_size)
        self._metric = run.config.early_stopping.metric
        self.ended = self._is_over()

    def _is_over(self) -> bool:
        config = self.run.config
        waited = self.epoch - int(devices.first(self.state.best_epoch))
        patience = config.early_stopping.patience * config.train.validate_every
        return self.epoch >= config.train.epochs or waited >= patience

    def after_epoch(self, loss_T: np.ndarray, seconds: float, asked: bool) -> None:
        """Validates and saves, if it is time, and writes down how the epoch went.

        Args:
          loss_T: of each step.
          seconds: that the epoch took.
          asked: whether the program was asked to end, and must save.

        Raises:
          Diverged: the loss is not finite.
        """
        self._check(loss_T)
        config = self.run.config
        self.epoch += 1
        record = {
            "epoch": self.epoch,
            "step": self.epoch * self._steps,
            "loss": float(loss_T.sum()) / self._n,
            "examples_per_s": round(self._n / seconds, 1),
            "train_s": round(seconds, 3),
        }
        value = None
        if self.epoch % config.train.validate_every == 0 or self.epoch == config.train.epochs:
            value = self._validate(record)
        elif asked:
            value = -math.inf  # never best
        # A checkpoint whose line is not there would leave a gap; a line without one is dropped.
        self._log.write(record)
        if value is not None:
            self._checkpoints.save(self.epoch, self.run.keep(self.state), value)
        self._show(record)
        self.ended = self._is_over()

    def _check(self, loss_T: np.ndarray) -> None:
        if np.isfinite(loss_T).all():
            return
        step, size = int(np.argmin(np.isfinite(loss_T))), self.run.config.train.batch_size
        last = min((step + 1) * size, self._n)
        good = self.epoch - self.epoch % self.run.config.train.validate_every
        kept = f"the checkpoint of epoch {good} is" if good else "there is no checkpoint"
        raise Diverged(
            f"the loss became {loss_T[step]} in step {step + 1} of epoch {self.epoch + 1}, "
            f"examples {step * size + 1:,} to {last:,} of its order; {kept} before it; lower "
            "optimizer.learning_rate, in another --workdir."
        )

    def _validate(self, record: dict[str, float]) -> float:
        """Adds the validation to an epoch's record; the value to choose by, higher is better."""
        run, watch = self.run, report.Stopwatch()
        if run.dataset.valid.nnz == 0:
            value = float(self.epoch)  # nothing to choose by: the latest is the best
        elif self._metric == "loss":
            record["loss_valid"] = self._loss_valid(self.state.params)
            value = -record["loss_valid"]
        else:
            params = run.keep(self.state.params)
            record.update(_validation(run, self._scorer, params, self._metric))
            value = record[self._metric]
        record["validation_s"] = round(watch.lap(), 3)
        self.state = improves(self.state, value, self.epoch)
        return value

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return self.run.scorer("valid")

    @functools.cached_property
    def _loss_valid(self) -> Callable[[dict[str, Any]], float]:
        run = self.run
        key_data = devices.replicate(_key_data(run, 1))
        data = (run.sampler(), run.positives("valid"), key_data)
        mean_loss = devices.pmap(run.trainer().mean_loss)
        return lambda params: float(devices.first(mean_loss(params, *data)))


class _Epoch:
    """An epoch of some runs as one compiled program; gives the losses of each, by steps."""

    def __init__(self, runs: list[_Training]):
        run, self._runs = runs[0].run, runs
        values = [config_lib.flatten(each.run.config) for each in runs]
        numbers = {
            name: np.array([of_run[name] for of_run in values], np.float32)
            for name in NUMBERS
            if values[0][name] is not None
        }
        key_data = np.stack([_key_data(each.run, 0) for each in runs])
        of_all = devices.replicate((key_data, numbers))
        self._data = (run.sampler(), run.positives("train"), *of_all)
        states = [each.state for each in runs]
        train = functools.partial(_train_epochs, run)
        self._train = devices.compiled(train, (states, *self._data), donate=(0,))

    def __call__(self) -> np.ndarray:
        with jax.transfer_guard("disallow"):
            states, loss_RxT = self._train([each.state for each in self._runs], *self._data)
        for each, state in zip(self._runs, states, strict=True):
            each.state = state
        return devices.first(loss_RxT)


def _train_epochs(run, states, sampler, positives, key_data_R, numbers):
    """An epoch of R runs that have most in common with one of them; (new states, losses (R, T))."""
    if len(states) == 1:
        trainer = run.trainer()
        state, loss_T = trainer.train_epoch(states[0], sampler, positives, key_data_R[0])
        return [state], loss_T[None]

    def train_epoch(state, key_data, numbers):
        return run.trainer(numbers).train_epoch(state, sampler, positives, key_data)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    stacked, loss_RxT = jax.vmap(train_epoch)(stacked, key_data_R, numbers)
    return [jax.tree.map(lambda x, r=r: x[r], stacked) for r in range(len(states))], loss_RxT


def _key_data(run: Run, purpose: int) -> np.ndarray:
    """The run's key for training (0), or for the loss on validation (1), as data."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 1))
    return np.asarray(jax.random.key_data(keys[purpose]))


def _solve(run: Run, checkpoints: Checkpoints) -> None:
    """What `train` does for a model that is solved at once: epoch 0 is all there is."""
    if checkpoints.latest(run.empty_state()) is not None:
        return
    watch = report.Stopwatch()
    state = run.initial_state()
    record = {"epoch": 0, "step": 0, "train_s": round(watch.lap(), 3)}
    metric = run.config.early_stopping.metric
    if metric != "loss" and run.dataset.valid.nnz:
        record |= _validation(run, run.scorer("valid"), state.params, metric)
    checkpoints.save(0, state, 0.0)
    with report.MetricsLog(run.workdir / "metrics.jsonl", 0) as log:
        log.write(record)


def _validation(run: Run, scorer: Scorer, params: dict[str, Any], metric: str) -> dict[str, float]:
    """All metrics on validation at the cut-off of one of them."""
    cutoff = int(metric.partition("@")[2])
    ready = run.params_for(params, "valid")
    found = evaluate(scorer, ready, run.dataset, "valid", run.protocol, (cutoff,))
    return {name: found.mean(name) for name in found.values}
