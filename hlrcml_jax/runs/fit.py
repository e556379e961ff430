"""Training runs in their workdirs, resuming from checkpoints; several side by side."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hlrcml_jax import config_files, devices, processes
from hlrcml_jax.errors import UserError, quoted, warn
from hlrcml_jax.keys import by_name, flatten, replaced
from hlrcml_jax.ranking.evaluation import choose_users, evaluate
from hlrcml_jax.ranking.scorer import Scorer
from hlrcml_jax.reporting.console import Stopwatch, TrainingProgress, say
from hlrcml_jax.reporting.log import MetricsLog, read_log
from hlrcml_jax.runs import build
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.run import Run
from hlrcml_jax.schema import Config
from hlrcml_jax.training.loop import Epoch, Record, Training, gate_of, train, with_gate
from hlrcml_jax.training.step import TrainState

# Keys by which validation metrics are measured; they may change for tests.
DEFINES_METRIC = (
    "evaluation.definitions",
    "evaluation.min_test_items",
    "evaluation.n_cohorts",
    "evaluation.cohort_size",
    "evaluation.validation_users",
    "evaluation.validation_candidates",
)


def in_common(config: Config) -> dict[str, Any]:
    """What runs trained side by side must share: all but the seed and `HYPERPARAMETERS`."""
    values = flatten(config)
    return values | {name: values[name] is None for name in build.HYPERPARAMETERS} | {"seed": None}


def fit_runs(
    begun: Sequence[tuple[Run, Checkpoints]],
    start: Callable[[Run], TrainState],
    keep_going: bool = False,
    on_epoch: Callable[[Record], object] | None = None,
) -> None:
    """Trains from the latest checkpoint until the last epoch or early stopping.

    Args:
      begun: a run and its checkpoints, or several runs with the same `in_common`.
      start: makes the state before training.
      keep_going: when the loss of one run is no longer finite, warn and train the others.
      on_epoch: is told the record of each epoch, after its checkpoint.

    Raises:
      Diverged: the loss or a parameter is no longer finite.
      Terminated: on SIGTERM or SIGINT, after saving.
    """
    for run, _ in begun:
        _check_size(run)
        _check_users(run)
        _check_gates(run)
    _say_sample(begun[0][0])
    if build.model_of(begun[0][0]).spec.closed_form:
        for run, checkpoints in begun:
            _solve(run, checkpoints)
        return
    with TrainingProgress() as progress, contextlib.ExitStack() as stack:
        opened = []
        for run, checkpoints in begun:
            name = run.workdir.name if len(begun) > 1 else ""
            training = _open(run, checkpoints, progress, name, start, on_epoch)
            opened.append((run, stack.enter_context(training)))
            _say_resuming(opened[-1][1])
        runs = [(run, training) for run, training in opened if not training.ended]
        if runs:
            trainings = [training for _, training in runs]
            train(trainings, _epoch_of(runs), keep_going)


def _check_size(run: Run) -> None:
    """Checks that the parameters and the indices of a batch may fit, before memory is taken.

    Raises:
      UserError: when they do not.
    """
    config = run.config
    n_bytes, there = build.least_bytes(run), devices.host_memory()
    if config.parallel.tables == "replicated" and n_bytes > there:
        raise UserError(
            f"the config asks for at least {n_bytes / 1e9:,.0f} GB, and this machine has "
            f"{there / 1e9:,.0f} GB; lower model.dim, model.memory_slots, model.max_prefs, "
            "negatives.candidates or train.batch_size."
        )


def _check_users(run: Run) -> None:
    """Checks that some user has enough validation items for the early-stopping metric.

    Raises:
      UserError: when none has.
    """
    protocol, valid = build.protocol_of(run), run.dataset.valid
    if _is_ranked(run) and not len(choose_users(valid, protocol, (_cutoff(run),))):
        raise UserError(
            f"config key evaluation.min_test_items={run.config.evaluation.min_test_items}: no user "
            f"has so many validation items, so {run.config.early_stopping.metric} has no value; "
            "lower it, or set early_stopping.metric to another cut-off or to loss."
        )


def _say_sample(run: Run) -> None:
    """Says what validation ranks, if that is not all items for all users."""
    if not _is_ranked(run):
        return
    n_users = len(choose_users(run.dataset.valid, build.protocol_of(run), (_cutoff(run),)))
    most, candidates = run.config.evaluation.validation_users, build.validation_candidates(run)
    of_users = f"{most:,} of {n_users:,} users" if 0 < most < n_users else ""
    of_items = f"{candidates:,} of {run.dataset.n_items:,} items" if candidates else ""
    if of_users or of_items:
        said = " for ".join(filter(None, (of_items or "all items", of_users or "each user")))
        say(f"Validation ranks {said}; test ranks all.")


def _check_gates(run: Run) -> None:
    """Warns when there is no validation part by which a closed gate could be opened."""
    gates = run.config.model.gates
    is_closed = gates[0] == 0 and not run.config.train.continues
    if _has_gate(run) and is_closed and run.dataset.valid.nnz == 0:
        warn(
            f"config key model.gates={gates}: there is no validation part, so the gate stays "
            "closed and the relation out of the scores; set model.gates=(0.5,) to train with it."
        )


def _has_gate(run: Run) -> bool:
    """Whether the model has a relation, and a gate for it."""
    spec = build.model_of(run).spec
    return spec.offsets and (spec.attends or spec.memory)


def _check_comparable(run: Run) -> None:
    """Checks that the epochs so far were validated as the next ones are.

    Raises:
      UserError: when they were not.
    """
    saved, now, known = config_files.read_workdir(run.workdir), flatten(run.config), by_name(Config)
    if saved is None or not _is_ranked(run):
        return
    for name in DEFINES_METRIC:
        was = saved["config"].get(name, known[name].default)
        if was != now[name]:
            raise UserError(
                f"{run.workdir}: its epochs were validated with {name}={quoted(was)}, and values "
                f"with {quoted(now[name])} cannot be compared; set it back, or test with it by "
                "--mode=evaluate."
            )


def _is_ranked(run: Run) -> bool:
    """Whether a ranking metric on validation chooses the epoch."""
    is_trained = not build.model_of(run).spec.closed_form
    return is_trained and run.dataset.valid.nnz > 0 and run.config.early_stopping.metric != "loss"


def _cutoff(run: Run) -> int:
    """k of the early-stopping metric."""
    return int(run.config.early_stopping.metric.partition("@")[2])


def _say_resuming(training: Training, start: int = 0) -> None:
    if training.epoch > start:
        say(f"Resuming after epoch {training.epoch}.")


@contextlib.contextmanager
def _open(
    run: Run,
    checkpoints: Checkpoints,
    progress: TrainingProgress,
    name: str,
    start: Callable[[Run], TrainState],
    on_epoch: Callable[[Record], object] | None = None,
) -> Iterator[Training]:
    """A run's training state, from its latest checkpoint if any."""
    latest = _latest(run, checkpoints)
    if latest is None:
        epoch, state = 0, start(run)
    else:
        epoch, state = latest
    options, stopping = run.config.train, run.config.early_stopping
    placement = build.placement_of(run)
    show = progress.add(name, options.epochs, epoch, stopping.metric)
    placed = placement.place(state)
    with MetricsLog(run.workdir / "metrics.jsonl", epoch) as log:

        def report(record):
            log.write(record)
            show(record)

        yield Training(
            str(run.workdir),
            placed,
            epoch,
            run.dataset.train.nnz,
            options.batch_size,
            options.epochs,
            stopping.patience * options.validate_every,
            stopping.min_improvement,
            options.validate_every,
            _Validation(run),
            lambda epoch, state, value: checkpoints.save(epoch, placement.keep(state), value),
            report,
            _started(run, gate_of(placed)),
            functools.partial(_with_next_gate, run, checkpoints),
            on_epoch or (lambda _: None),
        )


