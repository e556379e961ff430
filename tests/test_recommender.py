"""Recommendations from Python: for users of the data, for new ones, and why."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest

import hlrcml_jax as hlr
from hlrcml_jax import devices, frames
from hlrcml_jax.config import make_config
from hlrcml_jax.data import synthetic
from hlrcml_jax.data.dataset import FEW, Lookup
from hlrcml_jax.errors import UserError
from hlrcml_jax.models.cml import CML
from hlrcml_jax.ranking import factors, few
from hlrcml_jax.registry import MODELS
from hlrcml_jax.runs import build, experiment
from hlrcml_jax.training.fold_in import mean_of_items
from hlrcml_jax.training.interactions import Positives, UserItems
from hlrcml_jax.training.sampling import Sampler
from hlrcml_jax.training.step import widen

OF_ITEMS = ("hlr++", "hlr-r")
ATTENDING = ("hlr", "hlr++", "hlr-r", "adacml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Makes the recommender of a model that was trained on text ids for two epochs, once each."""
    folder, made = tmp_path_factory.mktemp("recommender"), {}
    table = synthetic.generate(60, 40, 2400, seed=1)
    ids = [pl.format(f"{name[0]}{{}}", name).alias(name) for name in ("user", "item")]
    table.with_columns(ids).write_csv(folder / "own.csv")
    titles = "".join(f"i{item},Title {item}\n" for item in range(40))
    (folder / "titles.csv").write_text(f"item,title\n{titles}")

    def trained(model, users="vectors", **changes):
        key = f"{model}-{users}-{len(changes)}"
        if key not in made:
            values = {
                "data.path": str(folder / "own.csv"),
                "data.titles.path": str(folder / "titles.csv"),
                "data.cache_dir": str(folder / "cache"),
                "model.name": model,
                "model.users": users,
                "model.dim": 8,
                "model.memory_slots": 4,
                "model.max_prefs": 30,
                "optimizer.learning_rate": 0.01,
                "train.batch_size": 100,
                "train.epochs": 2,
                "model.als.regularization": 0.1,
            }
            experiment.fit(make_config(values | changes), folder / key)
            made[key] = hlr.load(folder / key)
        return made[key]

    return trained


@pytest.fixture
def compilations():
    """The durations of what jax compiles from here on."""
    found = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def history(recommender, user):
    """The items by which a user is ranked."""
    return items_of(recommender, user, recommender._run.dataset.known("test"))


def items_of(recommender, user, part):
    dataset = recommender._run.dataset
    row = frames.indices(Lookup(dataset.user_ids), [user], "user")
    return dataset.item_ids.gather(part[row].indices).to_list()


def test_unknown_ids_are_an_error_or_left_out_or_get_what_is_popular(trained, capsys):
    recommender = trained("cml")
    asked = ["u7", "stranger", "u3", "u7"]
    known = recommender.recommend(["u7", "u3", "u7"], k=3)
    with pytest.raises(UserError, match="there is no user 'stranger'"):
        recommender.recommend(asked, k=3)
    capsys.readouterr()
    assert recommender.recommend(asked, k=3, unknown="skip").equals(known)
    assert "1 of 4 users are not in the data." in capsys.readouterr().err
    found = recommender.recommend(asked, k=3, unknown="popular")
    assert found[:-3].equals(known)
    assert found["user_id"][-3:].to_list() == ["stranger"] * 3
    assert found["rank"][-3:].to_list() == [1, 2, 3]
    assert found["score"][-3:].null_count() == 3
    count = np.asarray(recommender._run.dataset.train.sum(axis=0))
    counts = dict(zip(recommender.items, count, strict=True))
    popular = [counts[id] for id in found["item_id"][-3:]]
    assert popular == sorted(counts.values(), reverse=True)[:3]
    some = [*recommender.items[:4], "no such item"]
    for how in ("skip", "popular"):
        chosen = recommender.recommend(asked, k=9, items=some, unknown=how)
        assert set(chosen["item_id"]) <= set(some[:4])
    assert len(recommender.recommend("stranger", items=some, unknown="popular")) == 4


