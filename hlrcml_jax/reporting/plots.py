"""Plots of a run, as SVG that fits a light and a dark page."""

import collections
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from hlrcml_jax.errors import printable
from hlrcml_jax.ranking.groups import Groups

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
# Both have a contrast of at least 3 with white and with nearly black.
BLUE, GREY = "#2f7fd1", "#858b94"
BLACK = "#000000"  # is drawn in the colour of the page's text
WIDTH = 3.8  # inches: about that of a phone, so that text is not scaled down there
RC_PARAMS = {
    "axes.prop_cycle": cycler(color=[BLUE, GREY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.parse_math": False,  # titles and categories may have $
}
# Whoever opens the file alone sees it in the colours of the system.
ALONE = "svg:root { color-scheme: light dark; color: CanvasText; }"

_styled = style.context(["default", RC_PARAMS])  # also over a user's matplotlibrc


def svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element without references to outside, the same for the same figure.

    Args:
      figure: of this module.
      name: makes the element's ids differ from those of other figures on a page.
      label: describes the picture to who does not see it.
    """
    buffer = io.StringIO()
    with style.context(["default", RC_PARAMS, {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts are used
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _adapt(element)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    root.attrib |= {"xmlns": SVG, "role": "img", "aria-label": _text(label)}
    root.set("fill", "currentColor")  # of text
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element) -> None:
    """Takes the colour of the page, and leaves out ids that are not hashed."""
    element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    if "style" in element.attrib:
        element.set("style", element.attrib["style"].replace(BLACK, "currentColor"))
    if element.tag == "g":
        element.attrib.pop("id", None)
    if HREF in element.attrib:
        element.set("href", element.attrib.pop(HREF))
    if element.tag == "style":  # matplotlib's would be that of the whole page
        element.text = ALONE


def _text(text: str) -> str:
    """A text of the data without what XML cannot hold."""
    return re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", printable(text))


@_styled
def plot_relations(
    point_Nx2: np.ndarray, variance_2: np.ndarray, shared_N: Sequence[frozenset[str]]
) -> Figure:
    """Relations in two dimensions, coloured by the rarest of their categories.

    Args:
      point_Nx2: principal components.
      variance_2: their shares of the variance.
      shared_N: categories of each relation.
    """
    count = collections.Counter(kind for shared in shared_N for kind in shared)
    kinds = [kind for kind, _ in count.most_common(9)]
    label_N = np.array(
        [min(shared & set(kinds), key=count.__getitem__, default="other") for shared in shared_N]
    )
    figure = Figure(figsize=(2 * WIDTH, 1.4 * WIDTH))
    axes = figure.add_subplot(
        xlabel=f"first component ({100 * variance_2[0]:.0f} % of the variance)",
        ylabel=f"second component ({100 * variance_2[1]:.0f} %)",
    )
    tab10 = matplotlib.colormaps["tab10"]
    colours = [tab10(index) for index in range(tab10.N) if index != 7]  # which is grey
    labels = []
    for index, kind in enumerate([*kinds, "other"]):
        point_Px2 = point_Nx2[label_N == kind]
        if len(point_Px2):
            colour = GREY if kind == "other" else colours[index]
            points = {"s": 6, "alpha": 0.7, "linewidths": 0, "rasterized": True}  # are thousands
            axes.scatter(*point_Px2.T, color=colour, label=str(index), **points)
            labels.append(_text(kind))
    legend = axes.legend(markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    # A label that begins with _ would be left out.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
    return figure


@_styled
def plot_learning_curve(log: Sequence[Mapping[str, float]], metric: str, best_epoch: int) -> Figure:
    """Training loss and validation metric over epochs, one above the other.

    Args:
      log: records of `metrics.jsonl`.
      metric: its name on validation.
      best_epoch: is marked in both.
    """
    labels = {"loss": "training loss", metric: f"validation {metric}"}
    labels = {name: label for name, label in labels.items() if any(name in r for r in log)}
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * len(labels)))
    panels = figure.subplots(len(labels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        point_Nx2 = np.array([(record["epoch"], record[name]) for record in log if name in record])
        axes.plot(*point_Nx2.T, marker=".")
        axes.axvline(best_epoch, color=GREY, linestyle=":")
        axes.set_ylabel(label)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@_styled
def plot_popularity(count_I: np.ndarray, listed: Mapping[str, np.ndarray]) -> Figure:
    """Cumulated share of training interactions and of recommendations, by popularity rank.

    Args:
      count_I: training interactions of each item.
      listed: by model, the number of lists that include each item, (I,).
    """
    order_I = np.argsort(-count_I, kind="stable")
    rank_I = np.arange(1, len(count_I) + 1)
    figure = Figure(figsize=(WIDTH, 2.8))
    axes = figure.add_subplot(xlabel="popularity rank of the item", ylabel="cumulated share")

    def add(value_I, **look):
        share_I = np.cumsum(value_I[order_I]) / max(value_I.sum(), 1)
        axes.plot(rank_I, share_I, **look)

    for model, listed_I in listed.items():
        add(listed_I, label=f"recommended by {_text(model)}")
    add(count_I, label="training interactions", color=BLACK, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper left")
    return figure


@_styled
def plot_groups(panels: Sequence[tuple[str, str, Mapping[str, Groups]]]) -> Figure:
    """Bar charts of a metric by group, one below the other, with confidence intervals.

    Args:
      panels: of each chart, (what the groups are, what the values are, the values by model).
    """
    figure = Figure(figsize=(WIDTH, 0.3 + 2 * len(panels)))
    charts = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (grouping, values, by_model) in zip(charts, panels, strict=True):
        axes.set(xlabel=grouping, ylabel=values)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        _add_bars(axes, by_model)
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _add_bars(axes: Axes, by_model: Mapping[str, Groups]) -> None:
    """The bars of the models side by side."""
    width = 0.8 / len(by_model)
    for index, (model, groups) in enumerate(by_model.items()):
        place_G = np.arange(len(groups.names)) + width * (index - (len(by_model) - 1) / 2)
        error_2xG = np.abs([groups.mean_G - groups.low_G, groups.high_G - groups.mean_G])
        axes.bar(place_G, groups.mean_G, width, yerr=error_2xG, capsize=2, label=_text(model))
    names = next(iter(by_model.values())).names
    axes.set_xticks(range(len(names)), names)


@_styled
def plot_memory(usage_M: np.ndarray) -> Figure:
    """Mean mixture weight of each memory slot in the relations of test interactions."""
    figure = Figure(figsize=(WIDTH, 2.8))
    axes = figure.add_subplot(xlabel="memory slots, by use", ylabel="mean weight")
    axes.bar(np.arange(1, 1 + len(usage_M)), np.sort(usage_M)[::-1])
    axes.axhline(1 / len(usage_M), color=BLACK, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
