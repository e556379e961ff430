"""Blocked scores equal direct distances, whatever the blocks; lists are masked, ordered, exact."""

import dataclasses
import functools
import itertools

import forked
import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from conftest import with_devices

from hlrcml_jax import devices
from hlrcml_jax.config import default_config
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.models import make_model
from hlrcml_jax.models.base import Spec
from hlrcml_jax.models.closed_form import Popularity, closed_form
from hlrcml_jax.models.distances import MetricModel
from hlrcml_jax.models.past import own_scores
from hlrcml_jax.models.retrieval import ByVectors
from hlrcml_jax.ranking import kernels as blocks_lib
from hlrcml_jax.ranking import scorer as scoring
from hlrcml_jax.ranking.evaluation import choose_users, evaluate
from hlrcml_jax.ranking.metrics import Protocol
from hlrcml_jax.ranking.untrained import embed_untrained_users
from hlrcml_jax.registry import MODELS
from hlrcml_jax.training.interactions import UserItems
from hlrcml_jax.training.step import init_params, widen

N_USERS, N_ITEMS, DIM, SLOTS, PREFS = 13, 37, 6, 4, 5
KEY = jax.random.key(5)


def options_of(name, beta=1.0):
    options = default_config().model
    options.name, options.dim, options.memory_slots, options.beta = name, DIM, SLOTS, beta
    return options


SETTINGS = {name: make_model(options_of(name)) for name in MODELS}
# Their users are made of their items.
SETTINGS |= {f"{name}, no user vectors": SETTINGS[name] for name in ("cml", "hlr")}


class Minimal(MetricModel):
    """A model of one's own that says as little as it can."""

    spec = Spec(history=True)

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        return {"user_BxD": user_BxD + self.represent(None, past_BxSxD, mask_BxS)}


SETTINGS["minimal"] = Minimal()
for name in ("cml", "hlr++", "hlr-r", "adacml"):
    with (options := options_of(name)).unlocked():
        options.space = "sphere"
    SETTINGS[f"{name} on the sphere"] = make_model(options)
SETTINGS["hlr, beta 0.7"] = make_model(options_of("hlr", 0.7))
SETTINGS["adacml, beta 0.7"] = make_model(options_of("adacml", 0.7))


def interactions(seed=0, density=0.2):
    rng = np.random.default_rng(seed)
    dense = rng.random((N_USERS, N_ITEMS)) < density
    dense[3] = False  # a user with nothing known
    dense[4] = True  # and one with everything
    return scipy.sparse.csr_array(dense)


@functools.cache
def make_setting(name):
    """(model, parameters as scoring takes them, what is known)."""
    model, known = SETTINGS[name], interactions()
    if solved := closed_form(model):
        return model, solved.fit(known, seed=0), known
    params = init_params(jax.random.key(0), model, N_USERS, N_ITEMS, DIM)
    params = jax.tree.map(lambda x: 2.0 * x, params)
    if name.endswith("no user vectors"):
        del params["users"]
    return model, widen(model, params, UserItems.of(known)), known


@pytest.fixture(params=SETTINGS)
def setting(request):
    return make_setting(request.param)


def direct_scores(model, params, ranking, known):
    """Every pair on its own."""
    prefs = params["items"][ranking.prefs_CxS]
    bound = model.bind({"params": params["model"]})
    if model.spec.rows_are_histories:
        users = known.toarray()[ranking.user_C].astype(float)
    elif "users" in params:
        users = params["users"][ranking.user_C]
    else:
        users = model.represent(None, prefs, ranking.mask_CxS)
    score = jax.jit(
        jax.vmap(
            lambda item_D: own_scores(
                bound, users, jnp.tile(item_D, (len(users), 1)), prefs, ranking.mask_CxS
            )
        )
    )
    return np.array(score(params["items"])).T


def rank(model, params, known, users, k, memory_mb=64, storage="float32"):
    scorer = scoring.Scorer(model, known, PREFS, "uniform", memory_mb, KEY, storage=storage)
    return list(scorer.rank(devices.replicate(params), np.asarray(users), k))