def test_histories_are_all_that_a_user_has(trained):
    recommender = trained("cml")
    dataset = recommender._run.dataset
    table = recommender.history(["u7", "u3"])
    assert table["user_id"].unique(maintain_order=True).to_list() == ["u7", "u3"]
    for user in ("u7", "u3"):
        row = dataset.user_ids.to_list().index(user)
        parts = [matrix[[row]].indices for matrix in (dataset.train, dataset.valid, dataset.test)]
        known = set(dataset.item_ids.gather(np.concatenate(parts)))
        found = table.filter(pl.col("user_id") == user)
        assert set(found["item_id"]) == known
        assert len(found) == len(known)
        assert found["title"].to_list() == [f"Title {id[1:]}" for id in found["item_id"]]
    assert len(recommender.history()) == dataset.n_interactions


@pytest.mark.parametrize("model", MODELS)
def test_lists_are_what_scores_say(trained, model):
    recommender = trained(model)
    users, items = ["u7", "u3"], recommender.items.to_list()
    scores = recommender.scores(users, items)
    assert scores["item_id"].to_list() == items * 2
    lists = recommender.recommend(users, k=5)
    for user in users:
        seen = items_of(recommender, user, recommender._run.dataset.seen())
        new = scores.filter(pl.col("user_id") == user, ~pl.col("item_id").is_in(seen))
        expected = new.sort("score", descending=True, maintain_order=True).head(5)
        found = lists.filter(pl.col("user_id") == user)
        np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
        assert found["rank"].to_list() == [1, 2, 3, 4, 5]
        assert found["title"].to_list() == [f"Title {id[1:]}" for id in found["item_id"]]
    assert lists["user_id"].to_list() == ["u7"] * 5 + ["u3"] * 5


@pytest.mark.parametrize(("model", "candidates"), [("hlr-r", 0), ("hlr-r", 25), ("ease", 0)])
def test_nothing_that_a_user_has_is_recommended(trained, model, candidates):
    recommender = trained(model)
    assert recommender._run.dataset.test.nnz > 0
    had = recommender.history()
    for users in (None, ["u7", "u3"]):  # in chunks, and each on its own
        lists = recommender.recommend(users, k=5, candidates=candidates)
        assert len(lists) > 0
        assert lists.join(had, on=["user_id", "item_id"]).is_empty()


@pytest.mark.parametrize("model", ["hlr-r", "cml", "ease"])
def test_after_warming_up_nothing_is_compiled_for_few_users(
    trained, model, compilations, monkeypatch
):
    monkeypatch.setattr(few, "TARGETS", 4)  # so that the catalogue is many blocks
    monkeypatch.setattr(few, "SOME", 32)
    recommender = trained(model)
    items, users = recommender.items.to_list(), recommender.users.to_list()
    recommender.warm_up(candidates=20)
    compilations.clear()
    sizes = {len(history(recommender, user)) for user in users}
    assert len(sizes) > 5
    for user in users:
        recommender.recommend(user)
        recommender.recommend(user, candidates=20)
    recommender.recommend(users[3:7], k=7, filter_viewed=False)
    recommender.recommend(users[3:6], candidates=20)
    for n, n_items in itertools.product((1, 8), (1, 4, 7, 20, 32)):
        recommender.recommend(users[:n], items=items[5 : 5 + n_items])
    for n in (1, 3, 20):
        recommender.recommend_new({"new": items[:n]})
        recommender.recommend_new({"new": items[:n]}, candidates=20)
        if model == "hlr-r":
            recommender.explain(users[n], items[:n])
            recommender.explain("new", items[1], history=items[:n])
    assert compilations == []
    recommender.recommend(users[:9])
    assert compilations  # so they are counted


