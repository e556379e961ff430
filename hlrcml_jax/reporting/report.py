"""`report.html`: a self-contained page of a run, and its plots."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from hlrcml_jax import storage
from hlrcml_jax.data.dataset import Dataset, count_items
from hlrcml_jax.errors import printable
from hlrcml_jax.ranking.evaluation import Evaluation, popularity_ranks
from hlrcml_jax.ranking.metrics import Summary, shown
from hlrcml_jax.reporting import plots
from hlrcml_jax.reporting.console import COLUMNS, shown_interval, shown_p
from hlrcml_jax.schema import Config

NBSP = "\N{NO-BREAK SPACE}"
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem;
  color: #1c1e21; background: #fff; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; }
figure { margin: 1rem 0; }
figcaption, .note { color: #5f6570; font-size: .875rem; }
img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; border-bottom: 1px solid #e3e5e8;
  vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""


def write(
    config: Config,
    dataset: Dataset,
    workdir: pathlib.Path,
    epoch: int,
    n_parameters: int,
    rows: Mapping[str, Evaluation],
    summaries: Mapping[str, Summary],
    log: Sequence[Mapping[str, float]],
    examples: Sequence[pl.DataFrame],
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
      examples: recommendations, one frame per user, with reasons if the model attends.
      usage_M: see `analyse.memory_usage`; None without a memory.
    """
    tested = next(iter(rows.values()))
    k = shown(tested.cutoffs)
    title = _escaped(f"{config.model.name}: {dataset.size}")
    protocol = (
        f"{len(tested.user_B):,} test users, the whole catalogue ranked; "
        f"{tested.protocol.definitions} definitions, in percent at {k}; "
        "in brackets the 95 % confidence interval of the mean over users, and p of a paired test "
        "against popularity; the popularity rank is the median of the recommended items', 1 the "
        "most popular."
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p class=note>{n_parameters:,} trained parameters, seed {config.seed}, best epoch "
        f"{epoch}; every config key is in <code>config.json</code> beside this page.</p>",
        "<h2>On test</h2>",
        _metrics_table(summaries, k) if len(tested.user_B) else "<p>The test part is empty.</p>",
        f"<p class=note>{protocol}</p>",
        *_figures(config, dataset, workdir, epoch, tested, log, usage_M, k),
        "<h2>Recommendations</h2>",
        *map(_example, examples),
        "</html>\n",
    ]
    path = workdir / "report.html"
    storage.write_text(path, "\n".join(parts))
    return path


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _figures(
    config: Config,
    dataset: Dataset,
    workdir: pathlib.Path,
    epoch: int,
    tested: Evaluation,
    log,
    usage_M,
    k: int,
) -> list[str]:
    """Draws the plots of a run; returns the figures of the page."""
    folder, figures = workdir / "plots", []

    def add(name: str, caption: str, draw, *args):
        draw(*args, folder / f"{name}.png")
        figures.append(_figure(folder / f"{name}.png", caption))

    if any("loss" in record for record in log):
        metric = config.early_stopping.metric
        caption = f"Training loss, and {metric} on validation; the best epoch is {epoch}."
        add("learning_curve", caption, plots.plot_learning_curve, log, metric, epoch)
    if len(tested.user_B):
        listed = tested.item_BxK[:, :k]
        listed_I = np.bincount(listed[listed >= 0], minlength=dataset.n_items)
        caption = "Share of training interactions and of recommendations on the most popular items."
        add("popularity", caption, plots.plot_popularity, count_items(dataset.train), listed_I)
        caption = (
            "NDCG by a user's number of training items, and recall of test items by popularity."
        )
        add("groups", caption, plots.plot_groups, *_groups(dataset, tested, k))
    if usage_M is not None:
        caption = "Mean weight of each memory slot in the relations of test interactions."
        add("memory", caption, plots.plot_memory, usage_M)
    return figures


def _groups(dataset: Dataset, tested: Evaluation, k: int):
    """({grouping: {group: value}}, {grouping: label of the values})."""
    data, row_B = dataset, np.arange(len(tested.user_B))
    count_B = np.diff(data.train.indptr)[tested.user_B]
    edges = np.unique(np.quantile(count_B, [0, 0.25, 0.5, 0.75]).astype(int))
    group_B = np.searchsorted(edges, count_B, side="right") - 1
    last = [*(edges[1:] - 1), count_B.max()]
    by_user = {}
    for group, (low, high) in enumerate(zip(edges, last, strict=True)):
        value_N = tested.values[f"ndcg@{k}"][group_B == group]
        value_N = value_N[~np.isnan(value_N)]
        if len(value_N):
            by_user[f"{low}–{high}" if low < high else str(low)] = float(np.mean(value_N))
    # Which test interactions are in their user's list.
    relevant = data.test[tested.user_B].tocoo()
    keys_R = relevant.row.astype(np.int64) * data.n_items + relevant.col
    list_BxK = tested.item_BxK[:, :k].astype(np.int64)
    keys_BxK = np.where(list_BxK >= 0, row_B[:, None] * data.n_items + list_BxK, -1)
    hit_R = np.isin(keys_R, keys_BxK)
    quantile_R = (popularity_ranks(data)[relevant.col] - 1) / data.n_items
    by_item = {}
    for low, high in ((0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 1)):
        of_group_R = (quantile_R >= low) & (quantile_R < high)
        if of_group_R.any():
            by_item[f"{100 * low:.0f}–{100 * high:.0f} %"] = float(hit_R[of_group_R].mean())
    groupings = "training items of the user", "popularity rank of the item"
    groups, labels = (by_user, by_item), (f"ndcg@{k}", f"share in the first {k}")
    return dict(zip(groupings, groups, strict=True)), dict(zip(groupings, labels, strict=True))


def _figure(path: pathlib.Path, caption: str) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{_escaped(caption)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{_escaped(caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str]) -> str:
    classes = [" class=n" if name in numeric else "" for name in head]
    cells = [
        "".join(f"<td{c}>{_escaped(x)}</td>" for c, x in zip(classes, row, strict=True))
        for row in rows
    ]
    top = "".join(f"<th{c}>{_escaped(name)}</th>" for c, name in zip(classes, head, strict=True))
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return f"<div class=scroll><table>\n<tr>{top}</tr>\n{body}\n</table></div>"


def _metrics_table(summaries: Mapping[str, Summary], k: int) -> str:
    """A row per metric: of each model, with its interval, and p against the last."""
    first = next(iter(summaries.values()))
    lines = []
    for metric in COLUMNS:
        cells = []
        for summary in summaries.values():
            value = summary[f"{metric}@{k}"]
            interval = f" {shown_interval(value)}" if "low" in value else ""
            cells.append(f"{100 * value['mean']:.2f}{interval}")
        p = first[f"{metric}@{k}"].get("p")
        lines.append(
            [metric.replace("_", " "), *cells, "" if p is None else shown_p(p).removeprefix("= ")]
        )
    ranks = [f"{summary[f'median_rank@{k}']['mean']:.0f}" for summary in summaries.values()]
    lines.append(["popularity rank", *ranks, ""])
    head = ["", *summaries, "p"]
    return _table(head, lines, head[1:])


def _example(table: pl.DataFrame) -> str:
    """The recommendations of one user, one item per row, with its reasons."""
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
    head = ["", "item", "score"] + (["because of"] if "share" in table.columns else [])
    user = _escaped(str(table["user_id"][0]))
    return f"<h3>User {user}</h3>" + _table(head, lines, ["", "score"])