def _started(run: Run, gate: float) -> int:
    """The last epoch before the present gate was opened, from the log; 0 for the first gate."""
    lines = read_log(run.workdir / "metrics.jsonl")
    return int(max((line["epoch"] for line in lines if line.get("gate", gate) < gate), default=0))


def _with_next_gate(
    run: Run, checkpoints: Checkpoints, state: TrainState, epoch: int, started: int
) -> TrainState | None:
    """The best state so far with the next of the `model.gates`.

    None at the last one, or when the present one brought no improvement since it started.
    """
    best_epoch = int(devices.first(state.best_epoch))
    later = [gate for gate in run.config.model.gates if np.float32(gate) > gate_of(state)]
    if not (_has_gate(run) and later and best_epoch > started):
        return None
    best = checkpoints.best(build.empty_state(run))
    if best is None:
        return None
    say(f"Going on from epoch {best[0]} with a gate of {later[0]:g} for the relation.")
    arrays = {"epoch": np.int32(epoch), "best_epoch": np.int32(best_epoch)}
    return with_gate(build.placement_of(run).place(best[1].replace(**arrays)), later[0])


def refit(run: Run, start: Callable[[Run], TrainState]) -> None:
    """Trains once more, on training and validation together, as validation chose."""
    whole = run.refitted()
    whole.workdir.mkdir(exist_ok=True)
    say(f"Training once more, on {whole.dataset.train.nnz:,} interactions with validation.")
    with Checkpoints(whole.workdir, writes=True, made_by=whole.identity()) as checkpoints:
        if build.model_of(run).spec.closed_form:
            _solve(whole, checkpoints)
            return
        done = 0
        for gate, n_epochs in chosen_stages(run):
            config = replaced(run.config, {"train.epochs": done + n_epochs})
            stage = dataclasses.replace(whole, config=config)
            with (
                TrainingProgress() as progress,
                _open(stage, checkpoints, progress, "refit", start) as training,
            ):
                if not training.ended:
                    _say_resuming(training, done)
                    training.state = with_gate(training.state, gate)
                    train([training], _epoch_of([(stage, training)]))
            done += n_epochs


