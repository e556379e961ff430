"""A run from config to workdir: prepare, fit, test, recommend; resumable.

Nothing here touches flags, so all functions can be called from a notebook.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
import polars as pl

from hlrcml_jax import analyse as analysis
from hlrcml_jax import (
    arguments,
    devices,
    processes,
    settings,
    storage,
)
from hlrcml_jax import export as export_lib
from hlrcml_jax.config import Config, validate
from hlrcml_jax.errors import UserError
from hlrcml_jax.ranking.metrics import Summary
from hlrcml_jax.registry import BASELINE
from hlrcml_jax.reporting import console as report
from hlrcml_jax.reporting import plots
from hlrcml_jax.reporting import report as page
from hlrcml_jax.reporting.log import read_log
from hlrcml_jax.runs import build, lists
from hlrcml_jax.runs.build import Best, best_checkpoint, best_state
from hlrcml_jax.runs.fit import fit_runs, in_common, refit
from hlrcml_jax.runs.run import Run
from hlrcml_jax.runs.tested import Tested, on_test
from hlrcml_jax.runs.workdir import begin_run, open_other
from hlrcml_jax.training.step import TrainState
from hlrcml_jax.training.warm_start import Vectors, carried_over, read_vectors, warm_start

AnyConfig = ml_collections.ConfigDict | Config
OnEpoch = Callable[[dict[str, float]], object]
N_EXAMPLES = 3  # users in the report


@settings.own_settings()
def train_and_evaluate(
    config: AnyConfig, workdir: str | pathlib.Path, on_epoch: OnEpoch | None = None
) -> Summary:
    """Prepares, fits (resuming from the latest checkpoint, if any), and tests the best checkpoint.

    Args:
      config: as returned by `make_config`; it is validated first.
      workdir: folder of the run; created if missing.
      on_epoch: as in `fit`.

    Returns:
      The metrics on test, by "metric@k", as in `Evaluation.summary` with tests against popularity;
      also written to `test_metrics.json`.

    Raises:
      UserError: for an error in the config, the data or the workdir.
    """
    started = time.perf_counter()
    run = fit(config, workdir, on_epoch)
    best = best_checkpoint(run)
    tested = _test(best)
    examples, log = _examples(best), read_log(run.workdir / "metrics.jsonl")
    of_memory = (build.model_of(run), best.on_host, build.make_scorer(run, "test"), run.dataset)
    usage_M = analysis.memory_usage(*of_memory)
    of_run = (run.config, run.dataset, run.workdir, best.epoch, build.count_parameters(run))
    found = (tested.rows, tested.summaries, log, examples, usage_M)
    processes.in_first_process(lambda: page.write(*of_run, *found))
    seconds = time.perf_counter() - started
    report.say(f"Done in {seconds:.0f} s; everything is in ", run.workdir)
    return tested.summaries[run.config.model.name] if run.dataset.test.nnz else {}


@settings.own_settings()
def fit(config: AnyConfig, workdir: str | pathlib.Path, on_epoch: OnEpoch | None = None) -> Run:
    """Prepares and trains without testing; see `train_and_evaluate`.

    Validation metrics are written to `metrics.jsonl`.

    Args:
      config: as in `train_and_evaluate`.
      workdir: as in `train_and_evaluate`.
      on_epoch: is called with the record of each epoch, as in `metrics.jsonl`, after its checkpoint
        is saved. What it raises ends training, which the same call resumes.
    """
    return _fit([config], [workdir], on_epoch=arguments.function("on_epoch", on_epoch))[0]


@settings.own_settings()
def fit_all(
    configs: Sequence[AnyConfig],
    workdirs: Sequence[str | pathlib.Path],
    side_by_side: int = 0,
) -> list[Run]:
    """As `fit` for several runs; a run whose loss is no longer finite ends with a warning.

    Runs that differ only in the seed and `build.HYPERPARAMETERS` are trained side by side in one
    program. A GPU trains several small models in little more than the time of one.

    Args:
      configs: of the runs.
      workdirs: one per run.
      side_by_side: most runs at a time; 0: as the device allows, 1 on a CPU.
    """
    most = arguments.count("side_by_side", side_by_side, least=0) or devices.side_by_side()
    configs, workdirs = (
        arguments.several(name, given)
        for name, given in (("configs", configs), ("workdirs", workdirs))
    )
    if len(configs) != len(workdirs):
        raise UserError(f"there are {len(configs)} configs and {len(workdirs)} workdirs.")
    typed, alike = [validate(config) for config in configs], collections.defaultdict(list)
    for index, config in enumerate(typed):
        alone = index if config.parallel.tables == "sharded" else None
        alike[alone, repr(in_common(config))].append(index)
    runs = {}
    for indices in alike.values():
        for start in range(0, len(indices), most):
            group = indices[start : start + most]
            each = ([typed[index], workdirs[index]] for index in group)
            runs |= zip(group, _fit(*zip(*each, strict=True), keep_going=True), strict=True)
    return [runs[index] for index in range(len(configs))]


def _fit(configs, workdirs, keep_going: bool = False, on_epoch=None) -> list[Run]:
    configs = [validate(config) for config in configs]
    with contextlib.ExitStack() as stack:
        paths = [arguments.path("workdir", workdir) for workdir in workdirs]
        each = zip(configs, paths, strict=True)
        begun = [stack.enter_context(begin_run(config, workdir)) for config, workdir in each]
        hardware = devices.described()
        report.print_account(begun[0][0].dataset)  # all runs of a group have the same data
        for run, _ in begun:
            report.say(f"{run.config.model.name} on {report.describe(run.dataset)}; {hardware}.")
        fit_runs(begun, _start, keep_going, on_epoch)
        for run, _ in begun:
            if run.is_refitted:
                refit(run, _start)
    return [run for run, _ in begun]


def _start(run: Run) -> TrainState:
    """The state before training, with pretrained embeddings or the state of another run."""
    if run.config.train.continues:
        return _continued(run)
    state = build.initial_state(run)
    given = run.config.pretrained
    tables = {}
    for name, path, wanted in (
        ("users", given.user_vectors, run.dataset.user_ids),
        ("items", given.item_vectors, run.dataset.item_ids),
    ):
        if path:
            key = f"pretrained.{name[:-1]}_vectors={path}"
            table = np.array(devices.to_host(state.params[name])[: len(wanted)])
            found = _vectors_of(run, name, key, path)
            tables[name] = warm_start(key, found, wanted, table, run.config.model.dim)
    return state.replace(params=state.params | tables)


def _continued(run: Run) -> TrainState:
    """The best state of the run that this one continues, with rows for new users and items."""
    other = open_other(run.config, run.config.train.continues)
    return carried_over(build.initial_state(run), best_state(other))


def _vectors_of(run: Run, name: str, key: str, path: str) -> Vectors:
    """The vectors of the "users" or "items" of a workdir or a file."""
    source = pathlib.Path(path).expanduser()
    if not source.is_dir():
        return read_vectors(key, source)
    other = open_other(run.config, path)
    ids = {"users": other.dataset.user_ids, "items": other.dataset.item_ids}[name]
    params = best_checkpoint(other).params
    if name not in params:
        raise UserError(
            f"{key}: this run represents its {name} by their items; choose one with embeddings."
        )
    return ids.cast(pl.String), devices.to_host(params[name])[: len(ids)]


@settings.own_settings()
def test(best: Best) -> Summary:
    """Evaluates a checkpoint and popularity on test; see `train_and_evaluate`."""
    summary = _test(best).summaries[best.run.config.model.name]
    return summary if best.run.dataset.test.nnz else {}


def _test(best: Best) -> Tested:
    """A checkpoint on test, beside popularity.

    Writes `test_metrics.json` and, for paired comparisons, metrics per user to
    `test_users.parquet`.
    """
    run, tested = best.run, on_test(best)
    name = run.config.model.name
    evaluated = tested.rows[name]
    text = {
        "metrics": tested.summaries[name],
        "n_users": len(evaluated.user_B),
        "n_users_at": {str(k or "all"): evaluated.n_users(k) for k in evaluated.protocol.cutoffs},
        "epoch": best.epoch,
        "parameters": build.count_parameters(run),
        "protocol": {
            **dataclasses.asdict(evaluated.protocol),
            "ranking": f"whole catalogue, without the items of {run.config.evaluation.known}",
            "low, high": "95 % confidence interval of the mean over users",
            "p": f"of a paired t-test over users against {BASELINE}",
            "sd_over_cohorts": "standard deviation between the means of the cohorts",
        },
    }
    ids = run.dataset.user_ids.gather(evaluated.user_B)
    by_user = pl.DataFrame({"user_id": ids, **evaluated.values})

    def write():
        storage.write_text(run.workdir / "test_metrics.json", json.dumps(text, indent=2) + "\n")
        storage.write(run.workdir / "test_users.parquet", by_user.write_parquet)

    processes.in_first_process(write)
    if not len(evaluated.user_B):
        report.say("No user has enough test items: nothing to evaluate.")
    else:
        report.print_metrics(
            f"Test, {len(evaluated.user_B):,} users, {evaluated.protocol.definitions} definitions",
            tested.summaries,
            evaluated.cutoffs,
        )
    return tested


def _examples(best: Best) -> dict[int, pl.DataFrame]:
    """Top 10 by user index, of some with at least ten training items; prints the first user's."""
    run = best.run
    count_U = np.diff(run.dataset.train.indptr)
    user_C = np.argsort(count_U < 10, kind="stable")[:N_EXAMPLES]
    reasons = 3 if build.model_of(run).spec.attends else None
    table = lists.tables(best, lists.of_data(best), 10, reasons)(user_C)
    ids = run.dataset.user_ids.gather(user_C)
    tables = [table.filter(pl.col("user_id") == id) for id in ids]
    report.print_recommendations(f"Recommendations for user {ids[0]}", tables[0])
    return {int(user): table for user, table in zip(user_C, tables, strict=True) if len(table)}


