"""Cold items: vectors from the categories of items that were not in training.

python experiments/cold_items.py --data=ml-100k --threshold=4 --folder=runs/cold-items

A fifth of the interactions is for test, and a fifth of the items is held out from training. The
held-out items are ranked for the users that have some of them in test: by vectors from their
categories, and by a model that is trained with them. Then training on all items starts from such
vectors, beside a random start: on test as a whole, and among the items of few interactions alone.
"""

import pathlib

import numpy as np
import polars as pl
from absl import flags, logging

import hlrcml_jax as hlr
from hlrcml_jax import config_files, schema
from hlrcml_jax.data import downloads, readers
from hlrcml_jax.data.dataset import places
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.data.prepare import cache_folder
from hlrcml_jax.errors import UserError, run_program
from hlrcml_jax.ranking import metrics

SHARE = 0.2  # of the interactions for test, and of the items that are held out
K = 10
FEW = 5  # interactions in training
RIDGE = 100.0  # items

_DATA = flags.DEFINE_string("data", "ml-100k", "A public data set with categories.")
_PATH = flags.DEFINE_string("path", None, "Folder that has its files already.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Least value of a positive.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder of the runs.", required=True)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the draws and the runs.", lower_bound=0)
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the config.")


def read() -> tuple[pl.DataFrame, dict[str, list[str]]]:
    """(`user` and `item` of the positives as text, categories of each item)."""
    folder = pathlib.Path(_PATH.value) if _PATH.value else None
    files = downloads.locate(_DATA.value, folder, cache_folder(schema.Data().cache_dir))
    if files.items is None or not files.items.categories:
        raise UserError(f"{files.interactions.parent}: its files have no categories of items.")
    source = files.interactions, files.format, Layout(), _THRESHOLD.value
    rows = readers.read_interactions(*source, ("user", "item", "value"))
    rows = rows.select(pl.col("user", "item").cast(pl.String))
    items = readers.read_items(files.items).drop_nulls("categories")
    return rows.unique().sort("user", "item"), dict(items.select("id", "categories").iter_rows())


def indicators(items: pl.Series, categories: dict[str, list[str]]) -> np.ndarray:
    """1 where an item has a category, (I, G)."""
    names = sorted({name for each in categories.values() for name in each})
    return np.array([[name in categories.get(item, ()) for name in names] for item in items], float)


def any_shared(has_IxG: np.ndarray, factor_IxF: np.ndarray, has_NxG: np.ndarray) -> np.ndarray:
    """(N, F): the mean over the items that share a category."""
    shares_NxI = has_NxG @ has_IxG.T > 0
    return shares_NxI @ factor_IxF / np.maximum(shares_NxI.sum(1, keepdims=True), 1)


def mean_of_means(has_IxG: np.ndarray, factor_IxF: np.ndarray, has_NxG: np.ndarray) -> np.ndarray:
    """(N, F): the mean over the categories of the mean over their items."""
    mean_GxF = has_IxG.T @ factor_IxF / np.maximum(has_IxG.sum(0), 1)[:, None]
    return has_NxG @ mean_GxF / np.maximum(has_NxG.sum(1, keepdims=True), 1)


def ridge(has_IxG: np.ndarray, factor_IxF: np.ndarray, has_NxG: np.ndarray) -> np.ndarray:
    """(N, F): the mean of all items plus an effect of each category, by ridge regression."""
    mean_G, mean_F = has_IxG.mean(axis=0), factor_IxF.mean(axis=0)
    other_IxG = has_IxG - mean_G
    gram_GxG = other_IxG.T @ other_IxG + RIDGE * np.eye(len(mean_G))
    effect_GxF = np.linalg.solve(gram_GxG, other_IxG.T @ factor_IxF)
    return mean_F + (has_NxG - mean_G) @ effect_GxF


def having(rows: pl.DataFrame, users: pl.Series, items: pl.Series) -> np.ndarray:
    """True where a user has an item, (U, N)."""
    index = [places(users, rows["user"]).alias("user"), places(items, rows["item"]).alias("item")]
    user_R, item_R = pl.DataFrame(index).drop_nulls().to_numpy().T
    has_UxN = np.zeros((len(users), len(items)), bool)
    has_UxN[user_R, item_R] = True
    return has_UxN


def factors(recommender: hlr.Recommender, items: pl.Series) -> np.ndarray:
    """(N, F) of some items."""
    table = recommender.item_factors().cast({"item_id": pl.String})
    return table["factors"].to_numpy()[places(table["item_id"], items).to_numpy()]


