"""Tomorrow's interactions on top of a trained run."""

import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

import hlrcml_jax as hlr
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.training.step import apply_gradients, init_state
from hlrcml_jax.training.warm_start import carried_over

QUICK = {"train__epochs": 2, "train__batch_size": 100, "model__dim": 8, "negatives__candidates": 20}


@pytest.fixture(scope="module")
def table():
    """Interactions; the ids are no numbers."""
    rows = (
        synthetic.generate(60, 40, 2400, seed=1).select("user", "item").unique(maintain_order=True)
    )
    return rows.select(user=pl.format("u{}", "user"), item=pl.format("i{}", "item"))


@pytest.fixture(scope="module")
def days(table):
    """(yesterday's rows, today's): of half of the users, and of all; some items are new."""
    is_new = pl.col("user").is_in(["u7", "u9"]) | pl.col("item").is_in(["i3", "i20"])
    old = table.filter(~is_new)[:-100]
    return old, table.join(old, on=["user", "item"], how="anti")


@pytest.fixture(scope="module")
def yesterday(days):
    return hlr.fit(days[0], test=0, **QUICK)


def test_new_users_and_items_come_at_the_end_and_nothing_is_forgotten(table, days, yesterday):
    old, new = days
    before = yesterday.recommend()
    today = yesterday.update(pl.concat([new, old[:50]]), train__epochs=2)
    n_users, n_items = len(yesterday.users), len(yesterday.items)
    assert today.users[:n_users].equals(yesterday.users)
    assert set(today.users[n_users:]) == {"u7", "u9"}
    assert today.items[:n_items].equals(yesterday.items)
    assert set(today.items[n_items:]) == {"i3", "i20"}
    known = today.history().select(user="user_id", item="item_id")
    assert known.sort("user", "item").equals(table.sort("user", "item"))
    assert today.recommend("u7").height == 10
    assert yesterday.recommend().equals(before)
    held_out = pl.DataFrame({"user": ["u7"] * 2, "item": table["item"][:2]})
    with pytest.raises(UserError, match="none of the interactions is a new one"):
        today.evaluate(held_out.join(table, on=["user", "item"]))


def test_it_starts_where_yesterday_ended(days, yesterday):
    """With a rate of nearly nothing the relation of each pair and the vectors are yesterday's."""
    today = yesterday.update(
        days[1].filter(pl.col("user") == "u7"), train__epochs=1, optimizer__learning_rate=1e-12
    )
    items = yesterday.items.to_list()
    ours, theirs = (each.similar_items(items, k=5) for each in (today, yesterday))
    ours = ours.filter(pl.col("item_id").is_in(items))
    both = ours.join(theirs, on=["to_item_id", "item_id"], suffix="_before")
    assert len(both) > 0.9 * len(theirs)
    np.testing.assert_allclose(both["score"], both["score_before"], atol=1e-5)
    users = [user for user in yesterday.users if user != "u7"]
    found, was = (each.scores(users, items)["score"] for each in (today, yesterday))
    np.testing.assert_allclose(found, was, atol=1e-4)


def test_moments_go_with_their_rows_and_a_schedule_begins_anew():
    def state(rows, value, optimizer):
        params = {"users": jnp.full((rows, 2), value), "model": {"memory": jnp.full((3, 2), value)}}
        state = init_state(params, optimizer)
        moments = optax.tree_utils.tree_map_params(
            optimizer, lambda moment: moment + value, state.opt_state
        )
        return state.replace(opt_state=moments)

    before = state(3, 1.0, optax.adam(optax.exponential_decay(0.1, 10, 0.5)))
    before = apply_gradients(
        before, optax.adam(optax.exponential_decay(0.1, 10, 0.5)), before.params
    )
    found = carried_over(state(5, 9.0, optax.chain(optax.clip(1.0), optax.adam(0.1))), before)
    adam, was = (optax.tree_utils.tree_get(each.opt_state, "mu") for each in (found, before))
    np.testing.assert_array_equal(adam["users"][:3], was["users"])
    np.testing.assert_array_equal(adam["users"][3:], np.full((2, 2), 9.0))
    np.testing.assert_array_equal(adam["model"]["memory"], was["model"]["memory"])
    np.testing.assert_array_equal(found.params["users"][:3], before.params["users"])
    assert optax.tree_utils.tree_get(found.opt_state, "count") == 1


def test_the_rate_does_not_fall_from_day_to_day(days, yesterday, tmp_path):
    _, new = days
    today = yesterday.update(new[:-20], tmp_path / "today", train__epochs=1)
    tomorrow = today.update(new[-20:], tmp_path / "tomorrow", train__epochs=1)
    options = [each._run.config.optimizer for each in (yesterday, today, tomorrow)]
    assert options[1].learning_rate == options[2].learning_rate < options[0].learning_rate
    assert options[1].schedule == "constant"


