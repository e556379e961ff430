"""A run from its config to its workdir: prepare, fit, test, recommend; resumed where it was.

`train_and_evaluate` and its like never touch flags and can be called from a notebook.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import polars as pl
import rich

from hlrcml_jax import analyse as analysis
from hlrcml_jax import explain, files, page, parallel, plots, pretrained, recommend, report
from hlrcml_jax import export as export_lib
from hlrcml_jax.checkpoints import Checkpoints
from hlrcml_jax.errors import Terminated, UserError
from hlrcml_jax.evaluate import Evaluation, evaluate
from hlrcml_jax.models.solved import Popularity, Solved
from hlrcml_jax.run import Best, Run, begin_run, best_checkpoint, write_config
from hlrcml_jax.scoring import Scorer
from hlrcml_jax.terminations import Terminations
from hlrcml_jax.train import TrainState, improves, steps_per_epoch

N_EXAMPLES = 3  # users on the report


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, dict[str, float]]:
    """Prepares, fits (from the latest checkpoint, if any), and tests the best checkpoint.

    Args:
      config: see `config.py`; it is validated first.
      workdir: folder of the run; created if it does not exist.

    Returns:
      {"metric@k": {"mean", "std"}} on test, also written to `test_metrics.json`.

    Raises:
      UserError: a mistake in the config, the data or the workdir.
    """
    started = time.perf_counter()
    run = fit(config, workdir)
    best = best_checkpoint(run)
    rows = _test(best)
    examples, usage_M = _examples(best), page.memory_usage(best)
    log = report.read_log(run.workdir / "metrics.jsonl")
    parallel.in_first_process(lambda: page.write(best, rows, log, examples, usage_M))
    seconds = time.perf_counter() - started
    rich.print(f"Done in {seconds:.0f} s; everything is in {_shown(run.workdir)}.")
    return rows[run.config.model.name].summary() if run.dataset.test.nnz else {}


def fit(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> Run:
    """Prepares and trains, and leaves test alone; see `train_and_evaluate`.

    What it finds on validation is in `metrics.jsonl`.
    """
    with begin_run(config, workdir) as (run, checkpoints):
        where = f"{parallel.device_count()} {jax.default_backend()} device(s)"
        rich.print(f"{config.model.name} on {report.describe(run.dataset)}; {where}.")
        _fit(run, checkpoints)
    return run


def _fit(run: Run, checkpoints: Checkpoints) -> None:
    """Trains from the latest checkpoint until the last epoch, or until nothing improves."""
    config = run.config
    latest = checkpoints.latest(run.empty_state())
    if isinstance(run.model, Solved):
        if latest is None:
            _solve(run, checkpoints)
        return
    if latest is None:
        epoch, state = 0, pretrained.begin(run, run.initial_state())
    else:
        epoch, state = latest
        # What may change may have changed.
        parallel.in_first_process(lambda: write_config(run))
        rich.print(f"Going on after epoch {epoch}.")
    with (
        report.MetricsLog(run.workdir / "metrics.jsonl", epoch) as log,
        report.TrainingProgress(config.train.epochs, epoch, config.early_stopping.metric) as bar,
        Terminations() as terminations,
    ):
        loop = _Loop(run, state)
        while not _finished(config, loop.state, epoch):
            record = loop.train_epoch(epoch)
            epoch += 1
            asked = terminations.asked()
            if epoch % config.train.validate_every == 0 or epoch == config.train.epochs:
                value = loop.validate(record)
                checkpoints.save(epoch, run.keep(loop.state), value)
            elif asked:
                checkpoints.save(epoch, run.keep(loop.state), -math.inf)  # best of nothing
            log.write(record)
            bar.update(record)
            if asked:
                raise Terminated(
                    f"asked to end, and saved after epoch {epoch}; the same command goes on."
                )


def _solve(run: Run, checkpoints: Checkpoints) -> None:
    """What `_fit` does for a model that is solved at once: epoch 0 is all there is."""
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


def _finished(config, state: TrainState, epoch: int) -> bool:
    best_epoch = int(parallel.first(state.best_epoch))
    waited = (epoch - best_epoch) / config.train.validate_every
    return epoch >= config.train.epochs or waited >= config.early_stopping.patience


class _Loop:
    """The compiled functions of one fit, and what they work on."""

    def __init__(self, run: Run, state: TrainState):
        self._run = run
        trainer = run.trainer()
        self._n = run.dataset.train.nnz
        self._key = jax.random.key(run.config.seed)
        train_key, loss_key = jax.random.split(jax.random.fold_in(self._key, 1))
        self.state = run.place(state)
        sampler = run.sampler()
        self._data = (sampler, run.positives("train"), _replicate_key(train_key))
        arguments = (self.state, *self._data)
        self._epoch = parallel.compiled(trainer.train_epoch, arguments, donate=(0,))
        self._steps = steps_per_epoch(self._n, trainer.batch_size)
        self._metric = run.config.early_stopping.metric
        if self._metric == "loss":
            self._loss_data = (sampler, run.positives("valid"), _replicate_key(loss_key))
            self._mean_loss = parallel.pmap(trainer.mean_loss)
        else:
            self._scorer = run.scorer("valid")

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One epoch; its line for the log."""
        watch = report.Stopwatch()
        with jax.transfer_guard("disallow"):
            self.state, loss_T = self._epoch(self.state, *self._data)
            loss_T = parallel.first(loss_T)
        seconds = watch.lap()
        if not np.isfinite(loss_T).all():
            step, size = int(np.argmin(np.isfinite(loss_T))), self._run.config.train.batch_size
            last = min((step + 1) * size, self._n)
            good = epoch - epoch % self._run.config.train.validate_every
            kept = f"the checkpoint of epoch {good} is" if good else "there is no checkpoint"
            raise UserError(
                f"the loss became {loss_T[step]} in step {step + 1} of epoch {epoch + 1}, examples "
                f"{step * size + 1:,} to {last:,} of its order; {kept} before it; lower "
                "optimizer.learning_rate, in another --workdir."
            )
        return {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self._steps,
            "loss": float(loss_T.sum()) / self._n,
            "examples_per_s": round(self._n / seconds, 1),
            "train_s": round(seconds, 3),
        }

    def validate(self, record: dict[str, float]) -> float:
        """Adds the validation to an epoch's record; the value to choose by, higher is better."""
        run, watch = self._run, report.Stopwatch()
        if run.dataset.valid.nnz == 0:
            value = float(record["epoch"])  # nothing to choose by: the latest is the best
        elif self._metric == "loss":
            record["loss_valid"] = float(
                parallel.first(self._mean_loss(self.state.params, *self._loss_data))
            )
            value = -record["loss_valid"]
        else:
            params = run.keep(self.state.params)
            record.update(_validation(run, self._scorer, params, self._metric))
            value = record[self._metric]
        record["validation_s"] = round(watch.lap(), 3)
        self.state = improves(self.state, value, int(record["epoch"]))
        return value