def quality(score_UxN: np.ndarray, known_UxN: np.ndarray, wanted_UxN: np.ndarray) -> dict:
    """Metrics of the lists of the items that a user is not known to have, in percent."""
    order_UxN = np.argsort(np.where(known_UxN, np.inf, -score_UxN), axis=1, kind="stable")
    hits_UxK = np.take_along_axis(wanted_UxN, order_UxN[:, :K], axis=1).astype(float)
    ranked = {"ndcg": metrics.ndcg, "recall": metrics.recall}
    count_U = wanted_UxN.sum(axis=1)
    return {
        f"{name}@{K}": 100 * float(metric(hits_UxK, count_U, K).mean())
        for name, metric in ranked.items()
    }


def asked(recommender: hlr.Recommender, train: pl.DataFrame, test: pl.DataFrame, items: pl.Series):
    """(users with some of the items in test, (U, N) of those in their history, and in test)."""
    users = recommender.users.cast(pl.String)
    wanted_UxN = having(test, users, items)
    some_U = wanted_UxN.any(axis=1)
    users = users.filter(pl.Series(some_U))
    return users, having(train, users, items), wanted_UxN[some_U]


def of_cold_items(without, whole, train, test, items, categories) -> dict[str, dict[str, float]]:
    """Quality of each way of ranking the held-out items."""
    users, known_UxN, wanted_UxN = asked(without, train, test, items)
    others = without.items.cast(pl.String)
    has_IxG, has_NxG = indicators(others, categories), indicators(items, categories)
    item_IxF = factors(without, others)
    user_UxF, whole_UxF = (
        each.user_factors(users)["factors"].to_numpy() for each in (without, whole)
    )
    count_UxG = having(train, users, others) @ has_IxG
    unit_NxG = has_NxG / np.maximum(np.sqrt(has_NxG.sum(axis=1, keepdims=True)), 1)
    count_N = having(train, whole.users.cast(pl.String), items).sum(axis=0)
    scores = {
        "random order": np.random.default_rng(_SEED.value).random(known_UxN.shape),
        "categories of the history": count_UxG @ unit_NxG.T,
        "mean of the items that share one": user_UxF @ any_shared(has_IxG, item_IxF, has_NxG).T,
        "mean of the means": user_UxF @ mean_of_means(has_IxG, item_IxF, has_NxG).T,
        "ridge": user_UxF @ ridge(has_IxG, item_IxF, has_NxG).T,
        "their popularity": np.tile(count_N, (len(users), 1)),
        "trained with them": whole_UxF @ factors(whole, items).T,
    }
    return {name: quality(score, known_UxN, wanted_UxN) for name, score in scores.items()}


def of_all_items(recommender, train, test, few) -> dict[str, float]:
    """NDCG of all items, and of those with few interactions among themselves."""
    ndcg = f"ndcg@{K}"
    found = recommender.evaluate(test).filter(pl.col("metric") == ndcg)
    users, known_UxN, wanted_UxN = asked(recommender, train, test, few)
    score_UxN = recommender.user_factors(users)["factors"].to_numpy() @ factors(recommender, few).T
    return {
        "all items": 100 * found.filter(pl.col("model") != "popularity")["mean"][0],
        f"those of at most {FEW} interactions": quality(score_UxN, known_UxN, wanted_UxN)[ndcg],
    }


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    rows, categories = read()
    is_test = np.random.default_rng(_SEED.value).random(len(rows)) < SHARE
    train, test = rows.filter(~is_test), rows.filter(is_test)
    items = train["item"].unique().sort()
    # In random order, in which items of the same score stay.
    cold = items.sample(fraction=SHARE, shuffle=True, seed=_SEED.value)
    few = train.group_by("item").len().filter(pl.col("len") <= FEW)["item"].sort()
    for name, part in ("held out", cold), (f"of at most {FEW} interactions", few):
        if not test["item"].is_in(part.implode()).any():
            raise UserError(f"{_DATA.value}: no interaction in test is of an item {name}.")
    folder = pathlib.Path(_FOLDER.value)
    values = dict(map(config_files.parse_change, _SET.value)) | {"seed": _SEED.value}

    def fit(name, part, **changes):
        return hlr.fit(part, test=0, workdir=folder / name, **values, **changes)

    without = fit("without", train.filter(~pl.col("item").is_in(cold.implode())))
    whole = fit("whole", train)
    of_cold = of_cold_items(without, whole, train, test, cold, categories)
    has_IxG = indicators(items, categories)
    vectors = ridge(has_IxG, factors(whole, items), has_IxG)[:, :-1]  # without biases
    np.savez(folder / "start.npz", ids=items.to_list(), vectors=vectors)
    started = fit("started", train, pretrained__item_vectors=str(folder / "start.npz"))
    of_all = {"at random": whole, "from categories": started}
    of_all = {name: of_all_items(each, train, test, few) for name, each in of_all.items()}
    for title, found in (("held-out items", of_cold), ("start", of_all)):
        table = pl.DataFrame([{title: name} | values for name, values in found.items()])
        with pl.Config(tbl_rows=-1, float_precision=2, fmt_str_lengths=80):
            print(table)


if __name__ == "__main__":
    run_program(main)