def test_titles_of_yesterday_stay(table, tmp_path):
    ids = sorted(set(table["item"]))
    pl.DataFrame({"item": ids[:-1], "title": [f"T {id}" for id in ids[:-1]]}).write_csv(
        tmp_path / "titles.csv"
    )
    titles = {"data__titles__path": str(tmp_path / "titles.csv")}
    first = hlr.fit(table, "popularity", test=0, **titles)
    pl.DataFrame({"item": ["new", ids[-1]], "title": ["N", "L"]}).write_csv(tmp_path / "new.csv")
    titles = {"data__titles__path": str(tmp_path / "new.csv")}
    today = first.update(pl.DataFrame({"user": ["u1", "u2"], "item": ["new", "newer"]}), **titles)
    found = dict(zip(today.items, today._dataset.titles, strict=True))
    assert found == {id: f"T {id}" for id in ids[:-1]} | {
        ids[-1]: "L",
        "new": "N",
        "newer": "newer",
    }


def test_a_model_in_closed_form_is_that_of_all_interactions(table, days):
    old, new = days
    updated = hlr.fit(old, "ease", validation=0, test=0).update(new, data__split__valid=0.0)
    whole = hlr.fit(table, "ease", validation=0, test=0)
    users, items = whole.users.to_list(), whole.items.to_list()
    np.testing.assert_allclose(
        updated.scores(users, items)["score"], whole.scores(users, items)["score"], atol=1e-5
    )


def test_the_program_updates_an_update_and_resumes(cli, days, tmp_path):
    old, new = days
    for name, rows in (("old", old), ("new", new[:-40]), ("newer", new[-40:])):
        rows.write_csv(tmp_path / f"{name}.csv")
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    quick = [f"--config.{name.replace('__', '.')}={value}" for name, value in QUICK.items()]
    first = ["--config=best:model=cml", *quick, f"--config.data.path={tmp_path / 'old.csv'}", cache]
    status, _, err = cli.run(*first, f"--workdir={tmp_path / 'day-1'}")
    assert status == 0, err
    for day, name in ((2, "new"), (3, "newer")):
        flags = ["--mode=update", f"--config={tmp_path / f'day-{day - 1}'}", cache]
        flags += [
            f"--config.data.path={tmp_path / name}.csv",
            f"--workdir={tmp_path / f'day-{day}'}",
        ]
        status, _, err = cli.run(*flags)
        assert status == 0, err
    (tmp_path / "newer.csv").unlink()
    # A finished update is served without the run that it continued.
    (tmp_path / "day-2").rename(tmp_path / "gone")
    found = hlr.load(tmp_path / "day-3", data__cache_dir=str(tmp_path / "cache"))
    assert set(found.history()["user_id"]) == {f"u{n}" for n in range(60)}
    assert found.recommend("u7").height == 10
    status, _, err = cli.run("--mode=update", f"--workdir={tmp_path / 'day-4'}")
    assert status == 2
    assert "--mode=update needs --config=WORKDIR" in err


@pytest.mark.parametrize(
    ("rows", "changes", "sentence"),
    [
        ({"user": ["u1"], "item": ["new"]}, {"model__dim": 9}, "config key model.dim is 8 in"),
        ({"a": ["u1"]}, {}, "no column that looks like the user"),
        (
            {"user": ["u1"], "item": ["new"]},
            {"data__min_per_user": 5},
            "data.min_per_user has no effect on an update",
        ),
    ],
)
def test_mistakes_get_a_sentence(yesterday, rows, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        yesterday.update(pl.DataFrame(rows), **changes)


def test_what_is_known_is_no_update(yesterday):
    known = yesterday.history("u1").select(user="user_id", item="item_id")
    with pytest.raises(UserError, match="each of its interactions is in the run"):
        yesterday.update(known)


def test_text_ids_cannot_follow_integers():
    rows = synthetic.generate(60, 40, 2400, seed=1).select("user", "item")
    of_integers = hlr.fit(rows, "popularity", test=0)
    with pytest.raises(UserError, match="user ids are texts"):
        of_integers.update(pl.DataFrame({"user": ["x"], "item": [1]}))


def test_new_interactions_count_more(days, yesterday):
    """They rank higher than if all counted the same; a later update has its own."""
    more = {"train__epochs": 8, "optimizer__learning_rate": 0.01, "data__split__valid": 0.0}
    equal, today = (
        yesterday.update(days[1], train__new_weight=weight, **more) for weight in (1.0, 50.0)
    )
    new = days[1].filter(pl.col("user").is_in(yesterday.users))
    ranks = [mean_rank(each, new) for each in (equal, today)]
    assert ranks[1] < 0.9 * ranks[0]
    dataset = today._run.dataset
    pairs = dataset.fresh.nonzero()
    ids = {"user": dataset.user_ids.gather(pairs[0]), "item": dataset.item_ids.gather(pairs[1])}
    assert pl.DataFrame(ids).sort("user", "item").equals(days[1].sort("user", "item"))
    again = today.update(pl.DataFrame({"user": ["u7"], "item": ["newest"]}), train__epochs=1)
    assert again._run.dataset.fresh.nnz == 1


def mean_rank(recommender, rows):
    lists = recommender.recommend(k=len(recommender.items), filter_viewed=False)
    found = rows.join(lists, left_on=["user", "item"], right_on=["user_id", "item_id"])
    assert len(found) == len(rows)
    return found["rank"].mean()
