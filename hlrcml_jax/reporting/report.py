"""`report.html`: a self-contained page of a run, and its plots."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from hlrcml_jax import frames, storage
from hlrcml_jax.data.dataset import Dataset, count_items
from hlrcml_jax.ranking import groups
from hlrcml_jax.ranking.evaluation import Evaluation, popularity_ranks
from hlrcml_jax.ranking.metrics import Summary, shown
from hlrcml_jax.reporting import markup, plots
from hlrcml_jax.reporting.console import COLUMNS, shown_interval, shown_p
from hlrcml_jax.schema import Config

NBSP = "\N{NO-BREAK SPACE}"
MOST_PAST = 10  # items of a user's history
NOBODY = "<p>No user has enough test items: nothing to evaluate.</p>"


def write(
    config: Config,
    dataset: Dataset,
    workdir: pathlib.Path,
    epoch: int,
    n_parameters: int,
    rows: Mapping[str, Evaluation],
    summaries: Mapping[str, Summary],
    log: Sequence[Mapping[str, float]],
    examples: Mapping[int, pl.DataFrame],
    usage_M: np.ndarray | None,
) -> pathlib.Path:
    """Writes the plots of a tested run to `plots/`, and `report.html`.

    Args:
      config: of the run.
      dataset: of the run.
      workdir: of the run.
      epoch: of its best checkpoint.
      n_parameters: number of trained parameters.
      rows: evaluations on test by name, of the model first and then of baselines.
      summaries: of these.
      log: records of `metrics.jsonl`.
      examples: recommendations by user index, with reasons if the model attends.
      usage_M: see `analyse.memory_usage`; None without a memory.
    """
    tested = next(iter(rows.values()))
    k = shown(tested.cutoffs)
    protocol = (
        f"<p class=note>{len(tested.user_B):,} test users, the whole catalogue ranked; "
        f"{tested.protocol.definitions} definitions; "
        "in brackets the 95 % confidence interval of the mean over users, and p of a paired test "
        "against popularity; the popularity rank is the median of the recommended items', 1 the "
        "most popular.</p>"
    )
    figures = []
    for name, caption, figure in _figures(config, dataset, epoch, rows, log, usage_M, k):
        picture = plots.svg(figure, name, caption)
        storage.write_text(workdir / "plots" / f"{name}.svg", picture)
        figures.append(markup.figure(picture, caption))
    parts = [
        f"<p class=note>{n_parameters:,} trained parameters, seed {config.seed}, best epoch "
        f"{epoch}; every config key is in <code>config.json</code> beside this page.</p>",
        *(f"<p class=note>{markup.escaped(str(step))}.</p>" for step in dataset.account.steps),
        "<h2>On test</h2>",
        *([_metrics_table(summaries, k), protocol] if len(tested.user_B) else [NOBODY]),
        "<div class=figures>",
        *figures,
        "</div>",
        "<h2>Recommendations</h2>",
        *(_example(dataset, *example) for example in examples.items()),
    ]
    path = workdir / "report.html"
    storage.write_text(path, markup.page(f"{config.model.name}: {dataset.size}", parts))
    return path


def _figures(
    config: Config,
    dataset: Dataset,
    epoch: int,
    rows: Mapping[str, Evaluation],
    log: Sequence[Mapping[str, float]],
    usage_M: np.ndarray | None,
    k: int,
) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, plot) of each figure that the run has."""
    if any("loss" in record for record in log):
        metric = config.early_stopping.metric.replace("loss", "loss_valid")
        validated = f", and {metric} on validation" if any(metric in r for r in log) else ""
        caption = f"Training loss{validated}; dotted: the best epoch, {epoch}."
        yield "learning_curve", caption, plots.plot_learning_curve(log, metric, epoch)
    tested = next(iter(rows.values()))
    if len(tested.user_B):
        caption = (
            "NDCG by a user's number of training items, and recall of test items by their "
            "popularity: means over users, with 95 % confidence intervals."
        )
        yield "groups", caption, plots.plot_groups(_panels(dataset, rows, k))
        listed = {name: _listed(dataset, row, k) for name, row in rows.items()}
        never = np.mean(listed[config.model.name] == 0)
        caption = (
            "Share of recommendations and of training interactions on the most popular items. "
            f"{100 * never:.0f} % of the catalogue is recommended to nobody."
        )
        yield "popularity", caption, plots.plot_popularity(count_items(dataset.train), listed)
    if usage_M is not None:
        caption = (
            "Mean weight of each memory slot in the relations of test interactions; dotted: "
            "uniform weights."
        )
        yield "memory", caption, plots.plot_memory(usage_M)


