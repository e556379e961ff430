"""Validation while training: does a run keep what it has reached?

python experiments/curves.py --output=curves.png runs/ml-100k/hlr-r-1 runs/steam/hlr-r-1

Plots the early-stopping metric of each workdir over its epochs, relative to the best value, and
tabulates the best epoch and the lowest value within 30 epochs after it. Where the gate of the
relation changes (`model.gates`), training goes on from the best epoch so far.
"""

import pathlib

import matplotlib.pyplot as plt
import polars as pl
from absl import app, flags

from hlrcml_jax import config_files
from hlrcml_jax.errors import UserError, run_program
from hlrcml_jax.reporting.log import read_log

WINDOW = 30  # epochs

_OUTPUT = flags.DEFINE_string("output", "curves.png", "The plot.")


def curve(workdir: pathlib.Path) -> pl.DataFrame:
    """`epoch`, `gate` and `value` of each validation of a run.

    Raises:
      UserError: when there is none.
    """
    saved = config_files.read_workdir(workdir)
    metric = saved["config"]["early_stopping.metric"] if saved else ""
    rows = [
        {"epoch": line["epoch"], "gate": line.get("gate", 1.0), "value": 100 * line[metric]}
        for line in read_log(workdir / "metrics.jsonl")
        if metric in line
    ]
    if not rows:
        raise UserError(f"{workdir}: there is no validation of a metric@k in metrics.jsonl.")
    return pl.DataFrame(rows)


def summary(name: str, points: pl.DataFrame) -> dict[str, object]:
    """The best validation of a run, and what follows it."""
    best = points.row(points["value"].arg_max(), named=True)
    after = points.filter(pl.col("epoch").is_between(best["epoch"], best["epoch"] + WINDOW))
    return {
        "run": name,
        "best": best["value"],
        "epoch": best["epoch"],
        "gate": best["gate"],
        "last epoch": points["epoch"].max(),
        f"lowest within {WINDOW} epochs, %": 100 * after["value"].min() / best["value"],
    }


def plot(points_by_run: dict[str, pl.DataFrame], path: pathlib.Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, points in points_by_run.items():
        share = 100 * points["value"] / points["value"].max()
        (line,) = axis.plot(points["epoch"], share, label=name, linewidth=1)
        opened = points["gate"].diff().fill_null(0) != 0
        axis.plot(points["epoch"].filter(opened), share.filter(opened), "o", color=line.get_color())
    axis.axhline(90, color="grey", linewidth=0.5)
    axis.set_ylim(50, 101)
    axis.set_xlabel("epoch; dots: the gate opens further")
    axis.set_ylabel("validation, % of the best")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    if not arguments[1:]:
        raise app.UsageError("Give one or more workdirs.")
    points_by_run = {name: curve(pathlib.Path(name)) for name in arguments[1:]}
    plot(points_by_run, pathlib.Path(_OUTPUT.value))
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=-1, fmt_str_lengths=80):
        print(pl.DataFrame([summary(*each) for each in points_by_run.items()]))


if __name__ == "__main__":
    run_program(main)
