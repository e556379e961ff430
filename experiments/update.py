"""A run that is continued with tomorrow's interactions, beside one that is trained anew.

python experiments/update.py --data=ml-100k --threshold=4 --folder=runs/update

By time within each user, the last tenth of the interactions is to be predicted, the tenth before it
is new. The tables have NDCG@10 and the seconds of the model without the new interactions, of its
update, and of one that is trained on all.
"""

import pathlib
import time

import polars as pl
from absl import flags, logging

import hlrcml_jax as hlr
from hlrcml_jax import schema
from hlrcml_jax.data import downloads, readers
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.data.prepare import cache_folder
from hlrcml_jax.errors import run_program

_DATA = flags.DEFINE_string("data", "ml-100k", "A public data set with times, or a file.")
_PATH = flags.DEFINE_string("path", None, "Folder that has the files of --data already.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Least value of a positive.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder of the runs.", required=True)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the runs.")
_EPOCHS = flags.DEFINE_list("epochs", ["4"], "Epochs of an update, to be compared.")
_PARTS = flags.DEFINE_integer("parts", 10, "Parts of a user's time: one new, one to predict.")


def read() -> pl.DataFrame:
    """`user`, `item` and `time` of the positives."""
    layout = Layout(",", True, ("", "", "", ""))
    if _DATA.value not in downloads.CATALOG:
        path, format = pathlib.Path(_DATA.value), "auto"
    else:
        folder = pathlib.Path(_PATH.value) if _PATH.value else None
        files = downloads.locate(_DATA.value, folder, cache_folder(schema.Data().cache_dir))
        path, format = files.interactions, files.format
    return readers.read_interactions(path, format, layout, _THRESHOLD.value)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    rank = pl.col("time").rank("ordinal").over("user")
    part = (_PARTS.value * (rank - 1) / pl.len().over("user")).floor()
    table = read().with_columns(part=part).select("user", "item", "part")
    last = _PARTS.value - 1
    old, new, test = (
        table.filter(where).select("user", "item")
        for where in (pl.col("part") < last - 1, pl.col("part") == last - 1, pl.col("part") == last)
    )
    folder, rows = pathlib.Path(_FOLDER.value), []

    def measure(name, make):
        started = time.perf_counter()
        recommender = make(folder / name)
        seconds = time.perf_counter() - started
        found = recommender.evaluate(test).filter(pl.col("metric") == "ndcg@10")
        mean = found.filter(pl.col("model") != "popularity")["mean"][0]
        rows.append({"model": name, "ndcg@10, %": 100 * mean, "seconds": seconds})
        return recommender

    def fit(interactions):
        return lambda workdir: hlr.fit(interactions, test=0, workdir=workdir, seed=_SEED.value)

    yesterday = measure("yesterday", fit(old))
    for n in map(int, _EPOCHS.value):
        measure(f"update-{n}", lambda workdir, n=n: yesterday.update(new, workdir, train__epochs=n))
    measure("anew", fit(pl.concat([old, new])))
    with pl.Config(tbl_rows=-1, float_precision=2):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    run_program(main)
