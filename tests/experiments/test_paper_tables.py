"""The program of tables: its statistics by hand, and a comparison that is stopped and goes on."""

import json

import forked
import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from hlrcml_jax import devices
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError
from hlrcml_jax.runs import experiment

PROGRAM = ROOT / "experiments" / "paper_tables.py"


@pytest.fixture(scope="module")
def tables(load_program):
    return load_program(PROGRAM)


def test_holm_by_hand(tables):
    # 3 x 0.01, then 2 x 0.02 and 1 x 0.03, neither below the one before.
    np.testing.assert_allclose(tables.holm([0.03, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(tables.holm([0.6, 0.9]), [1.0, 1.0])


def fake_run(folder, seed, values, validation):
    workdir = folder / f"run-{seed}"
    workdir.mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(values))
    users = pl.DataFrame({"user_id": order, "ndcg@10": np.array(values)[order]})
    users.write_parquet(workdir / "test_users.parquet")
    summary = {"ndcg@10": {"mean": np.mean(values)}, "median_rank@10": {"mean": 7.0}}
    text = {"metrics": summary, "protocol": {"n_cohorts": 2}, "parameters": 1234}
    (workdir / "test_metrics.json").write_text(json.dumps(text))
    line = {"epoch": 1, "train_s": 1.5, "ndcg@10": validation}
    (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return workdir


def test_a_table_from_what_runs_leave(tables, tmp_path):
    """Users are paired by id, the rival is the best baseline of validation and not of test."""
    rng = np.random.default_rng(0)
    base = rng.random(40)
    runs = {
        "hlr": [base + 0.1 + 0.01 * rng.random(40) for _ in range(2)],
        "cml": [base, base],
        "bpr": [1.5 * base, 1.5 * base],
    }
    valid = {"hlr": 0.5, "cml": 0.4, "bpr": 0.3}
    results = {
        model: tables.Results(
            [fake_run(tmp_path / model, seed, v, valid[model]) for seed, v in enumerate(values)],
            ["ndcg@10"],
            "ndcg@10",
        )
        for model, values in runs.items()
    }
    table = tables.tabulate(results, ["ndcg@10"], ["hlr", "hlr++"])
    assert table.columns[-1] == "p against cml"
    row = dict(zip(table.columns, table.row(0), strict=True))
    assert row["p against cml"] < 1e-10
    assert table["p against cml"][1] is None
    np.testing.assert_allclose(row["ndcg@10"], 100 * np.mean(runs["hlr"]))
    assert (row["train s"], row["parameters"], row["MMR"]) == (1.5, 1234, 7.0)
    assert 10 < row["difference"] < 11  # percent
    assert "+10.5" in tables.markdown(table, ["ndcg@10"])
    assert r"$\pm$" in tables.latex(table, ["ndcg@10"])
    table = tables.tabulate(results, ["ndcg@10"], ["hlr"], against="bpr")
    assert table["p against bpr"].is_null().to_list() == [False, False, True]
    np.testing.assert_allclose(table["difference"][1], -50 * base.mean())


def results(tables, folder, users, stopping="ndcg@10"):
    """The results of a model, by {user id: value}."""
    workdir = fake_run(folder, 0, list(users.values()), 0.5)
    table = pl.DataFrame({"user_id": list(users), "ndcg@10": list(users.values())})
    table.write_parquet(workdir / "test_users.parquet")
    return tables.Results([workdir], ["ndcg@10"], stopping)


def test_users_are_paired_by_id(tables, tmp_path):
    """The two have other users in the same places."""
    ours = results(tables, tmp_path / "hlr", {"b": 0.5, "c": 0.9, "d": float("nan"), "e": 0.1})
    rival = results(tables, tmp_path / "cml", {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.4})
    np.testing.assert_allclose(np.sort(ours.differences(rival)), [0.3, 0.4])
    table = tables.tabulate({"hlr": ours, "cml": rival}, ["ndcg@10"], ["hlr"])
    np.testing.assert_allclose(table["difference"][0], 35.0)


@pytest.mark.parametrize("stopping", [("loss", "loss"), ("ndcg@10", "ndcg@5")])
def test_the_best_baseline_needs_one_metric_of_validation(tables, tmp_path, stopping):
    found = {
        model: results(tables, tmp_path / model, {"a": 0.5, "b": 0.2}, metric)
        for model, metric in zip(("hlr", "cml"), stopping, strict=True)
    }
    with pytest.raises(UserError, match=r"early_stopping\.metric"):
        tables.tabulate(found, ["ndcg@10"], ["hlr"])


def test_a_comparison_resumes_where_it_stopped(tmp_path):
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    small = {
        "data.name": "''", "data.path": tmp_path / "own.csv", "data.cache_dir": tmp_path / "cache",
        "data.threshold": None, "data.split.kind": "user", "model.dim": 8, "train.epochs": 2,
        "train.batch_size": 100,
    }  # fmt: skip
    command = [f"--configs={ROOT}/configs/compare.py:data=ml-100k,loss=hinge"]
    command += [f"--folder={tmp_path / 'runs'}", "--seeds=1,2"]
    command += [f"--set={name}={value}" for name, value in small.items()]

    def run(models):
        status, out, err = forked.run([*command, f"--models={models}"], {}, PROGRAM)
        assert status == 0, err
        return out

    run("cml")
    left = tmp_path / "runs" / "cml-2" / "test_users.parquet"
    before = left.stat().st_mtime_ns
    out = run("popularity,cml,hlr")
    assert left.stat().st_mtime_ns == before
    table = pl.read_csv(tmp_path / "runs" / "table.csv")
    assert table["model"].to_list() == ["popularity", "cml", "hlr"]
    assert (tmp_path / "runs" / "table.tex").read_text().count(r"\\") == 4
    assert (tmp_path / "runs" / "table.md").read_text() in out
    # A finished run of another config is not taken for this one's.
    status, _, err = forked.run([*command, "--models=cml", "--set=model.dim=9"], {}, PROGRAM)
    assert status == 2
    assert "model.dim=8" in err


def test_seeds_are_trained_side_by_side_where_that_is_faster(tables, small, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "side_by_side", lambda: 8)
    sizes, fit_runs = [], experiment.fit_runs

    def watched(begun, *args):
        sizes.append(len(begun))
        fit_runs(begun, *args)

    monkeypatch.setattr(experiment, "fit_runs", watched)
    (tmp_path / "small.py").write_text(
        "from hlrcml_jax.config import make_config\n"
        "def get_config(text):\n    return make_config({'model.name': text.partition('=')[2]})\n"
    )
    tables.run_all(f"{tmp_path / 'small.py'}", ["cml", "popularity"], [1, 2, 3], tmp_path, small)
    assert sizes == [3, 1, 1, 1, 3, 1, 1, 1]  # the others find nothing left to train
    logs = [(tmp_path / f"cml-{seed}" / "metrics.jsonl").read_text() for seed in (1, 2, 3)]
    assert [log.count("\n") for log in logs] == [3, 3, 3]
    assert len(list(tmp_path.glob("*/test_users.parquet"))) == 6