def test_what_may_be_recommended(trained):
    recommender = trained("hlr")
    known = history(recommender, "u7")
    lists = recommender.recommend("u7", k=40, filter_viewed=False)
    assert set(known) < set(lists["item_id"])
    assert set(recommender.recommend("u7", 40, False, known[:3])["item_id"]) == set(known[:3])
    assert recommender.recommend("u7", 40, items=known).is_empty()
    assert recommender.recommend([], k=3).columns == lists.columns
    assert recommender.recommend(k=1)["user_id"].equals(recommender.users)
    with pytest.raises(UserError, match="no user 'u99'"):
        recommender.recommend(["u7", "u99"])
    with pytest.raises(UserError, match="no item 'u7'"):
        recommender.recommend("u7", items=["u7"])


def test_items_are_found_by_their_titles(trained):
    recommender = trained("hlr")
    counts = recommender._run.dataset.train.sum(axis=0)
    popularity = dict(zip(recommender.items, counts, strict=True))
    found = recommender.find("tITLE 1")
    assert set(found["title"]) == {f"Title {id[1:]}" for id in recommender.items if id[1] == "1"}
    assert [id[1:] for id in found["item_id"]] == [title[6:] for title in found["title"]]
    ranks = [popularity[id] for id in found["item_id"]]
    assert ranks == sorted(ranks, reverse=True)
    assert recommender.find("title (").is_empty()


def test_numbers_of_ids():
    ids = pl.Series([3, 10, 7])
    np.testing.assert_array_equal(frames.indices(Lookup(ids), ["7", 3, " 3"], "user"), [2, 0, 0])
    for wrong in ("x", "3.0", 3.5, None):
        with pytest.raises(UserError, match=f"no user '{wrong}'"):
            frames.indices(Lookup(ids), [10, wrong], "user")


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
@pytest.mark.parametrize("n", [0, 1, 40, FEW + 1])
def test_ids_are_found_as_in_a_dictionary(dtype, n):
    rng = np.random.default_rng(n)
    ids = pl.Series(rng.permutation(3000)[:2000] - 1500).cast(dtype)
    wanted = pl.Series([*rng.integers(-1600, 1600, n), None], dtype=pl.Int64).cast(dtype)
    assert len(Lookup(ids)(wanted[:0])) == 0
    np.testing.assert_array_equal(Lookup(ids[:0])(wanted), [-1] * (n + 1))
    index_of = {id: index for index, id in enumerate(ids)}
    expected = [index_of.get(id, -1) for id in wanted]
    assert expected[-1] == -1
    assert n < 2 or max(expected) >= 0
    np.testing.assert_array_equal(Lookup(ids)(wanted), expected)


@pytest.mark.parametrize(
    ("model", "users"),
    [(model, "items") for model in OF_ITEMS] + [(m, "vectors") for m in ("ease", "popularity")],
)
def test_a_new_user_with_the_items_of_another_gets_its_list(trained, model, users):
    """Where a user has no vector of its own to be found, nothing is lost."""
    recommender = trained(model, users)
    known = {name: history(recommender, name) for name in ("u7", "u3")}
    columns = {"user_id": list(known), "item_id": list(known.values())}
    in_test = {
        id for name in known for id in items_of(recommender, name, recommender._run.dataset.test)
    }
    items = [id for id in recommender.items if id not in in_test]
    expected = recommender.recommend(pd.Series(["u7", "u3"]), k=6, items=items)
    for histories in (
        known,
        pl.DataFrame(columns).explode("item_id"),
        pd.DataFrame(columns).explode("item_id"),
    ):
        found = recommender.recommend_new(histories, k=6, items=items)
        np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5, atol=1e-6)
        assert found.select("user_id", "title").equals(expected.select("user_id", "title"))


@pytest.mark.parametrize("model", ["hlr", "hlr-r", "bpr", "transcf", "als", "item-knn"])
def test_new_users_get_lists(trained, model):
    recommender = trained(model)
    items = recommender.items[:4].to_list()
    found = recommender.recommend_new({"a": items, 5: [], "c": items[:1]}, k=3)
    assert found["user_id"].to_list() == ["a"] * 3 + ["5"] * 3 + ["c"] * 3
    assert not set(items) & set(found["item_id"][:3])
    assert np.isfinite(found["score"].to_numpy()).all()
    with pytest.raises(UserError, match="no item 'nothing'"):
        recommender.recommend_new({"a": ["nothing"]})


