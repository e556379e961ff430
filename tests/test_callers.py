"""Whatever a caller brings, and whatever its settings of jax: a result, or one sentence."""

import datetime
import inspect
import itertools
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from conftest import ROOT

import hlrcml_jax as hlr
from hlrcml_jax import command_line
from hlrcml_jax import functional as F
from hlrcml_jax.config import make_config, validate
from hlrcml_jax.data.dataset import to_csr
from hlrcml_jax.errors import UserError
from hlrcml_jax.keys import LARGEST, by_name
from hlrcml_jax.models.cml import CML
from hlrcml_jax.runs import build, experiment
from hlrcml_jax.schema import Config

ARGUMENTS = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "1.5": lambda: 1.5,
    "2.0": lambda: 2.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**30": lambda: 10**30,
    "10**5000": lambda: 10**5000,
    "complex": lambda: 1j,
    "''": lambda: "",
    "x": lambda: "x",
    "12": lambda: "12",
    "²": lambda: "²",
    "NUL": lambda: "a\0b",
    "long": lambda: "x" * 10_000,
    "bytes": lambda: b"12",
    "[]": lambda: [],
    "()": lambda: (),
    "{}": dict,
    "set": lambda: {1, 2},
    "[1, 2]": lambda: [1, 2],
    "[None]": lambda: [None],
    "nested": lambda: [[1], [2]],
    "pairs": lambda: [("a", 1), ("b", 2)],
    "range": lambda: range(3),
    "generator": lambda: (id for id in [1, 2]),
    "empty generator": lambda: iter(()),
    "history": lambda: {"a": [1, 2]},
    "history, text": lambda: {"a": "12"},
    "history, empty": lambda: {"a": []},
    "history, None": lambda: {"a": None},
    "history, generator": lambda: {"a": (id for id in [1, 2])},
    "history, odd ids": lambda: {None: [1], ("a", 1): [2]},
    "history, large id": lambda: {2**70: [1]},
    "history of dicts": lambda: {"a": {"b": 1}},
    "np.int64": lambda: np.int64(3),
    "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.bool_(True),
    "np.str": lambda: np.str_("12"),
    "array": lambda: np.arange(3),
    "array, empty": lambda: np.zeros(0),
    "array, 0 axes": lambda: np.array(1),
    "array, 2 axes": lambda: np.zeros((2, 2)),
    "array of objects": lambda: np.array([1, "x", None], object),
    "jax array": lambda: jnp.arange(3),
    "series": lambda: pl.Series([1, 2]),
    "series, null": lambda: pl.Series([1, None]),
    "series of lists": lambda: pl.Series([[1], [2]]),
    "pandas series": lambda: pd.Series([1.0, 2.0]),
    "frame": lambda: pl.DataFrame({"user_id": ["a", "a"], "item_id": [1, 2]}),
    "frame, empty": pl.DataFrame,
    "frame, no rows": lambda: pl.DataFrame({"user_id": [], "item_id": []}),
    "frame, unknown columns": lambda: pl.DataFrame({"u": [1], "i": [2]}),
    "frame, nulls": lambda: pl.DataFrame({"user_id": [1, None], "item_id": [None, 2]}),
    "frame of lists": lambda: pl.DataFrame({"user_id": [[1]], "item_id": [[2]]}),
    "lazy frame": lambda: pl.LazyFrame({"user_id": [1], "item_id": [2]}),
    "pandas frame": lambda: pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2]}),
    "pandas frame, nan": lambda: pd.DataFrame({"user_id": [1, np.nan], "item_id": [1, 2]}),
    "date": lambda: datetime.date(2020, 1, 1),
    "function": lambda: len,
    "type": lambda: int,
    "object": object,
    "error": lambda: ValueError("x"),
}


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """The folder of two workdirs: of a trained model and of a solved one."""
    folder = tmp_path_factory.mktemp("callers")
    for name in ("hlr", "ease"):
        values = small | {"train.epochs": 1, "model.name": name}
        experiment.fit(make_config(values), folder / name)
    return folder


@pytest.fixture(scope="module", params=["hlr", "ease"])
def recommender(request, trained):
    return hlr.load(trained / request.param)


def outcome(function, *args, **named):
    """None, or the sentence; no other end."""
    try:
        function(*args, **named)
    except UserError as error:
        assert 0 < len(str(error)) <= 300
        assert "\n" not in str(error)
        return str(error)
    return None


