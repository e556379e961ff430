"""Lists of all users of a file, those without training included."""

import numpy as np
import polars as pl
import pytest

import hlrcml_jax as hlr
from hlrcml_jax import config_files, frames
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.runs import lists
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.workdir import open_run

QUICK = {"train__epochs": 2, "train__batch_size": 100, "model__dim": 8, "negatives__candidates": 20}
LEAST = 25  # interactions of a user that is trained


@pytest.fixture(scope="module")
def table():
    """Text ids; half of the users have few items, one only an item that nobody else has."""
    rows = synthetic.generate(60, 40, 2400, seed=1).select("user", "item").unique().sort("user")
    rows = rows.filter((pl.col("user") % 2 == 0) | (pl.int_range(pl.len()).over("user") < 9))
    rows = rows.select(user=pl.format("u{}", "user"), item=pl.format("i{}", "item"))
    return pl.concat([rows, pl.DataFrame({"user": ["stranger"], "item": ["unseen"]})])


@pytest.fixture(scope="module")
def workdir(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    table.write_csv(folder / "plays.csv")
    hlr.fit(
        folder / "plays.csv",
        workdir=folder / "run",
        data__min_per_user=LEAST,
        **QUICK,
    )
    return folder / "run"


def write(workdir, mode=lists.write_recommendations, **changes):
    named = {f"recommend.{name}": value for name, value in changes.items()}
    config = config_files.from_workdir(workdir, named)
    return pl.read_parquet(mode(best_checkpoint(open_run(config, workdir))))


def test_everyone_in_the_file_gets_a_list_and_its_basis_is_said(table, workdir):
    recommender, path = hlr.load(workdir), str(workdir.parent / "plays.csv")
    everyone = write(workdir, histories=path, unknown="popular", k=4)
    assert set(everyone["user_id"]) == set(table["user"])
    assert everyone.group_by("user_id").len()["len"].unique().to_list() == [4]
    had = table.rename({"user": "user_id", "item": "item_id"})
    assert everyone.join(had, on=["user_id", "item_id"]).filter(basis="history").is_empty()
    basis = dict(everyone.select("user_id", "basis").unique().rows())
    trained = set(recommender.users)
    assert {user for user in basis if basis[user] == "trained"} == trained
    assert {user for user in basis if basis[user] == "popular"} == {"stranger"}
    short = {user for user in basis if basis[user] == "history"}
    assert short == set(table["user"]) - trained - {"stranger"}
    assert len(short) > 20
    # As the API ranks them.
    known = had.filter(pl.col("user_id").is_in(short) & pl.col("item_id").is_in(recommender.items))
    of_api = recommender.recommend_new(known, k=4).sort("user_id", "rank")
    of_file = everyone.filter(basis="history").sort("user_id", "rank")
    assert of_file["item_id"].to_list() == of_api["item_id"].to_list()
    np.testing.assert_allclose(of_file["score"], of_api["score"], rtol=1e-5)


def test_reasons_of_a_new_user_are_items_of_its_history(table, workdir):
    path = str(workdir.parent / "plays.csv")
    known = hlr.load(workdir).users[0]
    users = f"u1,{known},stranger,nobody"
    found = write(workdir, lists.write_reasons, histories=path, users=users, unknown="popular", k=3)
    order = found["user_id"].unique(maintain_order=True)
    assert order.to_list() == [known, "u1", "stranger", "nobody"]
    reasons = found.filter(basis="history")["reason_item_id"].drop_nulls()
    assert len(reasons) > 0
    assert set(reasons) <= set(table.filter(user="u1")["item"])
    assert found.filter(basis="popular")["share"].null_count() == 6


def test_users_without_reasons_may_be_many_or_all(workdir, monkeypatch):
    monkeypatch.setattr(frames, "USERS_PER_PART", 2)
    known = hlr.load(workdir).users[:2].to_list()
    users = ",".join([*known, *(f"new{n}" for n in range(5))])
    found = write(workdir, lists.write_reasons, users=users, unknown="popular", k=2)
    assert found["user_id"].n_unique() == 7
    alone = write(workdir, lists.write_reasons, users="new1", unknown="popular", k=2)
    assert alone["score"].null_count() == 2
    assert not list(workdir.glob(".parts-*"))


def test_text_ids_in_a_file_for_integer_ids_get_a_sentence(table, workdir, tmp_path):
    numbers = table.filter(pl.col("user") != "stranger").with_columns(
        user=pl.col("user").str.slice(1).cast(pl.Int64)
    )
    hlr.fit(numbers, "popularity", workdir=tmp_path / "run", test=0, validation=0)
    table.write_csv(tmp_path / "texts.csv")
    with pytest.raises(UserError, match="texts.csv: its user ids are texts"):
        write(tmp_path / "run", histories=str(tmp_path / "texts.csv"))
    with pytest.raises(UserError, match="there can be no user 'u7'"):
        write(tmp_path / "run", users="u7", unknown="popular")
    found = write(tmp_path / "run", users="7777", unknown="popular", k=3)
    assert found["user_id"].to_list() == [7777] * 3
    with pytest.raises(UserError, match="Popularity has no attention"):
        write(tmp_path / "run", lists.write_reasons, users="7777", unknown="popular")


@pytest.mark.parametrize("unknown", ["error", "skip"])
def test_what_is_unknown_is_an_error_or_left_out(workdir, unknown, capsys):
    known = hlr.load(workdir).users[0]
    if unknown == "error":
        with pytest.raises(UserError, match=r"no user 'nobody' .* set recommend.unknown=skip"):
            write(workdir, users=f"{known},nobody")
        return
    found = write(workdir, users=f"nobody,{known}", unknown=unknown)
    assert found["user_id"].unique().to_list() == [known]
    assert "not in the data, as user 'nobody': 1, who get no list" in capsys.readouterr().err
