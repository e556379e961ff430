"""Plots of a run, as PNG files."""

import collections
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hlrcml_jax import storage


def _save(figure: Figure, path: pathlib.Path) -> None:
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
    storage.write(path, lambda scratch: figure.savefig(scratch, dpi=120, format="png"))


def plot_relations(
    point_Nx2: np.ndarray,
    variance_2: np.ndarray,
    shared_N: Sequence[frozenset[str]],
    path: pathlib.Path,
) -> None:
    """Relations in two dimensions, coloured by the rarest of their categories.

    Args:
      point_Nx2: principal components.
      variance_2: their shares of the variance.
      shared_N: categories of each relation.
      path: of the file.
    """
    count = collections.Counter(kind for shared in shared_N for kind in shared)
    kinds = [kind for kind, _ in count.most_common(9)]
    label_N = np.array(
        [min(shared & set(kinds), key=count.__getitem__, default="other") for shared in shared_N]
    )
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(
        xlabel=f"first component ({100 * variance_2[0]:.0f} % of the variance)",
        ylabel=f"second component ({100 * variance_2[1]:.0f} %)",
    )
    colours = matplotlib.colormaps["tab10"]
    for index, kind in enumerate([*kinds, "other"]):
        point_Px2 = point_Nx2[label_N == kind]
        if len(point_Px2):
            colour = "lightgrey" if kind == "other" else colours(index)
            label = kind.replace("$", r"\$")  # else it is taken for mathematics
            axes.scatter(*point_Px2.T, s=6, alpha=0.5, color=colour, label=label, linewidths=0)
    axes.legend(markerscale=3, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines["right"].set_visible(False)
    _save(figure, path)


def plot_learning_curve(
    log: Sequence[Mapping[str, float]], metric: str, best_epoch: int, path: pathlib.Path
) -> None:
    """Training loss and validation metric over epochs."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot(xlabel="epoch")
    left.set_ylabel("training loss of an example", color="tab:blue")
    trained = [record for record in log if "loss" in record]
    left.plot([r["epoch"] for r in trained], [r["loss"] for r in trained], color="tab:blue")
    validated = [record for record in log if metric in record]
    if validated:
        right = left.twinx()
        right.set_ylabel(f"validation {metric}", color="tab:orange")
        right.plot(
            [r["epoch"] for r in validated], [r[metric] for r in validated], color="tab:orange"
        )
        right.axvline(best_epoch, color="grey", linestyle=":")
        left.set_title(f"best epoch: {best_epoch}", fontsize=10)
    _save(figure, path)


def plot_popularity(count_I: np.ndarray, listed_I: np.ndarray, path: pathlib.Path) -> None:
    """Cumulated share of training interactions and of recommendations, by popularity rank.

    Args:
      count_I: training interactions of each item.
      listed_I: number of lists that include each item.
      path: of the file.
    """
    order_I = np.argsort(-count_I, kind="stable")
    rank_I = np.arange(1, len(count_I) + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="rank by popularity", ylabel="share of all, cumulated")
    for values_I, label in ((count_I, "training interactions"), (listed_I, "recommendations")):
        share_I = np.cumsum(values_I[order_I]) / max(values_I.sum(), 1)
        axes.plot(rank_I, share_I, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.spines["right"].set_visible(False)
    never = np.mean(listed_I == 0)
    axes.set_title(f"{100 * never:.0f} % of the catalogue is recommended to nobody", fontsize=10)
    axes.legend(loc="upper left", frameon=False)
    _save(figure, path)


def plot_groups(
    groups: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], path: pathlib.Path
) -> None:
    """Bar charts of a metric by group, one chart per grouping.

    Args:
      groups: {grouping: {group: value}}.
      labels: {grouping: label of the values' axis}.
      path: of the file.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    for index, (grouping, values) in enumerate(groups.items(), 1):
        ylabel = labels[grouping]
        axes = figure.add_subplot(1, len(groups), index, xlabel=grouping, ylabel=ylabel)
        axes.bar(list(values), list(values.values()), color="tab:blue")
        axes.tick_params(axis="x", labelsize=8)
        axes.spines["right"].set_visible(False)
    _save(figure, path)


def plot_memory(usage_M: np.ndarray, path: pathlib.Path) -> None:
    """Mean mixture weight of each memory slot in the relations of test interactions."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="slots of the memory, by use", ylabel="mean weight")
    axes.bar(np.arange(1, 1 + len(usage_M)), np.sort(usage_M)[::-1], color="tab:blue")
    axes.axhline(1 / len(usage_M), color="grey", linestyle=":")
    axes.set_title("dotted: uniform weights", fontsize=10)
    axes.spines["right"].set_visible(False)
    _save(figure, path)
