"""Console output of a run: progress, tables, timing."""

import importlib.util
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import polars as pl
import rich
import rich.box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hlrcml_jax import processes, storage
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.errors import printable, warn
from hlrcml_jax.ranking.metrics import Summary, shown

# Metrics that tables show in percent, with their column heads.
COLUMNS = {
    "ndcg": "ndcg",
    "map": "map",
    "mrr": "mrr",
    "precision": "prec",
    "recall": "recall",
    "hit_rate": "hit",
    "coverage": "cover",
}


def plain(text: object) -> Text:
    """A text of the data or of the user, in which rich finds no markup and nothing is hidden."""
    return Text(printable(str(text)))


def say(text: str, path: pathlib.Path | None = None) -> None:
    """Prints a sentence as it is; a path, if any, in bold after it."""
    line = plain(text)
    if path is not None:
        line.append(printable(_shown(path)), "bold").append(".")
    rich.print(line)


def _shown(path: pathlib.Path) -> str:
    """A path for the console, relative if it is below the current folder."""
    here = pathlib.Path.cwd()
    below = not storage.is_remote(path) and path.is_relative_to(here)
    return str(path.relative_to(here) if below else path)


class TrainingProgress:
    """A progress bar over epochs per run, on stderr or in a notebook; else plain lines."""

    def __init__(self):
        self._console = Console(stderr=True, quiet=not processes.is_first_process())
        widgets = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        self._live = self._console.is_terminal or widgets
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def add(
        self, name: str, epochs: int, done: int, metric: str
    ) -> Callable[[Mapping[str, float]], None]:
        """Adds a run; returns a function that shows a record of its `metrics.jsonl`.

        Args:
          name: of the run, if there are several; else "".
          epochs: most epochs of the run.
          done: completed epochs.
          metric: shown if the record has it.
        """
        label = printable(f"{name} epoch".strip())
        task = self._bar.add_task(label, total=epochs, completed=done, status="compiling")

        def show(record):
            status = f"loss {record['loss']:.4f}  {record['examples_per_s']:,.0f} examples/s"
            if metric in record:
                status += f"  valid {metric} {record[metric]:.4f}"
            self._bar.update(task, completed=record["epoch"], status=status)
            if not self._live:
                self._console.print(plain(f"{label} {record['epoch']}  {status}"))

        return show


def describe(data: Dataset) -> str:
    """Sizes of a data set and its parts, in one line."""
    density = 100 * data.n_interactions / (data.n_users * data.n_items)
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    sizes = ", ".join(f"{part.nnz:,} {name}" for name, part in parts.items())
    return f"{data.size} ({density:.2g} %): {sizes}"


def print_metrics(title: str, summaries: Mapping[str, Summary], cutoffs: Sequence[int]) -> None:
    """Prints a row per model of the main metrics at one k, with the interval of the first.

    Args:
      title: before the k.
      summaries: by model; `p` of the first is that of a test against the last.
      cutoffs: of the protocol.
    """
    k, models = shown(cutoffs), list(summaries)
    main_metric = f"{next(iter(COLUMNS))}@{k}"
    table = Table(title=plain(f"{title}, percent @{k}"), box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)  # so that 80 columns are enough
    table.title_justify = table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    for name in (*COLUMNS.values(), "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for model, summary in summaries.items():
        cells = [f"{100 * summary[f'{name}@{k}']['mean']:.2f}" for name in COLUMNS]
        interval = summary[main_metric]
        cells[0] += f"±{50 * (interval['high'] - interval['low']):.1f}"
        table.add_row(plain(model), *cells, f"{summary[f'median_rank@{k}']['mean']:.0f}")
    caption = "± is half of the 95 % confidence interval over users"
    if (p := summaries[models[0]][main_metric].get("p")) is not None:
        mine, theirs = (summaries[model][main_metric]["mean"] for model in (models[0], models[-1]))
        how = "below" if mine < theirs else "against"
        caption += f"; {models[0]} {how} {models[-1]}: p {shown_p(p)}"
    table.caption = plain(f"{caption}.")
    rich.print(table)


def shown_interval(metric: Mapping[str, float]) -> str:
    """The confidence interval of a metric, in percent."""
    return f"[{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def shown_p(p: float) -> str:
    """A p-value, with its sign of comparison."""
    return f"= {p:.2g}" if p >= 1e-16 else "< 1e-16"


def print_recommendations(title: str, recommendations: pl.DataFrame) -> None:
    """Prints recommendations, one per row, with the first reason if any."""
    explained = "share" in recommendations.columns
    table = Table(title=plain(title), title_justify="left", box=rich.box.SIMPLE)
    for name in ("rank", "item", "score") + (("because of",) if explained else ()):
        table.add_column(name, justify="right" if name in ("rank", "score") else "left")
    for row in recommendations.unique("rank", keep="first").sort("rank").iter_rows(named=True):
        score = "" if row["score"] is None else f"{row['score']:.3f}"
        cells = [str(row["rank"]), str(row.get("title", row["item_id"])), score]
        if explained and row["share"] is not None:
            reason = row.get("reason_title", row["reason_item_id"])
            cells.append(f"{reason} ({100 * row['share']:.0f} %)")
        table.add_row(*map(plain, cells))
    rich.print(table)


def print_matching(title: str, matching: Mapping[str, Mapping[str, float]]) -> None:
    """Prints matching probabilities of the most frequent categories."""
    title = f"{title}: does the nearest share a category?"
    table = Table(title=plain(title), box=rich.box.SIMPLE_HEAD)
    table.title_justify = "left"
    for name in ("category", "interactions", "nearest", "random"):
        table.add_column(name, justify="left" if name == "category" else "right")
    for kind, row in list(matching.items())[:12]:
        shares = (f"{100 * row[name]:.1f} %" for name in ("nearest", "random"))
        table.add_row(plain(kind), f"{row['interactions']:,}", *shares)
    rich.print(table)


class Stopwatch:
    """Seconds since creation, or since the last `lap`."""

    def __init__(self):
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        start, self._start = self._start, time.perf_counter()
        return self._start - start


def print_prepared(data: Dataset) -> None:
    """Prints what the preparation took away, and what is left."""
    print_account(data)
    say(f"Ready: {describe(data)}.")


def print_account(data: Dataset) -> None:
    """Prints the columns that were found, what each step took away, and the warnings."""
    if data.account.columns:
        rich.get_console().print(plain(f"columns: {data.account.columns}"), style="dim")
    for step in data.account.steps:
        rich.get_console().print(plain(step), style="dim")
    if processes.is_first_process():
        for sentence in data.account.warnings:
            warn(sentence)