HOW = {"k": 3, "filter_viewed": True, "items": None, "candidates": 0}
# For each method: good arguments, and those that are replaced one by one.
METHODS = {
    "find": {"text": "1"},
    "history": {"users": [1]},
    "evaluate": {"interactions": None},
    "save": {"folder": None},
    "update": {"interactions": None, "workdir": None, "on_epoch": None, "changes": None},
    "recommend": {"users": [1], **HOW, "unknown": "popular"},
    "recommend_new": {"histories": {"a": [1]}, **HOW},
    "warm_up": {"k": 3, "candidates": 0},
    "similar_items": {"items": [1], "k": 3},
    "scores": {"users": [1], "items": [1]},
    "user_factors": {"users": [1]},
    "item_factors": {},
    "explain": {"user": 1, "items": [1], "most": 0, "history": None},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_a_recommender(recommender, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try_all(getattr(recommender, method), METHODS[method])


def test_no_public_argument_is_left_out():
    methods = inspect.getmembers(hlr.Recommender, inspect.isfunction)
    public = {name: method for name, method in methods if not name.startswith("_")}
    assert public.keys() == METHODS.keys()
    for name, method in public.items():
        assert list(inspect.signature(method).parameters)[1:] == list(METHODS[name])
    tried = {"Recommender", "fit", "fit_all", "load", "make_config", "train_and_evaluate"}
    assert set(hlr.__all__) == tried
    assert sum(map(len, METHODS.values())) * len(ARGUMENTS) > 1000


def try_all(function, good):
    """Replaces each of the good arguments in turn by all `ARGUMENTS`."""
    for name, (label, make) in itertools.product(good, ARGUMENTS.items()):
        try:
            outcome(function, **good | {name: make()})
        except Exception as error:
            pytest.fail(f"{function.__name__}({name}={label}): {type(error).__name__}: {error}")


def test_every_argument_of_functions(trained, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "fit_runs", lambda *_: None)  # nothing is trained
    config, workdir = make_config(small), trained / "hlr"
    try_all(hlr.make_config, {"values": {}})
    try_all(hlr.Recommender, {"best": None})
    try_all(validate, {"config": config})
    rows = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 2, 3]})
    with_parts = {"validation": 0.1, "test": 0.2, "workdir": None, "on_epoch": None}
    try_all(hlr.fit, {"interactions": rows, "model": "hlr", **with_parts, "train__epochs": 3})
    try_all(hlr.load, {"workdir": workdir, "allow_code": False, "train__epochs": 3, "k": 1})
    for function in (experiment.fit, hlr.train_and_evaluate):
        try_all(function, {"config": config, "workdir": workdir, "on_epoch": None})
    try_all(hlr.fit_all, {"configs": [config], "workdirs": [tmp_path / "all"], "side_by_side": 0})


def test_every_argument_of_pure_functions():
    matrix = scipy.sparse.csr_array(np.random.default_rng(0).random((6, 8)) < 0.4)
    model, users, key = CML(), np.arange(2), jax.random.key(0)
    sampler = F.make_sampler(matrix, max_prefs=3)
    prefs_BxS, mask_BxS = F.preferences(sampler, key, users)
    params = jax.jit(lambda: F.init_params(key, model, 6, 8, dim=4))()
    optimizer = F.make_optimizer(0.1, F.row_radii(1.0))
    state = jax.jit(lambda: F.init_state(params, optimizer))()
    batch = next(F.batches(sampler, key, 4))
    step = {"model": model, "objective": F.Objective(F.logistic), "optimizer": optimizer}
    step |= {"state": state, "batch": batch}
    of_pairs = {"model": model, "params": params, "user_B": users, "item_T": users}
    good = {
        F.make_sampler: {"interactions": matrix, "max_prefs": 3, "candidates": 1},
        F.batches: {"sampler": sampler, "key": key, "batch_size": 4},
        F.preferences: {"sampler": sampler, "key": key, "user_B": users},
        F.train_step: step,
        F.scores: of_pairs | {"prefs_BxS": prefs_BxS, "mask_BxS": mask_BxS},
    }
    for function, arguments in good.items():
        try_all(function, arguments)
    assert "has no 'own'" in outcome(F.make_sampler, matrix, own=1)


@pytest.mark.parametrize("key", by_name(Config))
def test_every_value_of_a_key(key):
    for make in ARGUMENTS.values():
        outcome(make_config, {key: make()})


NUMBERS = (
    "2147483648",
    "9223372036854775808",
    "1" + 400 * "0",
    "9" * 5000,
    "1e400",
    "nan",
    "²",
    "٣",
)


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: text[:20])
def test_numbers_that_no_key_takes(text):
    source = str(ROOT / "configs" / "default.py")
    for name, key in by_name(Config).items():
        sentence = outcome(command_line.read, [f"--config.{name}={text}"], source, None)
        if key.kind is int or (key.kind is float and text in ("1e400", "nan", "²", "٣")):
            assert f"config.{name}" in sentence or f"config key {name} " in sentence


