"""Every model and option through the whole of a run, in this process."""

import json

import jax
import numpy as np
import polars as pl
import pytest

from hlrcml_jax import config as config_lib
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.registry import MODELS
from hlrcml_jax.reporting.log import read_log
from hlrcml_jax.runs import build, experiment, fit, lists
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.workdir import open_run


def make_config(small, **changes):
    return config_lib.make_config(small | changes)


def newest_state(run):
    with Checkpoints(run.workdir) as checkpoints:
        return checkpoints.latest(build.empty_state(run))[1]


@pytest.mark.parametrize(
    ("model", "how"),
    [(model, {}) for model in MODELS]
    + [(model, {"model.users": "items"}) for model in ("cml", "hlr++")]
    + [(model, {"model.space": "sphere"}) for model in ("cml", "hlr++", "hlr-r")],
)
def test_every_model_trains_resumes_evaluates_and_recommends(small, tmp_path, model, how):
    small = small | how
    whole = make_config(small, **{"model.name": model})
    metrics = experiment.test(best_checkpoint(experiment.fit(whole, tmp_path / "whole")))
    assert 0 < metrics["recall@20"]["mean"] <= 1

    first = make_config(small, **{"model.name": model, "train.epochs": 1})
    experiment.fit(first, tmp_path / "parts")
    experiment.fit(whole, tmp_path / "parts")
    runs = [open_run(whole, tmp_path / name) for name in ("whole", "parts")]
    states = [newest_state(run) for run in runs]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)

    best = best_checkpoint(runs[0])
    assert experiment.test(best) == metrics
    table = pl.read_parquet(lists.write_recommendations(best))
    assert table["user_id"].n_unique() == 60
    for user, part in table.group_by("user_id"):
        seen = runs[0].dataset.known("test")[[user[0]]].indices  # ids are 0..59 and 0..39
        assert not set(part["item_id"]) & set(runs[0].dataset.item_ids.gather(seen))
        assert part["score"].is_sorted(descending=True)


@pytest.mark.parametrize(
    "options",
    [
        {
            "early_stopping.metric": "loss",
            "train.validate_every": 2,
            "model.clip_memory": True,
        },
        {
            "data.split.kind": "users",
            "model.prefs_sampling": "unpop",
            "negatives.candidates": 3,
        },
        {
            "data.split.valid": 0.0,
            "evaluation.definitions": "paper",
            "loss.copy_relation": True,
            "negatives.candidates": 4,
            "negatives.hardest": 1,
        },
    ],
)
def test_options_run(small, tmp_path, options):
    best = best_checkpoint(experiment.fit(make_config(small, **options), tmp_path))
    assert 0 < experiment.test(best)["recall@20"]["mean"] <= 1


def test_without_improvement_it_stops(small, tmp_path):
    """A learning rate of almost nothing: the first validation stays the best."""
    options = {"optimizer.learning_rate": 1e-12, "early_stopping.patience": 2, "train.epochs": 50}
    for _ in range(2):  # and stays stopped
        experiment.fit(make_config(small, **options), tmp_path / "every")
        assert len(losses(tmp_path / "every")) == 3
    options |= {"train.validate_every": 3}  # patience counts validations
    experiment.fit(make_config(small, **options), tmp_path / "third")
    assert len(losses(tmp_path / "third")) == 9


@pytest.mark.parametrize("known", ["train", "train+valid"])
def test_histories_on_test_are_the_configured_parts(small, tmp_path, known):
    """Recall of popularity by hand."""
    options = {"model.name": "popularity", "evaluation.known": known}
    run = experiment.fit(make_config(small, **options), tmp_path)
    found = experiment.test(best_checkpoint(run))["recall@10"]["mean"]
    data = run.dataset
    train, valid, test = (part.toarray() for part in (data.train, data.valid, data.test))
    hidden = train | valid if known == "train+valid" else train
    score = np.where(hidden, -np.inf, train.sum(axis=0)[None])
    top = np.argsort(-score, axis=1, kind="stable")[:, :10]
    hits, count = np.take_along_axis(test, top, axis=1).sum(axis=1), test.sum(axis=1)
    np.testing.assert_allclose(found, (hits / np.maximum(count, 1))[count > 0].mean(), rtol=1e-6)


def test_hlr_beats_popularity(small, tmp_path):
    """On six clusters of items, of which a user favours three."""
    synthetic.generate(200, 300, 10_000, seed=1).write_csv(tmp_path / "own.csv")
    options = {"data.path": str(tmp_path / "own.csv"), "train.epochs": 20, "loss.margin": 1.0}
    options |= {"optimizer.learning_rate": 0.03, "negatives.candidates": 5, "model.dim": 16}
    ndcg = {}
    for name in ("hlr", "popularity"):
        config = make_config(small, **options, **{"model.name": name})
        best = best_checkpoint(experiment.fit(config, tmp_path / name))
        ndcg[name] = experiment.test(best)["ndcg@10"]["mean"]
    assert ndcg["hlr"] > 1.3 * ndcg["popularity"]