def _replicate_key(key: jax.Array) -> jax.Array:
    return parallel.replicate(jax.random.key_data(key))


def test(best: Best) -> dict[str, dict[str, float]]:
    """Evaluates a checkpoint on test beside popularity; see `train_and_evaluate`."""
    rows, run = _test(best), best.run
    return rows[run.config.model.name].summary() if run.dataset.test.nnz else {}


def _test(best: Best) -> dict[str, Evaluation]:
    """Evaluations on test of a checkpoint and of popularity.

    Writes `test_metrics.json` and, for paired comparisons, the metrics of each user to
    `test_users.parquet`.
    """
    run = best.run
    name = run.config.model.name
    # Without the items of validation, test is predicted from what validation is predicted from.
    known = "test" if run.config.evaluation.known == "train+valid" else "valid"
    ready = best.ready if known == "test" else run.params_for(best.params, known)
    rows = {name: evaluate(run.scorer(known), ready, run.dataset, "test", run.protocol)}
    if name != "popularity":
        popularity = Popularity()
        scorer, fitted = run.scorer(known, popularity), popularity.fit(run.dataset.train)
        ready = run.params_for(fitted, known, popularity)
        rows["popularity"] = evaluate(scorer, ready, run.dataset, "test", run.protocol)
    found = rows[name]
    text = {
        "metrics": found.summary(),
        "n_users": len(found.user_B),
        "epoch": best.epoch,
        "parameters": run.n_parameters,
        "protocol": {
            **dataclasses.asdict(found.protocol),
            "ranking": f"whole catalogue, without the items of {run.config.evaluation.known}",
            "std": "between the means of the cohorts",
        },
    }
    ids = run.dataset.user_ids.gather(found.user_B)
    by_user = pl.DataFrame({"user_id": ids, **found.values})

    def write():
        files.write_text(run.workdir / "test_metrics.json", json.dumps(text, indent=2) + "\n")
        files.write(run.workdir / "test_users.parquet", by_user.write_parquet)

    parallel.in_first_process(write)
    if not len(found.user_B):
        rich.print("The test part is empty: nothing to evaluate.")
    else:
        report.print_metrics(
            f"Test, {len(found.user_B):,} users, {run.protocol.definitions} definitions",
            {label: evaluation.summary() for label, evaluation in rows.items()},
            run.protocol.cutoffs,
        )
    return rows


def _examples(best: Best) -> list[pl.DataFrame]:
    """Ten recommendations for some users with ten training items and more; prints the first's."""
    run = best.run
    count_U = np.diff(run.dataset.train.indptr)
    user_C = np.argsort(count_U < 10, kind="stable")[:N_EXAMPLES]
    make = _explained if explain.explains(run.model) else _recommended
    table = make(best, 10, 3)(user_C)
    ids = run.dataset.user_ids.gather(user_C)
    tables = [table.filter(pl.col("user_id") == id) for id in ids]
    report.print_recommendations(f"Recommendations for user {ids[0]}", tables[0])
    return [found for found in tables if len(found)]


def write_recommendations(best: Best) -> pathlib.Path:
    """Writes the top K of the chosen users to `recommendations.*` in the workdir."""
    return _write(best, "recommendations", _recommended)