def _panels(
    dataset: Dataset, rows: Mapping[str, Evaluation], k: int
) -> list[tuple[str, str, dict[str, groups.Groups]]]:
    """The charts of `plots.plot_groups`."""
    rank_I, by_user, by_item = popularity_ranks(dataset), {}, {}
    for name, row in rows.items():
        seed, lists = row.protocol.seed, row.item_BxK[:, :k]
        count_B = np.diff(dataset.train.indptr)[row.user_B]
        by_user[name] = groups.by_history(count_B, row.values[f"ndcg@{k}"], seed)
        by_item[name] = groups.by_popularity(dataset.test[row.user_B], lists, rank_I, seed)
    return [
        ("training items of the user", f"ndcg@{k}", by_user),
        ("popularity rank of the item (0 %: highest)", f"recall@{k}", by_item),
    ]


def _listed(dataset: Dataset, tested: Evaluation, k: int) -> np.ndarray:
    """Number of lists of length k that include each item, (I,)."""
    item_BxK = tested.item_BxK[:, :k]
    return np.bincount(item_BxK[item_BxK >= 0], minlength=dataset.n_items)


def _metrics_table(summaries: Mapping[str, Summary], k: int) -> str:
    """A row per metric: of each model, with its interval, and p against the last."""
    first = next(iter(summaries.values()))
    lines = []
    for metric in COLUMNS:
        cells = []
        for summary in summaries.values():
            value = summary[f"{metric}@{k}"]
            # A line may only break before the interval.
            interval = f" {_unbroken(shown_interval(value))}" if "low" in value else ""
            cells.append(f"{100 * value['mean']:.2f}{interval}")
        p = first[f"{metric}@{k}"].get("p")
        cells.append("" if p is None else _unbroken(shown_p(p).removeprefix("= ")))
        lines.append([metric.replace("_", " "), *cells])
    ranks = [f"{summary[f'median_rank@{k}']['mean']:.0f}" for summary in summaries.values()]
    lines.append(["popularity rank", *ranks, ""])
    head = ["metric", *summaries, "p"]
    return markup.table(f"In percent at {k}", "Metrics on test", head, lines, head[1:])


def _unbroken(numbers: str) -> str:
    """Numbers without a place to break the line: a minus is none, and a hyphen is."""
    return numbers.replace(" ", NBSP).replace("-", "\N{MINUS SIGN}")


def _example(dataset: Dataset, user: int, table: pl.DataFrame) -> str:
    """A part of a user's history, and the recommendations, one item per row, with its reasons."""
    lines = []
    for _, rows in table.group_by("rank", maintain_order=True):
        first = rows.row(0, named=True)
        cells = [str(first["rank"]), str(first.get("title", first["item_id"]))]
        cells.append(f"{first['score']:.3f}")
        if "share" in rows.columns:
            label = "reason_title" if "reason_title" in rows.columns else "reason_item_id"
            reasons = rows.drop_nulls("share").select(label, "share").rows()
            cells.append(", ".join(f"{name} ({100 * share:.0f}{NBSP}%)" for name, share in reasons))
        lines.append(cells)
    head = ["rank", "item", "score"] + (["because of"] if "share" in table.columns else [])
    name = str(dataset.user_ids[user])
    label = f"Recommendations for user {name}"
    return "\n".join(
        [
            f"<h3>User {markup.escaped(name)}</h3>\n<div class=example>",
            _history(dataset, user),
            markup.table("Recommended", label, head, lines, ["rank", "score"]),
            "</div>",
        ]
    )


def _history(dataset: Dataset, user: int) -> str:
    """Some items of a user's history, none of which is recommended."""
    item_N = dataset.seen()[[user]].indices
    chosen_N = np.sort(np.random.default_rng(0).permutation(item_N)[:MOST_PAST])
    *_, names = frames.item_columns(chosen_N, dataset).values()  # titles, or else ids
    more = len(item_N) - len(chosen_N)
    what = f"History, {MOST_PAST} items at random" if more else "History"
    texts = [*map(str, names), *([f"and {more:,} more"] if more else [])]
    return f"<div><h4>{what}</h4>\n{markup.items(texts)}</div>"
