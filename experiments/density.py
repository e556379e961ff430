"""Models on shares of the training data: does the relation help where data is sparse?

python experiments/density.py --configs=configs/compare.py:data=ml-100k,loss=best \
  --models=hlr-r,cml --folder=runs/density

Each share of the training interactions (`data.split.keep`) is a comparison of its own, as
`paper_tables.py` makes them, with the same validation and test; finished runs are not repeated.
Leaves `density.csv` and `density.png` in the folder: the first metric of every model over the
share, and for each of --ours the p-value of its difference from the best of the others.
"""

import pathlib

import matplotlib.pyplot as plt
import paper_tables
import polars as pl
from absl import flags, logging

from hlrcml_jax import config_files
from hlrcml_jax.errors import run_program

_SHARES = flags.DEFINE_list("shares", ["1", "0.5", "0.25", "0.1"], "Shares of the training part.")
FLAGS = flags.FLAGS


def compare(share: float, folder: pathlib.Path, metrics: list[str], changes) -> pl.DataFrame:
    """The table of one share."""
    seeds = [int(seed) for seed in FLAGS.seeds]
    changes = changes | {"data.split.keep": share}
    paper_tables.run_all(FLAGS.configs, FLAGS.models, seeds, folder, changes)
    results = paper_tables.load_results(
        FLAGS.configs, FLAGS.models, seeds, folder, changes, metrics
    )
    table = paper_tables.tabulate(results, metrics, FLAGS.ours, FLAGS.against)
    return table.insert_column(0, pl.lit(share).alias("share"))


def plot(table: pl.DataFrame, metric: str, path: pathlib.Path) -> None:
    """The metric of every model over the share of training, with one deviation to each side."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for (model,), rows in table.group_by("model", maintain_order=True):
        share = 100 * rows["share"]
        axis.errorbar(share, rows[metric], rows[f"{metric} sd"], label=model, capsize=3, marker="o")
    axis.set_xscale("log")
    axis.set_xlabel("share of the training interactions, %")
    axis.set_ylabel(f"{metric}, %")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(FLAGS.folder)
    metrics = [name if "@" in name else f"{name}@{FLAGS.k}" for name in FLAGS.metrics]
    changes = dict(map(config_files.parse_change, FLAGS.set))
    table = pl.concat(
        [compare(float(share), folder / share, metrics, changes) for share in _SHARES.value],
        how="diagonal",
    )
    table.write_csv(folder / "density.csv")
    plot(table, metrics[0], folder / "density.png")
    with pl.Config(tbl_rows=-1, tbl_cols=-1):
        print(table)


if __name__ == "__main__":
    run_program(main)