def chosen_stages(run: Run) -> list[tuple[float, int]]:
    """Gates, and epochs with each, on the way to the best epoch of a run."""
    name = run.config.early_stopping.metric
    sign, name = (-1.0, "loss_valid") if name == "loss" else (1.0, name)
    validated = [line for line in read_log(run.workdir / "metrics.jsonl") if name in line]
    stages, best, start = [], -math.inf, 0
    for gate, lines in itertools.groupby(validated, lambda line: line.get("gate", 1.0)):
        lines = list(lines)
        top = max(lines, key=lambda line: (sign * line[name], -line["epoch"]))
        if sign * top[name] > best:
            best = sign * top[name]
            stages.append((gate, top["epoch"] - start))
        start = lines[-1]["epoch"]
    return stages


def _latest(run: Run, checkpoints: Checkpoints) -> tuple[int, TrainState] | None:
    """(epoch, state) of the latest checkpoint; rewrites the config, unless all are damaged."""
    latest = checkpoints.latest(build.empty_state(run))
    if latest is not None:
        _check_comparable(run)
    # Keys marked `may_change` may differ from last time.
    processes.in_first_process(run.write_config)
    return latest


class _Validation:
    """Validates states by the metric of early stopping; see `Training.validate`."""

    def __init__(self, run: Run):
        self._run, self._metric = run, run.config.early_stopping.metric

    def __call__(self, state: TrainState, epoch: int) -> tuple[float, Record]:
        run = self._run
        if run.dataset.valid.nnz == 0:
            return float(epoch), {}  # no validation part: the latest epoch is the best
        gate = gate_of(state)
        opened = {"gate": gate} if build.model_of(run).spec.offsets else {}
        if self._metric == "loss":
            loss = self._mean_loss(state.params)
            return -loss, {"loss_valid": loss, **opened}
        params = build.placement_of(run).keep(state.params)
        record = validate(run, self._scorers[gate != 0], params) | opened
        if self._metric not in record:
            raise UserError(
                f"config key early_stopping.metric={self._metric}: it is not a number for any user."
            )
        return record[self._metric], record

    @functools.cached_property
    def _scorers(self) -> tuple[Scorer, Scorer]:
        """Without and with the relation."""
        without, whole = (build.make_scorer(self._run, "valid", each) for each in (False, True))
        return without, whole

    @functools.cached_property
    def _mean_loss(self) -> Callable[[dict[str, Any]], float]:
        run = self._run
        sampler, positives = build.make_sampler(run, "valid"), build.make_positives(run, "valid")
        key_data = devices.replicate(_key_data(run, "validation loss"))
        mean_loss = devices.pmap(build.make_trainer(run).mean_loss)

        def of_trained(params):
            if not build.model_of(run).spec.offsets:
                params = build.with_untrained_users(run, params, "valid")
            return float(devices.first(mean_loss(params, sampler, positives, key_data)))

        return of_trained


def validate(run: Run, scorer: Scorer, params: dict[str, Any]) -> Record:
    """All metrics on validation, at the cut-off of the early-stopping metric."""
    ready, protocol = build.params_for(run, params, "valid"), build.protocol_of(run)
    sample = run.config.evaluation.validation_users, build.validation_candidates(run)
    evaluation = evaluate(scorer, ready, run.dataset, "valid", protocol, (_cutoff(run),), *sample)
    return evaluation.means()


def _epoch_of(runs: Sequence[tuple[Run, Training]]) -> Epoch:
    first = runs[0][0]
    values = [
        flatten(run.config) | {"loss.temperature": build.loss_of(run).temperature}
        for run, _ in runs
    ]
    hyperparameters = {
        name: np.array([of_run[name] for of_run in values], np.float32)
        for name in build.HYPERPARAMETERS
        if values[0][name] is not None
    }
    return Epoch(
        functools.partial(build.make_trainer, first),
        [training.state for _, training in runs],
        (build.make_sampler(first), build.make_positives(first, "train")),
        np.stack([_key_data(run, "training") for run, _ in runs]),
        hyperparameters,
    )


def _key_data(run: Run, draw: str) -> np.ndarray:
    return np.asarray(jax.random.key_data(build.key_of(run, draw)))


def _solve(run: Run, checkpoints: Checkpoints) -> None:
    """Solves a model in closed form, as a single epoch 0."""
    if _latest(run, checkpoints) is not None:
        return
    watch = Stopwatch()
    state = build.initial_state(run)
    record: Record = {"epoch": 0, "step": 0, "train_s": round(watch.lap(), 3)}
    if run.config.early_stopping.metric != "loss" and run.dataset.valid.nnz:
        record |= validate(run, build.make_scorer(run, "valid"), state.params)
    checkpoints.save(0, state, 0.0)
    with MetricsLog(run.workdir / "metrics.jsonl", 0) as log:
        log.write(record)