@pytest.mark.parametrize("model", ["hlr", "bpr", "transcf"])
def test_fold_in_lowers_the_loss_of_each_user_by_its_items_alone(trained, model):
    recommender = trained(model)
    run, known = recommender._run, recommender._run.dataset.train
    params, model = recommender._trained, build.model_of(run)
    users = build.with_new_users(run, params, known)["users"]
    users = np.asarray(users)[0]
    one = np.asarray(build.with_new_users(run, params, known[[7]])["users"])[0]
    np.testing.assert_allclose(one[0], users[7], atol=1e-5)
    if model.spec.constants:
        widened = jax.jit(functools.partial(widen, model))(params, UserItems.of(known))["users"]
        np.testing.assert_allclose(users[:, 8:], widened[:, 8:], atol=1e-6)
        return

    def mean_loss(users):
        sampler = Sampler.of(known, run.config.model.max_prefs, candidates=20)
        data = params | {"users": users}, sampler, Positives.of(known), key
        return float(
            devices.first(devices.pmap(build.make_trainer(run).mean_loss)(*map(place, data)))
        )

    place, key = devices.replicate, jax.random.key_data(jax.random.key(3))
    assert mean_loss(users) < mean_loss(mean_of_items(known, np.asarray(params["items"])))
    if model.spec.ball:
        assert (np.linalg.norm(users, axis=1) <= 1 + 1e-6).all()


def test_als_folds_in_as_its_library_does(trained):
    recommender = trained("als")
    implicit = pytest.importorskip("implicit.als")
    run, params = recommender._run, recommender._trained
    known = run.dataset.train
    oracle = implicit.AlternatingLeastSquares(
        factors=8, regularization=build.model_of(run).regularization, use_gpu=False
    )
    oracle.item_factors, oracle.user_factors = params["items"], params["users"]
    expected = oracle.recalculate_user(np.arange(60), known.tocsr().astype(np.float32))
    found = build.model_of(run).fold_in(params["items"], known)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ATTENDING)
def test_reasons_are_the_users_items_and_their_shares(trained, model):
    recommender = trained(model)
    found = recommender.explain("u7", ["i1", "i2"])
    known = history(recommender, "u7")
    for item in ("i1", "i2"):
        of_item = found.filter(pl.col("item_id") == item)
        assert sorted(of_item["reason_item_id"]) == sorted(known)
        assert of_item["share"].is_sorted(descending=True)
        total = of_item["share"].sum()
        assert 0 < total < 1 if model in ("hlr", "hlr-r") else total == pytest.approx(1, abs=1e-5)
        assert of_item["reason_title"][0] == f"Title {of_item['reason_item_id'][0][1:]}"
    assert ("item_share" in found.columns) == (model == "hlr++")
    shorter = recommender.explain("u7", ["i1", "i2"], most=2)
    first = found.group_by("item_id", maintain_order=True).head(2)
    assert shorter.equals(first.select(shorter.columns))


def test_reasons_of_a_new_user(trained):
    recommender = trained("hlr-r", "items")
    known = history(recommender, "u7")
    expected = recommender.explain("u7", "i1")
    found = recommender.explain("new", "i1", history=known)
    np.testing.assert_allclose(found["share"], expected["share"], rtol=1e-5)
    assert found["user_id"].unique().to_list() == ["new"]
    with pytest.raises(UserError, match="CML has no attention"):
        trained("cml").explain("u7", "i1")