def test_validation_loss_uses_the_histories_of_held_out_users(small, tmp_path):
    """Not their embeddings, which are not trained."""
    options = {"data.split.kind": "users", "early_stopping.metric": "loss", "train.epochs": 1}
    run = experiment.fit(make_config(small, **options), tmp_path)
    held_out = np.flatnonzero(np.diff(run.dataset.valid.indptr))
    assert not np.diff(run.dataset.train.indptr)[held_out].any()
    state, place, values = newest_state(run), build.placement_of(run).place, []
    for number in (0.0, 0.5):
        state.params["users"][held_out] = number
        values.append(fit._Validation(run)(place(state), 1)[0])
    assert values[0] == values[1] < 0


def losses(workdir):
    return [record["loss"] for record in read_log(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """Losses without any option."""
    workdir = tmp_path_factory.mktemp("plain")
    experiment.fit(make_config(small), workdir)
    return losses(workdir)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer.schedule": "exponential", "optimizer.decay": 0.1},
        {"optimizer.schedule": "cosine", "optimizer.cosine_epochs": 3},
        {"optimizer.warmup_epochs": 2},
        {"optimizer.clip_gradient": 0.01},
    ],
)
def test_options_of_the_optimizer_act_and_survive_resuming(small, plain, tmp_path, options):
    experiment.fit(make_config(small, **options), tmp_path / "whole")
    first = make_config(small, **options, **{"train.epochs": 2})
    experiment.fit(first, tmp_path / "parts")
    experiment.fit(make_config(small, **options), tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert losses(tmp_path / "whole")[2] != plain[2]


def test_the_size_of_scoring_batches_changes_nothing(small, tmp_path):
    whole = experiment.train_and_evaluate(make_config(small), tmp_path)
    small = make_config(small, **{"scoring.batch_size": 7})
    run = open_run(small, tmp_path)
    again = experiment.test(best_checkpoint(run))
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(again[name]["mean"], value["mean"], rtol=1e-5, err_msg=name)


def test_analysis_leaves_relations_and_a_plot(small, tmp_path):
    lines = "".join(f"{item},T{item},{'abc'[item % 3]}|d\n" for item in range(40))
    (tmp_path / "items.csv").write_text(f"item,title,kinds\n{lines}")
    changes = {"data.titles.path": str(tmp_path / "items.csv"), "data.titles.categories": "kinds"}
    config = make_config(small, **changes)
    run = experiment.fit(config, tmp_path / "run")
    found = experiment.analyse(best_checkpoint(run))
    assert found["d"]["nearest"] <= 1
    assert set(found) == {"all", "a", "b", "c", "d"}
    with np.load(run.workdir / "relations.npz", allow_pickle=False) as relations:
        assert relations["vectors"].shape == (found["all"]["interactions"], 8)
        assert len(relations["user_ids"]) == len(relations["item_ids"]) == len(relations["vectors"])
    assert (run.workdir / "plots" / "relations.svg").stat().st_size > 1000


# Pretrained tables.


@pytest.fixture(scope="module")
def pretrained(small, tmp_path_factory):
    """A finished run of CML."""
    workdir = tmp_path_factory.mktemp("pretrained") / "cml"
    config = make_config(small, **{"model.name": "cml"})
    experiment.fit(config, workdir)
    return open_run(config, workdir)


def test_frozen_tables_of_another_run_stay(small, tmp_path, pretrained):
    changes = {
        "pretrained.user_vectors": str(pretrained.workdir),
        "pretrained.item_vectors": str(pretrained.workdir),
        "pretrained.freeze": "items",
    }
    config = make_config(small, **changes)
    experiment.fit(config, tmp_path)
    params = newest_state(open_run(config, tmp_path)).params
    given = best_checkpoint(pretrained).params
    np.testing.assert_array_equal(params["items"], given["items"])
    assert (params["users"] != given["users"]).any()


def test_a_run_without_user_vectors_has_none_to_give(small, tmp_path):
    items = make_config(small, **{"model.name": "cml", "model.users": "items", "train.epochs": 1})
    experiment.fit(items, tmp_path / "items")
    config = make_config(small, **{"pretrained.user_vectors": str(tmp_path / "items")})
    with pytest.raises(UserError, match="represents its users by their items"):
        experiment.fit(config, tmp_path / "run")


@pytest.mark.parametrize("space", ["ball", "sphere"])  # whose rows end with a bias
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_vectors_of_a_file_are_matched_by_id(small, tmp_path, kind, space):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32) / 8
    path = tmp_path / f"items.{kind}"
    order = np.random.default_rng(1).permutation(40)
    if kind == "npz":  # in any order, and one item is missing
        np.savez(path, ids=order[:39], vectors=vectors[order[:39]])
    else:
        np.save(path, vectors)
    changes = {
        "pretrained.item_vectors": str(path),
        "pretrained.freeze": "both",
        "model.space": space,
    }
    config = make_config(small, **changes)
    experiment.fit(config, tmp_path / "run")
    run = open_run(config, tmp_path / "run")
    found = newest_state(run).params["items"]
    known = np.ones(40, bool)
    if kind == "npz":
        known[order[39]] = False
        drawn = build.initial_state(run).params["items"]
        np.testing.assert_array_equal(found[order[39]], drawn[order[39]])
    np.testing.assert_array_equal(found[known, :8], vectors[known])
    assert (found[:, 8:] == 0).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"ids": [1], "vectors": np.ones((1, 3))}, "model.dim"),
        ({"ids": [1, 2], "vectors": np.ones((1, 8))}, "2 ids for 1 vectors"),
        ({"ids": ["x"], "vectors": np.ones((1, 8))}, "none of its 1 ids"),
        ({"ids": [1], "vectors": np.full((1, 8), np.nan)}, "NaN or infinite"),
        ({"vectors": np.ones((1, 8))}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_vectors_that_do_not_fit(small, tmp_path, content, said):
    path = tmp_path / "items.npz"
    if content:
        np.savez(path, **content)
    config = make_config(small, **{"pretrained.item_vectors": str(path)})
    with pytest.raises(UserError, match=rf"pretrained.item_vectors=.*{said}"):
        experiment.fit(config, tmp_path / "run")


def test_metrics_at_a_k_that_no_user_reaches_are_absent(small, tmp_path):
    """At each k users with k test items are measured; nobody has 20."""
    options = {"evaluation.min_test_items": "k", "early_stopping.metric": "ndcg@1"}
    found = experiment.train_and_evaluate(make_config(small, **options), tmp_path)
    written = json.loads((tmp_path / "test_metrics.json").read_text())
    assert written["metrics"] == found
    count = written["n_users_at"]
    assert count["1"] > count["5"] > count["20"] == 0
    assert "ndcg@5" in found
    assert "ndcg@20" not in found


@pytest.mark.parametrize("least", ["k", "39"])
def test_early_stopping_needs_users(small, tmp_path, least):
    options = {"evaluation.min_test_items": least, "early_stopping.metric": "ndcg@30"}
    with pytest.raises(UserError, match="no user has so many validation items, so ndcg@30"):
        experiment.fit(make_config(small, **options), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_that_cannot_be_compared_are_not(small, tmp_path):
    """Training is refused, a test is not, and the run is resumed with what it was."""
    experiment.fit(make_config(small, **{"train.epochs": 1}), tmp_path)
    others = {"definitions": "paper", "min_test_items": "2", "n_cohorts": 1, "cohort_size": 5}
    for name, value in others.items():
        config = make_config(small, **{f"evaluation.{name}": value})
        with pytest.raises(UserError, match=f"validated with evaluation.{name}="):
            experiment.fit(config, tmp_path)
        experiment.test(best_checkpoint(open_run(config, tmp_path)))
    experiment.fit(make_config(small), tmp_path)
    assert len(losses(tmp_path)) == 3


def test_validation_by_candidates_is_that_by_all_items_that_matter(
    small, tmp_path, monkeypatch, capsys
):
    """The 30 closest of 40 items hold a list of ten; ten candidates are ranked by the relation."""
    monkeypatch.setattr(build, "MANY", 1)
    values = {}
    for n in (0, 30, 10):
        config = make_config(small, **{"evaluation.validation_candidates": n})
        run = experiment.fit(config, tmp_path / str(n))
        values[n] = [line["ndcg@10"] for line in read_log(run.workdir / "metrics.jsonl")]
    assert values[30] == pytest.approx(values[0], rel=0.05)
    assert values[10] != pytest.approx(values[0], rel=1e-6)
    out = " ".join(capsys.readouterr().out.split())
    assert "Validation ranks 30 of 40 items for each user; test ranks all." in out


def test_the_gate_opens_while_validation_improves(small, tmp_path):
    """Stage by stage from the best epoch so far, the same when stopped and resumed in any."""
    recipe = small | {
        "model.name": "hlr-r",
        "model.space": "sphere",
        "model.gates": (0.0, 0.5, 1.0, 2.0),
        "loss.kind": "softmax",
        "negatives.candidates": 20,
        "negatives.sampled": 4,
        "negatives.shared": True,
        "negatives.weights": "popularity",
        "negatives.correction": True,
        "early_stopping.patience": 2,
        "train.epochs": 40,
    }
    whole = experiment.fit(config_lib.make_config(recipe), tmp_path / "whole")
    log = read_log(whole.workdir / "metrics.jsonl")
    gates = [line["gate"] for line in log]
    assert gates[0] == 0.0
    assert gates == sorted(gates)
    stages = sorted(set(gates))
    assert len(stages) > 1
    best = max(log, key=lambda line: (line["ndcg@10"], -line["epoch"]))
    chosen = best_checkpoint(whole)
    assert chosen.epoch == best["epoch"]
    assert chosen.params["model"]["relation_gate"] == np.float32(best["gate"])
    for gate, before in zip(stages[1:], stages, strict=False):  # none without an improvement
        earlier = [line["ndcg@10"] for line in log if line["gate"] < before]
        here = [line["ndcg@10"] for line in log if line["gate"] == before]
        assert max(here) > max(earlier, default=-1.0), gate
    if len(stages) < 4:  # the last stage that was tried brought none, or training was over
        earlier = [line["ndcg@10"] for line in log if line["gate"] < stages[-1]]
        here = [line["ndcg@10"] for line in log if line["gate"] == stages[-1]]
        assert max(here) <= max(earlier) or len(log) == 40

    switch = gates.index(stages[1])
    for number, epochs in enumerate((switch, switch + 1)):
        parts = tmp_path / f"parts{number}"
        experiment.fit(config_lib.make_config(recipe | {"train.epochs": epochs}), parts)
        resumed = experiment.fit(config_lib.make_config(recipe), parts)
        assert [line["gate"] for line in read_log(parts / "metrics.jsonl")] == gates
        states = [newest_state(run) for run in (whole, resumed)]
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", [{"model.space": "sphere", "model.gates": (0.0, 0.5)}, {}])
def test_refitting_trains_validation_too_as_was_chosen(small, tmp_path, how, monkeypatch):
    """For the chosen epochs and gates; and the same when it was stopped on the way."""
    options = small | how | {"model.name": "hlr-r", "train.epochs": 8}
    plain = experiment.fit(make_config(options), tmp_path / "plain")
    config = make_config(options, **{"train.refit": True})
    whole = experiment.fit(config, tmp_path / "whole")
    np.testing.assert_array_equal(
        newest_state(plain).params["items"], newest_state(whole).params["items"]
    )
    log = read_log(whole.workdir / "metrics.jsonl")
    best = max(log, key=lambda line: (line["ndcg@10"], -line["epoch"]))
    stages = fit.chosen_stages(whole)
    assert how or stages == [(1.0, best["epoch"])]
    assert stages[-1][0] == best.get("gate", 1.0)
    n_epochs = sum(n for _, n in stages)
    assert len(read_log(whole.workdir / "refit" / "metrics.jsonl")) == n_epochs

    chosen = best_checkpoint(whole)
    assert chosen.epoch == n_epochs
    assert chosen.run.dataset.train.nnz == whole.dataset.train.nnz + whole.dataset.valid.nnz
    assert 0 < experiment.test(chosen)["recall@20"]["mean"] <= 1
    assert (whole.workdir / "test_metrics.json").exists()

    with monkeypatch.context() as stopped:
        less = [*stages[:-1], (stages[-1][0], stages[-1][1] - 1)]
        stopped.setattr(fit, "chosen_stages", lambda run: less)
        experiment.fit(config, tmp_path / "parts")
    resumed = best_checkpoint(experiment.fit(config, tmp_path / "parts"))
    assert resumed.epoch == n_epochs
    for a, b in zip(*map(jax.tree.leaves, (chosen.params, resumed.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_refitting_does_not_rank_what_it_was_trained_on(small):
    with pytest.raises(UserError, match="train.refit and evaluation.known='train'"):
        make_config(small, **{"train.refit": True, "evaluation.known": "train"})


def test_a_gate_that_cannot_open_is_told(small, tmp_path, capsys):
    options = {"data.split.valid": 0.0, "model.space": "sphere", "model.gates": (0.0, 0.5)}
    run = experiment.fit(make_config(small, **options), tmp_path)
    assert "model.gates=(0.0, 0.5): there is no validation part" in capsys.readouterr().err
    assert best_checkpoint(run).params["model"]["relation_gate"] == 0.0