def test_the_largest_numbers(small, tmp_path):
    """Where no memory is taken for them, they are right; else they are refused before."""
    largest = LARGEST[int]
    free = {name: largest for name in ("early_stopping.patience", "evaluation.n_cohorts")}
    free |= {name: largest for name in ("evaluation.cohort_size", "scoring.batch_size")}
    free |= {name: largest for name in ("seed", "data.split.seed", "recommend.k")}
    free |= {name: largest for name in ("optimizer.cosine_epochs", "optimizer.warmup_epochs")}
    free |= {"optimizer.schedule": "cosine", "evaluation.cutoffs": (1, largest)}
    free |= {"train.epochs": 1, "scoring.memory_mb": largest}
    metrics = hlr.train_and_evaluate(make_config(small | free), tmp_path / "free")
    assert metrics[f"ndcg@{largest}"]["mean"] > metrics["ndcg@1"]["mean"]
    for name in ("model.dim", "model.memory_slots", "model.max_prefs", "train.batch_size"):
        config = make_config(small | {name: largest})
        assert name in outcome(experiment.fit, config, tmp_path / name)
    config = make_config(small | {"negatives.candidates": largest})
    assert "negatives.candidates" in outcome(experiment.fit, config, tmp_path / "candidates")


def test_what_callers_get(trained):
    recommender = hlr.load(trained / "hlr")
    of_list = recommender.scores([1, 2], [3, 4])
    assert recommender.scores(iter([1, 2]), (id for id in [3, 4])).equals(of_list)
    assert recommender.scores([1.0, np.int64(2)], pd.Series([3.0, 4.0])).equals(of_list)
    new = recommender.recommend_new({"a": ["12"]}, k=40)
    assert recommender.recommend_new({"a": "12"}, k=40).equals(new)
    assert recommender.recommend_new({"a": [12]}, k=10**30).equals(new)
    for empty, full in (
        (recommender.recommend_new({}), new),
        (recommender.recommend_new(pl.DataFrame({"user_id": [], "item_id": []})), new),
        (recommender.scores([1], []), of_list),
        (recommender.similar_items([]), recommender.similar_items(1)),
        (recommender.explain(1, []), recommender.explain(1, 2)),
        (recommender.explain([], [1]), recommender.explain(1, 2)),
        (recommender.explain("a", [1], history=[]), recommender.explain("a", 1, history=[2])),
    ):
        assert empty.is_empty()
        assert empty.columns == full.columns


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: r.recommend(1, k=0), "k is 0; it is at least 1."),
        (lambda r: r.recommend(1, k=1.5), "k is 1.5; it takes a whole number of at least 1."),
        (lambda r: r.recommend({"a": 1}), "users is a dict; it takes an id or a list of ids."),
        (lambda r: r.recommend(pl.DataFrame({"a": [1]})), "users is a DataFrame; "),
        (lambda r: r.recommend_new([("a", 1)]), "histories are a mapping {user id: item ids}, or "),
        (lambda r: r.recommend_new(pl.DataFrame({"u": [1]})), "this has 'columns u'."),
        (lambda r: make_config(None), "values of a config are a mapping"),
        (lambda r: experiment.fit(None, "x"), "a config is made by make_config; this is None."),
        (lambda r: hlr.fit(None), "interactions is None; it takes a polars or pandas frame, a sci"),
        (lambda r: hlr.fit("nowhere.csv"), "nowhere.csv: No such file or directory."),
        (lambda r: hlr.fit("x.csv", test=1.0), "test is 1.0; it takes a share from 0 to below 1 "),
        (lambda r: hlr.fit("x.csv", validation="y.csv"), "validation is interactions, and test is"),
        (lambda r: hlr.fit("x.csv", "hlx"), "did you mean model=hlr"),
        (lambda r: hlr.fit(pl.DataFrame({"a": [1]})), "no column that looks like the user"),
        (lambda r: r.evaluate(pl.DataFrame({"user": [99], "item": [1]})), "none of the interactio"),
        (lambda r: r.save("/"), "/: it exists already, or is in the run"),
        (lambda r: hlr.fit_all([], ["x"]), "there are 0 configs and 1 workdirs."),
        (lambda r: hlr.load(None), "workdir is None; it takes the path of a folder."),
    ],
)
def test_sentences_name_what_is_wrong(trained, call, sentence):
    assert sentence in outcome(call, hlr.load(trained / "ease"))


