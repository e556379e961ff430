"""Searches for a config by successive halving of random trials.

python experiments/sweep.py --config=configs/quickstart.py --space=configs/space.py:model=hlr \\
  --folder=runs/sweep --trials=27 --epochs=4,12,36

All trials are trained for the first number of epochs, the best third of them for the second, and so
on; each trial has a workdir, and the same command resumes a sweep that was stopped. Trials are
compared by the config's early-stopping metric on validation, and test is never used. Leaves
`trials.csv` and, beside it, a plot of the values, and names the best trial, whose workdir is a
config too. `--trials=0` tries all combinations of lists, and `--each` every value on its own, and
no change. With `--minutes` no trial begins after that time:

python experiments/sweep.py --config=configs/best.py --set=data.path=own.csv \\
  --space=configs/space.py:search=recipe --each --epochs=200 --minutes=60 --folder=runs/tuned
python -m hlrcml_jax.main --config=runs/tuned/trial-003 --workdir=runs/mine

On a GPU, trials that differ only in the seed and in numbers such as learning rate, temperature and
the memory's radius (`build.HYPERPARAMETERS`) are trained side by side in one program.
"""

import itertools
import math
import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from absl import flags, logging

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices
from hlrcml_jax.errors import UserError, run_program
from hlrcml_jax.reporting.log import read_log
from hlrcml_jax.runs.experiment import fit_all