@pytest.mark.parametrize("model", ["hlr", "bpr", "als", "item-knn", "ease"])
def test_similar_items(trained, model):
    recommender = trained(model)
    items = np.asarray(recommender._trained["items"], np.float64)
    found = recommender.similar_items(["i4", "i9"], k=3)
    assert found["to_item_id"].to_list() == ["i4"] * 3 + ["i9"] * 3
    of = frames.indices(Lookup(recommender.items), ["i4"], "item")[0]
    vectors = items[:, :-1] if model == "bpr" else items
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = unit @ unit[of]
    if model == "hlr":
        expected = -np.sum((vectors - vectors[of]) ** 2, axis=1)
    if model in ("item-knn", "ease"):
        expected = items[:, of].copy()
    expected[of] = -np.inf
    best = np.argsort(-expected)[:3]
    assert found["item_id"][:3].to_list() == recommender.items.gather(best).to_list()
    np.testing.assert_allclose(found["score"][:3], expected[best], rtol=1e-4)


def test_a_table_in_parts_resumes_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "USERS_PER_PART", 2)
    users, calls = np.arange(5), []

    def make(user_C):
        calls.append(list(user_C))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pl.DataFrame({"user_id": user_C, "score": user_C * 0.5})

    path = tmp_path / "lists.csv"
    with pytest.raises(KeyboardInterrupt):
        frames.write_in_parts(path, "csv", users, make, ["hlr", 1])
    assert not path.exists()
    assert frames.write_in_parts(path, "csv", users, make, ["hlr", 1]) == 5
    assert calls == [[0, 1], [2, 3], [2, 3], [4]]
    assert pl.read_csv(path)["user_id"].to_list() == [0, 1, 2, 3, 4]
    # Of another model nothing is taken over.
    frames.write_in_parts(path, "csv", users, make, ["hlr", 2])
    assert calls[4:] == [[0, 1], [2, 3], [4]]
    assert [found.name for found in tmp_path.iterdir()] == ["lists.csv"]


def test_a_run_can_be_loaded_when_its_data_has_moved(trained, tmp_path):
    recommender = trained("cml")
    run = recommender._run
    moved = tmp_path / "own.csv"
    moved.write_bytes(pathlib.Path(run.config.data.path).read_bytes())
    found = hlr.load(run.workdir, data__path=str(moved))
    assert found.recommend("u7").equals(recommender.recommend("u7"))
    with pytest.raises(UserError, match="model.dim"):
        hlr.load(run.workdir, model__dim=9)


@pytest.mark.parametrize(
    ("model", "users", "changes"),
    [(model, "vectors", {}) for model in ("cml", "bpr", "transcf", "als", "hlr", "lrml")]
    + [("hlr-r", "items", {}), ("hlr-r", "vectors", {"model.space": "sphere"})],
)
def test_products_of_factors_order_items_as_candidates_are_chosen(trained, model, users, changes):
    recommender = trained(model, users, **changes)
    asked = recommender.users[3:8]
    user_NxF = recommender.user_factors(asked)["factors"].to_numpy()
    item_IxF = recommender.item_factors()["factors"].to_numpy()
    ready = recommender._ready
    by_vectors = recommender._scorer._retriever.rank(
        ready, np.arange(3, 8), len(recommender.items), False
    )
    (ranking,) = by_vectors
    item_NxI = np.argsort(-user_NxF @ item_IxF.T, axis=1, kind="stable")
    own = np.take_along_axis(user_NxF @ item_IxF.T, ranking.item_CxK, axis=1)
    np.testing.assert_array_equal(item_NxI[:, 0], ranking.item_CxK[:, 0])
    np.testing.assert_allclose(
        own - own[:, :1], ranking.score_CxK - ranking.score_CxK[:, :1], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match="no factors"):
        trained("ease").user_factors(asked)


def test_factors_are_those_of_the_closeness_that_ranks():
    class Taxicab(CML):
        def closeness(self, moved_BxTxD, target_BxTxD):
            return -jnp.sum(jnp.abs(moved_BxTxD - target_BxTxD), axis=2)

    class Weighted(Taxicab):
        def user_factors(self, user_BxD):
            return user_BxD

    params = {"items": np.ones((3, 2), np.float32), "model": {}}
    assert factors.of_items(CML(), params).shape == (3, 3)
    assert factors.of_items(Weighted(), params).shape == (3, 3)
    with pytest.raises(UserError, match="Taxicab has no factors"):
        factors.of_items(Taxicab(), params)