def write_reasons(best: Best) -> pathlib.Path:
    """Writes the top K of the chosen users with their reasons to `reasons.*` in the workdir."""
    run, path = best.run, _write(best, "reasons", _explained)
    user_C = _chosen_users(run)[:1]
    table = _explained(best, run.config.recommend.k, 1)(user_C)
    user = run.dataset.user_ids[int(user_C[0])]
    report.print_recommendations(f"Recommendations for user {user}", table)
    return path


def _chosen_users(run: Run) -> np.ndarray:
    names = run.config.recommend.users
    ids = run.dataset.user_ids
    return recommend.numbers(ids, names.split(","), "user") if names else np.arange(len(ids))


def _write(best: Best, name: str, make) -> pathlib.Path:
    run = best.run
    options, user_C = run.config.recommend, _chosen_users(run)
    path = run.workdir / f"{name}.{options.format}"
    of = [
        name,
        best.epoch,
        options.k,
        options.reasons,
        options.only_items,
        run.config.scoring.storage,
    ]
    table = make(best, options.k, options.reasons)
    n_rows = recommend.write_in_parts(path, options.format, user_C, table, of)
    rich.print(f"{n_rows:,} rows for {len(user_C):,} users in {_shown(path)}.")
    return path


def _recommended(best: Best, k: int, _: int) -> Callable[[np.ndarray], pl.DataFrame]:
    """What gives the k best items of users."""
    run, ready = best.run, best.ready
    scorer = run.scorer("test")
    only_I = None
    if run.config.recommend.only_items:
        only_I = np.zeros(run.dataset.n_items, bool)
        names = run.config.recommend.only_items.split(",")
        only_I[recommend.numbers(run.dataset.item_ids, names, "item")] = True

    def table(user_C):
        rankings = scorer.rank(ready, user_C, k, only_I=only_I)
        ids, dataset = run.dataset.user_ids, run.dataset
        return pl.concat([recommend.frame(ranking, ids, dataset) for ranking in rankings])

    return table


def _explained(best: Best, k: int, most: int) -> Callable[[np.ndarray], pl.DataFrame]:
    """What gives the k best items of users, each with its reasons."""
    run, params, recommended = best.run, best.on_host, _recommended(best, k, most)
    scorer = run.scorer("test")

    def table(user_C):
        best_R = recommended(user_C)
        user_R = recommend.numbers(run.dataset.user_ids, best_R["user_id"], "user")
        item_R = recommend.numbers(run.dataset.item_ids, best_R["item_id"], "item")
        pairs = (user_R, item_R, run.dataset.user_ids, run.dataset)
        why = explain.reasons(run.model, params, scorer, *pairs, most)
        keys = ["user_id", "item_id"]
        if "title" in why.columns:
            why = why.drop("title")
        return best_R.join(why, keys, "left", maintain_order="left_right")

    return table


def export(best: Best) -> pathlib.Path:
    """Writes vectors, memory and the scoring function to `export/` in the workdir."""
    run = best.run
    if run.model.user_is_history:
        raise UserError(
            f"a model of kind {type(run.model).__name__} has no vectors to export; its weights are "
            "in the checkpoint."
        )
    params, folder = best.on_host, run.workdir / "export"
    parallel.in_first_process(lambda: export_lib.write(folder, run.model, params, run.dataset))
    rich.print(f"Vectors and the scoring function are in {_shown(folder)}.")
    return folder


def analyse(best: Best) -> dict[str, dict[str, float]]:
    """Compares the relations of test interactions with the categories of their items.

    Writes `relations.json`, the relations themselves to `relations.npz`, and a plot.
    """
    run, params = best.run, best.on_host
    scorer, seed = run.scorer("test"), run.config.data.split.seed
    most = run.config.analyse.interactions
    found = analysis.relations(run.model, params, scorer, run.dataset, most, seed)
    matching = analysis.matching(found, seed)
    plot = run.workdir / "plots" / "relations.png"
    arrays = {
        "user_ids": run.dataset.user_ids.cast(pl.String).to_numpy()[found.user_N].astype(str),
        "item_ids": run.dataset.item_ids.cast(pl.String).to_numpy()[found.item_N].astype(str),
        "vectors": found.vector_NxD,
    }

    def write():
        files.write_text(run.workdir / "relations.json", json.dumps(matching, indent=2) + "\n")
        files.write(run.workdir / "relations.npz", lambda path: np.savez(path, **arrays))
        plots.plot_relations(*analysis.in_two_dimensions(found.vector_NxD), found.shared_N, plot)

    parallel.in_first_process(write)
    report.print_matching(f"Relations of {run.config.model.name}", matching)
    rich.print(f"The plot is {_shown(plot)}.")
    return matching


def _shown(path: pathlib.Path) -> str:
    """A path for the console, short where it is below the current folder."""
    here = pathlib.Path.cwd()
    below = not files.is_remote(path) and path.is_relative_to(here)
    return f"[bold]{path.relative_to(here) if below else path}[/bold]"