def test_lists_are_the_best_unknown_items(setting):
    model, params, known = setting
    (ranking,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    score = direct_scores(model, params, ranking, known)
    score[known.toarray()] = -np.inf
    for user in range(N_USERS):
        items = ranking.item_CxK[user]
        n_left = N_ITEMS - known[[user]].nnz
        assert set(items[:n_left]) == set(np.flatnonzero(np.isfinite(score[user])))
        assert (items[n_left:] == -1).all()
        np.testing.assert_allclose(
            ranking.score_CxK[user, :n_left],
            np.sort(score[user])[::-1][:n_left],
            rtol=1e-5,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            ranking.score_CxK[user, :n_left], score[user][items[:n_left]], rtol=1e-5, atol=1e-5
        )


def test_candidates_are_the_closest_by_their_vectors(setting):
    """Their scores are the model's; a model without a relation has nothing to retrieve."""
    model, params, known = setting
    n = N_ITEMS // 2
    (whole,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    scorer = scoring.Scorer(model, known, PREFS, "uniform", 64, KEY)
    placed = devices.replicate(params)
    (found,) = scorer.rank(placed, np.arange(N_USERS), n, candidates=n)
    if not model.spec.attends:
        np.testing.assert_array_equal(found.item_CxK, whole.item_CxK[:, :n])
        return
    (near,) = rank(ByVectors(model), params, known, np.arange(N_USERS), n)
    np.testing.assert_array_equal(np.sort(found.item_CxK), np.sort(near.item_CxK))
    for user in np.flatnonzero(np.diff(known.indptr) <= N_ITEMS - n):
        score_of = dict(zip(whole.item_CxK[user], whole.score_CxK[user], strict=True))
        expected = sorted((score_of[item] for item in near.item_CxK[user]), reverse=True)
        np.testing.assert_allclose(found.score_CxK[user], expected, rtol=1e-5, atol=1e-5)
        if "users" in params and model.spec.ball:
            items_IxD, user_D = (np.array(x) for x in (params["items"], params["users"][user]))
            distance_I = np.square(items_IxD - user_D).sum(axis=1)
            distance_I[known[[user]].indices] = np.inf
            assert set(near.item_CxK[user]) == set(np.argsort(distance_I)[:n])


BLOCKS = [(6, 3, 1, 16), (4, 2, 2, 64)]
# What differs from another only in a number, in its users or in how it was solved meets two.
ALIKE = [name for name in SETTINGS if "," in name and "pair by pair" not in name]
ALIKE += ["als", "item-knn", "popularity"]
MEETINGS = [(name, b) for name in SETTINGS for b in (BLOCKS[1:] if name in ALIKE else BLOCKS)]


@pytest.mark.parametrize(("name", "blocks"), MEETINGS)
def test_blocks_do_not_change_the_scores(name, blocks, monkeypatch):
    model, params, known = make_setting(name)
    (whole,) = rank(model, params, known, np.arange(N_USERS), 8)
    monkeypatch.setattr(scoring, "plan_blocks", lambda *_: blocks_lib.Blocks(*blocks))
    for module in (scoring, blocks_lib):
        monkeypatch.setattr(module, "PIECE", 8)  # past items are related in pieces, too
    parts = rank(model, params, known, np.arange(N_USERS), 8)
    chunk = blocks[0] * devices.device_count() * devices.workers()
    assert len(parts) == -(-N_USERS // chunk)
    joined = np.concatenate([part.score_CxK for part in parts])
    np.testing.assert_allclose(joined, whole.score_CxK, rtol=1e-5, atol=1e-5)


class Summed(MetricModel):
    """Trusts that rows of past items are zero where masked."""

    spec = Spec(history=True)

    def users(self, user_BxD, past_BxSxD, mask_BxS):
        return {"user_BxD": user_BxD + jnp.sum(past_BxSxD, axis=1)}


def test_masked_past_items_are_zero():
    model, params, known = Summed(), *make_setting("minimal")[1:]
    (ranking,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    rows = params["items"][ranking.prefs_CxS] * ranking.mask_CxS[:, :, None]
    users = params["users"][ranking.user_C] + rows.sum(axis=1)
    score = -np.square(users[:, None] - params["items"][None]).sum(axis=2)
    for user, (items, scores) in enumerate(zip(ranking.item_CxK, ranking.score_CxK, strict=True)):
        real = items >= 0
        np.testing.assert_allclose(scores[real], score[user, items[real]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["hlr", "hlr++", "hlr-r", "adacml"])
def test_without_loops_the_scores_are_the_same(name, monkeypatch):
    """As on devices that have no cache to keep a slot in."""
    model, params, known = make_setting(name)
    (loops,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    monkeypatch.setattr(devices, "on_cpu", lambda: False)
    (at_once,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    np.testing.assert_allclose(at_once.score_CxK, loops.score_CxK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("name", ["hlr", "hlr++"])
def test_storage_changes_scores_by_its_precision(name, storage, tolerance):
    model, known = SETTINGS[name], interactions()
    params = init_params(jax.random.key(0), model, N_USERS, N_ITEMS, DIM)
    (exact,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS)
    (stored,) = rank(model, params, known, np.arange(N_USERS), N_ITEMS, storage=storage)
    order = np.argsort(exact.item_CxK, axis=1), np.argsort(stored.item_CxK, axis=1)
    by_item = [
        np.take_along_axis(found.score_CxK, place, axis=1)
        for found, place in zip((exact, stored), order, strict=True)
    ]
    np.testing.assert_allclose(by_item[1], by_item[0], atol=tolerance)
    assert (by_item[1] != by_item[0]).any()


def test_a_list_does_not_depend_on_the_company(setting):
    """One user alone has a context of its own preferences only."""
    model, params, known = setting
    (whole,) = rank(model, params, known, np.arange(N_USERS), 6)
    (alone,) = rank(model, params, known, [7], 6)
    np.testing.assert_array_equal(alone.prefs_CxS, whole.prefs_CxS[[7]])
    np.testing.assert_array_equal(alone.item_CxK, whole.item_CxK[[7]])
    np.testing.assert_allclose(alone.score_CxK, whole.score_CxK[[7]], rtol=1e-5, atol=1e-5)


def rank_ties(sharded):
    """Lists of all users where all items have one score, short and long ones."""
    placement = devices.SHARDED if sharded else devices.REPLICATED
    model, params, known = make_setting("cml")
    params = placement.place(jax.device_get(jax.tree.map(jnp.zeros_like, params)))
    scorer = scoring.Scorer(model, known, PREFS, "uniform", 64, KEY, placement=placement)
    return [next(scorer.rank(params, np.arange(N_USERS), k)).item_CxK for k in (6, N_ITEMS)]


@pytest.mark.parametrize(("devices", "sharded"), [(1, False), (4, True)])
def test_ties_are_broken_by_item(devices, sharded):
    known = interactions().toarray()
    for item_CxK in forked.call(with_devices(devices), rank_ties, sharded):
        for user, item_K in enumerate(item_CxK):
            unknown = np.flatnonzero(~known[user])[: len(item_K)]
            np.testing.assert_array_equal(item_K[: len(unknown)], unknown)
            assert (item_K[len(unknown) :] == -1).all()


def rank_on_all_devices(sharded):
    """{(model, k): lists} of all users, in chunks of five; everything as arrays."""
    found, placement = {}, devices.SHARDED if sharded else devices.REPLICATED
    for name in ("hlr-r", "bpr", "cml, no user vectors"):
        model, params, known = make_setting(name)
        for k in (6, N_ITEMS):
            options = {"max_users": 5, "placement": placement}
            scorer = scoring.Scorer(model, known, PREFS, "uniform", 64, KEY, **options)
            lists = list(
                scorer.rank(placement.place(jax.device_get(params)), np.arange(N_USERS), k)
            )
            parts = [[getattr(x, part) for x in lists] for part in ("item_CxK", "score_CxK")]
            found[name, k] = [np.concatenate(part) for part in parts]
    return found


def rank_few_and_candidates():
    """{(model, users, candidates): items and scores} of few users, on all devices."""
    found = {}
    for name in ("hlr++", "hlr-r on the sphere", "ease"):
        model, params, known = make_setting(name)
        scorer = scoring.Scorer(model, known, PREFS, "uniform", 64, KEY)
        placed = devices.replicate(jax.device_get(params))
        for users, n in itertools.product(([7], [5, 2], [1, 2, 2, 9, 0, 6, 7, 8]), (0, 12)):
            (ranking,) = scorer.rank(placed, np.array(users), 6, candidates=n)
            found[name, len(users), n] = ranking.item_CxK, ranking.score_CxK
    return found


def test_devices_do_not_change_the_lists_of_few_users():
    one, three = (forked.call(with_devices(n), rank_few_and_candidates) for n in (1, 3))
    for case, (items, scores) in one.items():
        np.testing.assert_array_equal(three[case][0], items, err_msg=str(case))
        np.testing.assert_allclose(three[case][1], scores, rtol=1e-5, atol=1e-5)


def test_divided_tables_give_the_same_lists():
    """37 items over 4 devices leave the last one with fewer."""
    whole = forked.call(with_devices(1), rank_on_all_devices, False)
    divided = forked.call(with_devices(4), rank_on_all_devices, True)
    assert whole.keys() == divided.keys()
    for case, (items, scores) in whole.items():
        np.testing.assert_array_equal(divided[case][0], items, err_msg=str(case))
        np.testing.assert_allclose(divided[case][1], scores, rtol=1e-5, atol=1e-5)


def test_ties_go_by_item_number():
    nothing = jnp.full((1, 4), -1), jnp.full((1, 4), -jnp.inf)
    best = blocks_lib.best_items(nothing, jnp.array([[0.0, -jnp.inf, 2.0]]), 0)
    np.testing.assert_array_equal(best[0], [[2, 0, -1, -1]])
    items, scores = blocks_lib.best_items(best, jnp.array([[1.0, 2.0, 0.0]]), 3)
    np.testing.assert_array_equal(items, [[2, 4, 3, 0]])
    np.testing.assert_array_equal(scores, [[2, 2, 1, 0]])


@pytest.mark.parametrize("memory_mb", [1, 16, 512])
@pytest.mark.parametrize(("user_bytes", "target_bytes"), [(10, 100), (20_000, 3_000_000)])
@pytest.mark.parametrize("relates", [True, False])
def test_blocks_fit_the_budget(memory_mb, user_bytes, target_bytes, relates):
    args = (memory_mb, 10**6, 50_000, user_bytes, target_bytes, relates)
    blocks = blocks_lib.plan_blocks(*args)
    assert blocks.targets % 8 == 0
    # However small the budget, a block has eight items and a chunk one user.
    assert blocks.targets == 8 or blocks.targets * target_bytes <= memory_mb * 2**19
    assert blocks.users % blocks.group == 0
    rounded = max(blocks.users - blocks.group, min(blocks.users, blocks.group))
    # Scores of each worker's group, and the buffers to sort them.
    scores = 16 * blocks.targets * devices.ranking_block()[0] * devices.workers()
    assert (
        blocks.users == 1
        or blocks.targets == 8
        or (rounded * user_bytes + scores <= memory_mb * 2**19)
    )


def test_a_block_has_no_more_targets_than_there_are():
    blocks = blocks_lib.plan_blocks(512, 10**6, 1001, 10_000, 100, False)
    assert blocks.targets == 1008


def test_users_that_training_never_saw_stand_at_the_mean_of_their_items():
    train, known = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    train[0, 1] = known[0, 1] = known[1, 2] = known[1, 3] = True
    params = {"users": np.ones((3, 2)), "items": np.arange(8.0).reshape(4, 2), "model": {}}
    csr = scipy.sparse.csr_array
    for placement in (devices.REPLICATED, devices.SHARDED):
        found = embed_untrained_users(placement.place(params), csr(train), csr(known), placement)
        users = devices.first(found["users"])
        np.testing.assert_array_equal(users, [[1, 1], [5, 6], [0, 0]])


# Evaluation.

PROTOCOL = Protocol((1, 5), "standard", 1, n_cohorts=2, cohort_size=4, seed=0)


def test_evaluation_by_hand():
    """Three users, popularity 3, 2, 1, 0 of the items, everything countable."""
    csr = scipy.sparse.csr_array
    train = csr(np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool))
    test = csr(np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]], bool))
    empty = csr((3, 4), dtype=bool)
    dataset = Dataset(train, empty, test, empty, None, None)
    scorer = scoring.Scorer(Popularity(), dataset.known("test"), 1, "uniform", 64, KEY)
    params = devices.replicate(Popularity().fit(train, seed=0))
    found = evaluate(scorer, params, dataset, "test", PROTOCOL)
    by_user = dict(zip(found.user_B, found.values["mrr@5"], strict=True))
    # Lists: user 0 gets 3; user 1 gets 2, 3; user 2 gets 1, 2, 3.
    assert by_user == {0: 1.0, 1: 0.5, 2: 1.0}
    np.testing.assert_allclose(found.means()["precision@1"], 2 / 3)
    np.testing.assert_allclose(found.means()["recall@5"], 1.0)
    assert found.overall["coverage@1"] == 3 / 4  # items 3, 2 and 1
    assert found.overall["median_rank@1"] == 3
    perfect = {"mean": 1.0, "low": 1.0, "high": 1.0, "sd_over_cohorts": 0.0}
    assert found.summary()["recall@5"] == perfect
    assert found.summary(found)["recall@5"] == perfect | {"p": 1.0}
    # Two cohorts, of two users and of one.
    first, second = found.values["mrr@5"][:2].mean(), found.values["mrr@5"][2]
    deviation = found.summary()["mrr@5"]["sd_over_cohorts"]
    np.testing.assert_allclose(deviation, np.std([first, second]))


def test_whole_rankings_and_users_with_k_items():
    """Whole rankings agree with trec_eval; users with fewer than k items are NaN at k."""
    known, relevant = interactions(0, 0.1), interactions(3, 0.1)
    relevant = relevant > relevant.multiply(known)
    empty = scipy.sparse.csr_array(known.shape, dtype=bool)
    dataset = Dataset(known, empty, relevant, empty, None, None)
    model = SETTINGS["hlr"]
    params = init_params(jax.random.key(0), model, N_USERS, N_ITEMS, DIM)
    scorer = scoring.Scorer(model, known, PREFS, "uniform", 64, KEY)
    protocol = Protocol((3, 5, 0), "standard", 0, n_cohorts=1, cohort_size=100, seed=0)
    found = evaluate(scorer, devices.replicate(params), dataset, "test", protocol)
    counts = np.diff(relevant.indptr)
    assert sorted(found.user_B) == list(np.flatnonzero(counts >= 3))
    for name, least in (("ndcg@3", 3), ("ndcg@5", 5), ("map@all", 3)):
        np.testing.assert_array_equal(
            np.isnan(found.values[name]), counts[found.user_B] < least, err_msg=name
        )
    rankings = list(scorer.rank(devices.replicate(params), found.user_B, N_ITEMS))
    lists = np.concatenate([ranking.item_CxK for ranking in rankings])
    qrels = {f"{u}": {f"{i}": 1 for i in relevant[[u]].indices} for u in found.user_B}
    run = {
        f"{u}": {f"{i}": float(-rank) for rank, i in enumerate(items) if i >= 0}
        for u, items in zip(found.user_B, lists, strict=True)
    }
    names = {ir_measures.AP: "map@all", ir_measures.RR: "mrr@all", ir_measures.nDCG: "ndcg@all"}
    for value in ir_measures.iter_calc(list(names), qrels, run):
        place = list(found.user_B).index(int(value.query_id))
        expected = found.values[names[value.measure]][place]
        np.testing.assert_allclose(expected, value.value, atol=1e-6)


def test_users_are_chosen_by_test_items_and_cohorts():
    relevant = interactions(1, density=0.1)
    counts = np.diff(relevant.indptr)
    protocol = Protocol((5,), "standard", 3, n_cohorts=2, cohort_size=2, seed=0)
    chosen = choose_users(relevant, protocol)
    assert len(chosen) == 4
    assert (counts[chosen] >= 3).all()
    everyone = Protocol((5,), "standard", 1, n_cohorts=5, cohort_size=10_000, seed=0)
    assert sorted(choose_users(relevant, everyone)) == list(np.flatnonzero(counts))


def evaluated(test, protocol):
    """The evaluation of popularity on four items, of which each user has had the one of its row."""
    csr = scipy.sparse.csr_array
    train, empty = csr(np.eye(3, 4, dtype=bool)), csr((3, 4), dtype=bool)
    dataset = Dataset(train, empty, csr(np.array(test, bool)), empty, None, None)
    scorer = scoring.Scorer(Popularity(), train, 1, "uniform", 64, KEY)
    params = devices.replicate(Popularity().fit(train, seed=0))
    return evaluate(scorer, params, dataset, "test", protocol)


def test_metrics_without_users_are_absent():
    nobody = evaluated(np.zeros((3, 4)), PROTOCOL)
    assert (nobody.summary(), nobody.means(), nobody.n_users(5)) == ({}, {}, 0)
    by_k = dataclasses.replace(PROTOCOL, cutoffs=(1, 2, 10), min_test_items=0)
    found = evaluated([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], by_k)
    assert [found.n_users(k) for k in by_k.cutoffs] == [3, 2, 0]
    assert found.cutoffs == (1, 2)
    assert not [name for name in found.means() if name.endswith("@10")]
    assert np.isfinite(list(found.means().values())).all()


def test_a_cutoff_beyond_the_catalogue_takes_no_memory():
    """At any k above the four items metrics are those at four, but for the division by k."""
    test, large = [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1]], 2**31 - 1
    protocol = dataclasses.replace(PROTOCOL, cutoffs=(4, large))
    found = evaluated(test, protocol)
    assert found.item_BxK.shape == (3, 4)
    for name in ("ndcg", "map", "mrr", "recall", "hit_rate"):
        np.testing.assert_array_equal(found.values[f"{name}@{large}"], found.values[f"{name}@4"])
    expected = found.values["precision@4"] * (4 / large)
    np.testing.assert_allclose(found.values[f"precision@{large}"], expected, rtol=1e-6)