_CONFIG = flags.DEFINE_string(
    "config", None, "FILE:ARGUMENTS or workdir to start from.", required=True
)
_SPACE = flags.DEFINE_string("space", None, "FILE:ARGUMENTS of the keys to change.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Folder for trials and tables.", required=True)
_TRIALS = flags.DEFINE_integer(
    "trials", 27, "Number of trials; 0: all combinations of lists.", lower_bound=0
)
_EACH = flags.DEFINE_bool("each", False, "Change one key at a time instead, and once none.")
_EPOCHS = flags.DEFINE_list("epochs", ["4", "12", "36"], "Epochs after which trials are compared.")
_KEEP = flags.DEFINE_float("keep", 1 / 3, "Share of the trials that are trained further.", 0.0, 1.0)
_MINUTES = flags.DEFINE_float(
    "minutes", math.inf, "Minutes after which no further trial begins.", lower_bound=0.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the trials.")
_SIDE_BY_SIDE = flags.DEFINE_integer(
    "side_by_side",
    0,
    "Most trials trained in one program; 0: by the device.",
    lower_bound=0,
)
_ALLOW_CODE = flags.DEFINE_bool(
    "allow_code", False, "Import the custom code named in the config of a workdir you trust."
)
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of a config, for all trials.")


def draw(space: dict[str, list | tuple], rng: np.random.Generator) -> dict[str, object]:
    """One value for each key of a space."""
    values = {}
    for name, options in space.items():
        if isinstance(options, tuple):
            low, high = map(math.log, options)
            values[name] = float(f"{math.exp(rng.uniform(low, high)):.3g}")
        else:
            values[name] = options[rng.integers(len(options))]
    return values


def combine(space: dict[str, list]) -> list[dict[str, object]]:
    """All combinations of the values of a space.

    Raises:
      UserError: when it has a range.
    """
    ranges = [name for name, options in space.items() if isinstance(options, tuple)]
    if ranges:
        raise UserError(f"--trials=0 takes lists, and the space has a range of {ranges[0]}.")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def one_by_one(space: dict[str, list]) -> list[dict[str, object]]:
    """No change, and then each value of each key alone."""
    return [{}, *({name: value} for name, values in space.items() for value in values)]


def train(configs: list, workdirs: list[pathlib.Path]) -> list[float]:
    """Trains trials up to their configs' epochs; the best value of each on validation.

    Raises:
      UserError: when the metric is the loss.
    """
    metric = configs[0].early_stopping.metric
    if metric == "loss":
        raise UserError("early_stopping.metric=loss cannot compare trials; take a metric@k.")
    fit_all(configs, workdirs, _SIDE_BY_SIDE.value)
    logs = [read_log(workdir / "metrics.jsonl") for workdir in workdirs]
    return [
        max((line[metric] for line in log if metric in line), default=-math.inf) for log in logs
    ]


def search(
    base: dict[str, object],
    trials: list[dict],
    folder: pathlib.Path,
    epochs: list[int],
    keep: float,
    minutes: float = math.inf,
    at_once: int = 1,
) -> list[dict]:
    """Successive halving; one row per trial, the best first.

    No trial begins after the minutes, `at_once` of them together; those that never began have 0
    epochs.
    """
    started = time.monotonic()
    at_once = len(trials) if minutes == math.inf else at_once
    rows = [{"trial": number, "epochs": 0, "value": -math.inf} | values
            for number, values in enumerate(trials)]  # fmt: skip
    kept = rows
    for rung in epochs:
        changes = [trials[row["trial"]] | {"train.epochs": rung} for row in kept]
        configs = [config_lib.make_config(config_lib.changed(base, values)) for values in changes]
        workdirs = [folder / f"trial-{row['trial']:03d}" for row in kept]
        for start in range(0, len(kept), at_once):
            if time.monotonic() - started > 60 * minutes:
                break
            part = slice(start, start + at_once)
            values = train(configs[part], workdirs[part])
            for row, value in zip(kept[part], values, strict=True):
                row["value"], row["epochs"] = value, rung
        kept = sorted(kept, key=lambda row: -row["value"])[: max(1, round(len(kept) * keep))]
    return sorted(rows, key=lambda row: (-row["epochs"], -row["value"]))


def tabulate(rows: list[dict], each: bool) -> pl.DataFrame:
    """Rows of `search` with a column for each key, or with one for the only key that changes."""
    if each:
        names = ("trial", "epochs", "value")
        rows = [
            {name: row[name] for name in names}
            | {"change": " ".join(f"{key}={row[key]}" for key in row if key not in names)}
            for row in rows
        ]
    # A tuple has no form in CSV.
    texts = [
        {name: str(x) if isinstance(x, tuple) else x for name, x in row.items()} for row in rows
    ]
    return pl.DataFrame(texts, infer_schema_length=None)


def plot(table: pl.DataFrame, metric: str, path: pathlib.Path) -> None:
    """The value of each trial over each key; trials with more epochs are darker."""
    names = table.columns[3:]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3 * len(names), 3), sharey=True, squeeze=False, layout="constrained"
    )
    shade = np.array([table["epochs"] / table["epochs"].max()]).ravel()
    for axis, name in zip(axes[0], names, strict=True):
        axis.scatter(table[name].to_list(), 100 * table["value"], c=shade, cmap="Greys", vmin=-0.3)
        if table[name].dtype == pl.Float64:
            axis.set_xscale("log")
        axis.set_xlabel(name)
    axes[0, 0].set_ylabel(f"{metric} on validation, %")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(_FOLDER.value)
    changes = dict(map(config_files.parse_change, _SET.value))
    base = config_lib.flatten(config_files.read(_CONFIG.value, changes, _ALLOW_CODE.value))
    space = config_files.call(_SPACE.value, "get_space")
    rng = np.random.default_rng(_SEED.value)
    if _EACH.value:
        trials = one_by_one(space)
    else:
        trials = [draw(space, rng) for _ in range(_TRIALS.value)] or combine(space)
    epochs = [int(rung) for rung in _EPOCHS.value]
    at_once = _SIDE_BY_SIDE.value or devices.side_by_side()
    rows = search(base, trials, folder, epochs, _KEEP.value, _MINUTES.value, at_once)
    table = tabulate(rows, _EACH.value)
    table.write_csv(folder / "trials.csv")
    if not _EACH.value:
        plot(table, base["early_stopping.metric"], folder / "trials.png")
    shown = {"tbl_rows": 30, "tbl_cols": -1, "tbl_width_chars": -1}
    with pl.Config(**shown, tbl_hide_column_data_types=True):
        print(table)
    best = max(rows, key=lambda row: row["value"])
    print(f"The best on validation: --config={folder}/trial-{best['trial']:03d}")


if __name__ == "__main__":
    run_program(main)