@settings.own_settings()
def export(best: Best) -> pathlib.Path:
    """Writes embeddings, memory and the scoring function to `export/` in the workdir."""
    run, model = best.run, build.model_of(best.run)
    if model.spec.rows_are_histories:
        raise UserError(
            f"{type(model).__name__} has no embeddings to export; its weights are in checkpoints/."
        )
    params, folder = best.on_host, run.workdir / "export"
    of_run = (model, params, run.dataset, run.config.export.users)
    processes.in_first_process(lambda: export_lib.write(folder, *of_run))
    report.say("Embeddings and the scoring function are in ", folder)
    return folder


@settings.own_settings()
def analyse(best: Best) -> dict[str, dict[str, float]]:
    """Tests whether nearby relations of test interactions share categories; see `analyse.py`.

    Writes `relations.json`, the relations to `relations.npz`, and a plot.
    """
    run, params = best.run, best.on_host
    scorer, seed = build.make_scorer(run, "test"), run.config.data.split.seed
    most = run.config.analyse.interactions
    relations = analysis.relations(build.model_of(run), params, scorer, run.dataset, most, seed)
    matching = analysis.matching(relations, seed)
    plot = run.workdir / "plots" / "relations.svg"
    arrays: dict[str, Any] = {
        "user_ids": run.dataset.user_ids.cast(pl.String).to_numpy()[relations.user_N].astype(str),
        "item_ids": run.dataset.item_ids.cast(pl.String).to_numpy()[relations.item_N].astype(str),
        "vectors": relations.vector_NxD,
    }

    def write():
        storage.write_text(run.workdir / "relations.json", json.dumps(matching, indent=2) + "\n")
        storage.write(run.workdir / "relations.npz", lambda path: np.savez(path, **arrays))
        components = analysis.in_two_dimensions(relations.vector_NxD)
        figure = plots.plot_relations(*components, relations.shared_N)
        storage.write_text(plot, plots.svg(figure, "relations", "Relations by category."))

    processes.in_first_process(write)
    report.print_matching(f"Relations of {run.config.model.name}", matching)
    report.say("The plot is ", plot)
    return matching