SETTINGS = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_check_tracer_leaks": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
}


@pytest.fixture(scope="module")
def usual(trained, small, tmp_path_factory):
    return used(trained, small, tmp_path_factory.mktemp("usual"))


def used(trained, small, folder):
    """Results of all that uses jax: a run that is trained, and one that is loaded."""
    metrics = hlr.train_and_evaluate(make_config(small | {"train.epochs": 1}), folder / "run")
    recommender = hlr.load(trained / "hlr")
    lists = recommender.recommend([1, 2], k=5)
    new = recommender.recommend_new({"a": [1, 2, 3]}, k=5)
    why = recommender.explain(1, [2])
    similar = recommender.similar_items(1, k=3)
    return metrics, (lists, new, why, similar, recommender.scores(1, [1, 2]))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_nothing_and_stay(trained, small, usual, name, tmp_path):
    before = jax.config.values[name]
    jax.config.update(name, SETTINGS[name])
    try:
        metrics, tables = used(trained, small, tmp_path)
        assert jax.config.values[name] == SETTINGS[name]
    finally:
        jax.config.update(name, before)
    assert metrics == usual[0]
    for table, expected in zip(tables, usual[1], strict=True):
        assert table.equals(expected)


def test_a_new_users_list_does_not_depend_on_the_company(trained):
    """Histories are longer than `max_prefs`, so preferences are drawn from them."""
    recommender = hlr.load(trained / "hlr")
    histories = {f"u{n}": list(range(n, n + 12)) for n in range(3)} | {"short": [3]}
    together = recommender.recommend_new(histories, k=5)
    for user, history in histories.items():
        alone = recommender.recommend_new({user: history[::-1]}, k=5)
        expected = together.filter(pl.col("user_id") == user)
        assert alone["item_id"].equals(expected["item_id"])
        np.testing.assert_allclose(alone["score"], expected["score"], rtol=1e-4, atol=1e-6)
    known = to_csr(np.repeat([0, 1], 12), np.r_[np.arange(12), np.arange(12) + 20], (2, 40))
    for row in (0, 1):
        alone = build.make_new_scorer(recommender._run, known[[row]]).preferences(np.zeros(1, int))
        company = build.make_new_scorer(recommender._run, known).preferences(np.array([row]))
        np.testing.assert_array_equal(alone, company)


def test_a_recommender_is_pickled_by_its_workdir(trained):
    recommender = hlr.load(trained / "hlr", recommend__k=7)
    text = pickle.dumps(recommender)
    assert len(text) < 10_000
    again = pickle.loads(text)
    assert again._run.config == recommender._run.config
    assert again.recommend([1, 2], k=5).equals(recommender.recommend([1, 2], k=5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_forked_after_use_gets_one_sentence(trained):
    recommender = hlr.load(trained / "ease")
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        for method in (recommender.recommend, recommender.find):
            os.write(writer, (outcome(method, "1") or "").encode())
        os._exit(0)
    os.waitpid(process, 0)
    said = os.read(reader, 1000)
    assert said.count(b"start processes by the methods 'spawn' or 'forkserver'") == 2


@pytest.mark.parametrize("user", [None, pd.NA, pd.NaT, ..., b"1", "\ud800", float("nan"), True])
def test_what_is_no_id_of_a_new_user_is_refused(recommender, user):
    assert "histories have the user id" in outcome(recommender.recommend_new, {user: [1]})


def test_new_users_of_the_same_id_are_one(recommender):
    """196 and "196" are the same id."""
    lists = recommender.recommend_new({1: [1, 2], "1": [3]}, k=2)
    together = recommender.recommend_new({"1": [1, 2, 3]}, k=2)
    assert lists.equals(together)


def test_ids_that_are_no_unicode_are_not_in_the_data(recommender):
    for call in (recommender.recommend, recommender.similar_items):
        assert "ud800" in outcome(call, "\ud800")
    assert "ud800" in outcome(recommender.recommend_new, {"a": ["\ud800"]})
    assert "data.path cannot be" in outcome(make_config, {"data.path": "\ud800"})
    assert "not UTF-8" in outcome(hlr.load, "runs/\ud800")


def test_frames_that_are_no_histories(recommender):
    twice = pd.DataFrame([["a", 1, 2]], columns=["user_id", "item_id", "item_id"])
    assert "two columns item_id" in outcome(recommender.recommend_new, twice)
    for lazy in (pl.LazyFrame({"a": [1]}).select("b"), pl.scan_parquet("/nowhere.parquet")):
        assert "lazy frame fails" in outcome(recommender.recommend_new, lazy)
