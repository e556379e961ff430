"""Items that were not in training are ranked by their categories."""

import re

import forked
import numpy as np
import polars as pl
import pytest
from conftest import ROOT

PROGRAM = ROOT / "experiments" / "cold_items.py"
VECTORS = ("any_shared", "mean_of_means", "ridge")
QUICK = {"model.name": "cml", "model.dim": 8, "train.epochs": 20, "optimizer.learning_rate": 0.01}
QUICK |= {"train.batch_size": 100, "negatives.candidates": 20}


@pytest.fixture(scope="module")
def program(load_program):
    return load_program(PROGRAM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as those of MovieLens; a user likes the items of one category."""
    folder = tmp_path_factory.mktemp("movies")
    rng = np.random.default_rng(0)
    user_E, item_E = np.divmod(rng.choice(60 * 200, 10_000, replace=False), 200)
    kept_E = (item_E < 160) | (rng.random(len(item_E)) < 0.3)
    user_E, item_E = user_E[kept_E], item_E[kept_E]
    likes_E = user_E % 4 == item_E % 4
    rows = {"userId": user_E, "movieId": item_E, "rating": np.where(likes_E, 5.0, 1.0)}
    pl.DataFrame(rows).write_csv(folder / "ratings.csv")
    genres = {"movieId": range(200), "title": "A", "genres": [f"g{n % 4}" for n in range(200)]}
    pl.DataFrame(genres).write_csv(folder / "movies.csv")
    return folder


def test_categories_that_are_the_taste_rank_held_out_items(folder, tmp_path):
    flags = [f"--set={name}={value}" for name, value in QUICK.items()]
    flags += ["--data=ml-latest-small", f"--path={folder}", "--threshold=4"]
    status, out, err = forked.run([*flags, f"--folder={tmp_path / 'runs'}"], {}, PROGRAM)
    assert status == 0, err
    rows = re.findall(r"│ (.*?) +┆ +([\d.]+) +┆ +([\d.]+) +│", out)
    ndcg = {name: float(value) for name, value, _ in rows}
    by_categories = [value for name, value in ndcg.items() if "mean" in name or name == "ridge"]
    assert len(by_categories) == len(VECTORS)
    assert min(by_categories) > ndcg["random order"] + 30
    assert ndcg["at random"] > 0


def test_vectors_of_categories_recover_what_each_adds(program):
    """Where an item is a sum of its categories, the regression finds it for other sums."""
    rng = np.random.default_rng(0)
    effect_GxF = rng.normal(size=(6, 8))
    has_IxG, has_NxG = (np.array(rng.random((n, 6)) < 0.4, float) for n in (40_000, 50))
    found_NxF = program.ridge(has_IxG, has_IxG @ effect_GxF, has_NxG)
    np.testing.assert_allclose(found_NxF, has_NxG @ effect_GxF, atol=0.3)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_a_category_alone(program, name):
    """Of disjoint categories every way gives nearly the mean of the items; of none, a number."""
    has_IxG = np.repeat(np.eye(3), 2000, axis=0)
    factor_IxF = np.random.default_rng(0).normal(size=(6000, 2)) + np.repeat(
        [[1.0, 2], [3, 4], [5, 6]], 2000, axis=0
    )
    has_NxG = np.array([[0.0, 1, 0], [0, 0, 0]])
    found_NxF = getattr(program, name)(has_IxG, factor_IxF, has_NxG)
    np.testing.assert_allclose(found_NxF[0], [3, 4], atol=0.1)
    assert np.isfinite(found_NxF).all()


@pytest.mark.parametrize(
    ("without", "flags", "sentence"),
    [
        ("movies.csv", (), "have no categories of items"),
        ("ratings.csv", (), "there is no ratings.csv in this folder"),
        ("", ("--data=movies",), "data.name='movies' is not in the catalogue"),
        ("", ("--threshold=6",), "no value reaches data.threshold=6"),
    ],
)
def test_mistakes_get_a_sentence(folder, tmp_path, without, flags, sentence):
    for file in folder.iterdir():
        if file.name != without:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    flags = ["--data=ml-latest-small", f"--path={tmp_path}", "--threshold=4", *flags]
    status, _, err = forked.run([*flags, f"--folder={tmp_path / 'runs'}"], {}, PROGRAM)
    assert status == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
