"""The program from outside: a run and what it leaves, resuming it, recommending, and mistakes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import polars as pl
import pytest
from conftest import ROOT, left


def contents(folder):
    """Hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def final_params(workdir):
    """Every array of the newest checkpoint."""
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.is_dir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir / "checkpoints" / str(newest) / "default")
    flat = {}

    def collect(prefix, node):
        items = node.items() if isinstance(node, dict) else enumerate(node or ())
        for name, value in items:
            if isinstance(value, (dict, list, tuple)):
                collect(f"{prefix}/{name}", value)
            elif value is not None:
                flat[f"{prefix}/{name}"] = np.asarray(value)

    collect("", state)
    return newest, flat


def assert_identical(a, b):
    (epoch_a, a), (epoch_b, b) = final_params(a), final_params(b)
    assert epoch_a == epoch_b
    assert a.keys() == b.keys()
    assert len(a) > 8  # tables, memory and the moments of each
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# A run.


def test_a_run_leaves_what_it_promises(cli, trained):
    workdir, out = trained
    log = log_of(workdir)
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert {"step", "loss", "examples_per_s", "ndcg@10"} <= log[0].keys()
    found = json.loads((workdir / "test_metrics.json").read_text())
    ndcg = found["metrics"]["ndcg@10"]
    assert set(ndcg) == {"mean", "low", "high", "sd_over_cohorts", "p"}
    assert 0 < ndcg["low"] < ndcg["mean"] < ndcg["high"]
    assert f"{100 * ndcg['mean']:.2f}±{50 * (ndcg['high'] - ndcg['low']):.1f}" in out
    assert re.search("hlr (against|below) popularity: p", " ".join(out.split()))
    page = (workdir / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert f"[{100 * ndcg['low']:.1f}, {100 * ndcg['high']:.1f}]" in page
    assert found["n_users"] > 0
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["model.dim"] == 8
    assert "jax" in config["versions"]
    assert (workdir / "plots" / "learning_curve.svg").stat().st_size > 1000
    assert "popularity" in out
    assert sum("Title " in line for line in out.splitlines()) == 10  # recommendations
    assert "because of" in out


def test_the_same_command_resumes_and_the_result_is_that_of_one_run(cli, trained, tmp_path):
    workdir, _ = trained
    status, out, err = cli.run(*cli.small, f"--workdir={tmp_path}", "--config.train.epochs=1")
    assert status == 0, err
    status, out, err = cli.run(*cli.small, f"--workdir={tmp_path}")
    assert status == 0, err
    assert "Resuming after epoch 1" in out
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert config["train.epochs"] == 3  # may change, and is written again
    assert_identical(tmp_path, workdir)
    assert left(tmp_path) == left(workdir)


def test_eight_devices_do_what_one_does(cli, trained, tmp_path):
    status, out, err = cli.run(*cli.small, f"--workdir={tmp_path}", devices=8)
    assert status == 0, err
    assert "8 cpu device" in out
    one, eight = ([record["loss"] for record in log_of(path)] for path in (trained[0], tmp_path))
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_tables_may_be_divided_and_devices_change_on_the_way(cli, tmp_path):
    flags = [*cli.small, "--config.optimizer.rows=lazy", "--config.early_stopping.metric=loss"]
    divided = [*flags, "--config.parallel.tables=sharded", f"--workdir={tmp_path / 'divided'}"]
    runs = [
        ([*flags, f"--workdir={tmp_path / 'whole'}"], 1),
        ([*divided, "--config.train.epochs=1"], 4),  # 60 users and 40 items
        (divided, 7),
    ]
    for command, devices in runs:
        status, _, err = cli.run(*command, devices=devices)
        assert status == 0, err
    whole, divided = log_of(tmp_path / "whole"), log_of(tmp_path / "divided")
    for name in ("loss", "loss_valid"):
        values = [[record[name] for record in log] for log in (divided, whole)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    found = [
        json.loads((tmp_path / name / "test_metrics.json").read_text())["metrics"]["recall@20"]
        for name in ("divided", "whole")
    ]
    assert found[0]["mean"] == pytest.approx(found[1]["mean"], abs=1e-5)


# Recommendations.


def test_reasons_and_exports_of_a_run(cli, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    users = ["--config.recommend.users=17,3", "--config.recommend.k=2"]
    only = "--config.recommend.only_items=1,2,3,5,8,13,21,34"
    flags = [f"--workdir={workdir}", *users, only, "--config.recommend.candidates=4"]
    status, out, err = cli.run("--mode=explain", *flags, "--config.recommend.reasons=2")
    assert status == 0, err
    table = pl.read_parquet(workdir / "reasons.parquet")
    assert table["user_id"].to_list() == [17] * 4 + [3] * 4
    assert table["rank"].to_list() == [1, 1, 2, 2] * 2
    assert set(table["item_id"]) <= {1, 2, 3, 5, 8, 13, 21, 34}
    assert (table["reason_title"] == "Title " + table["reason_item_id"].cast(pl.String)).all()
    assert f"{table['reason_title'][0]} (" in out
    status, _, err = cli.run("--mode=export", *flags)
    assert status == 0, err
    names = {"users.parquet", "items.parquet", "memory.npz", "score.jax"}
    assert {path.name for path in (workdir / "export").iterdir()} == names


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_recommendations_are_new_ranked_and_in_the_users_own_ids(cli, trained, format):
    workdir, _ = trained
    status, _, err = cli.run(
        "--mode=recommend",
        f"--workdir={workdir}",
        "--config.recommend.k=4",
        f"--config.recommend.format={format}",
        "--config.recommend.users=17,3",
    )
    assert status == 0, err
    path = workdir / f"recommendations.{format}"
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[format]
    table = read(path)
    path.unlink()
    assert table.columns == ["user_id", "item_id", "title", "score", "rank"]
    assert table["user_id"].to_list() == [17] * 4 + [3] * 4
    assert table["rank"].to_list() == [1, 2, 3, 4] * 2
    assert (table["title"] == "Title " + table["item_id"].cast(pl.String)).all()
    for user in (3, 17):
        assert table.filter(user_id=user)["score"].is_sorted(descending=True)


def test_evaluate_mode_gives_the_same_again(cli, trained):
    workdir, _ = trained
    before = (workdir / "test_metrics.json").read_text()
    status, out, err = cli.run("--mode=evaluate", f"--workdir={workdir}")
    assert status == 0, err
    assert "popularity" in out
    assert (workdir / "test_metrics.json").read_text() == before


# Mistakes: each one sentence that names the culprit, exit status 2, and nothing damaged.

FILES = {
    "empty.csv": "",
    "header.csv": "user,item,rating\n",
    "semicolons.csv": "user;item;rating\n1;2;3\n2;3;4\n",
    "columns.csv": "visitor,product,rating\n1,2,3\n",
    "text.csv": "user,item,rating\n1,2,3\n2,2,good\n",
    "nan.csv": "user,item,rating\n1,2,3\n2,2,nan\n",
    "negative.csv": "user,item,rating\n1,2,3\n-2,2,4\n",
    "ragged.csv": "user,item,rating\n1,2,3\n1,2,3,4\n",
    "one_user.csv": "user,item,rating\n1,2,3\n1,3,3\n1,4,3\n",
    "full.csv": "user,item\n1,1\n1,2\n2,1\n2,2\n",
    "good.csv": "user,item,rating\n1,2,3\n2,3,4\n",
}

CONFIGS = {
    "typo.py": "config.model.dimm = 3",
    "type.py": "config.model.dim = 'many'",
    "syntax.py": "config.model.dim = = 3",
    "crash.py": "1 / 0",
}

# (flags, what the sentence must name); {data}, {work} and {run} are folders.
MISTAKES = {
    **{
        name: (["--config.data.path={data}/" + name], said)
        for name, said in {
            "empty.csv": "empty.csv: the file is empty",
            "header.csv": "header.csv: it has a header",
            "semicolons.csv": "(separator ','); set data.separator=';'",
            "columns.csv": "data.columns.user",
            "text.csv": "text.csv, line 3: 'good' in column 'rating'",
            "nan.csv": "nan.csv, line 3: 'nan'",
            "negative.csv": "negative.csv, line 3: the user id -2 is negative",
            "ragged.csv": "ragged.csv, line 3: 4 fields",
            "one_user.csv": "only one user",
            "absent.csv": "absent.csv: No such file",
        }.items()
    },
    "n-core": (["--config.data.path={data}/good.csv", "--config.data.min_per_user=5"], "min_per_"),
    "threshold": (["--config.data.path={data}/good.csv", "--config.data.threshold=9"], "threshold"),
    "all items": (["--config.data.path={data}/full.csv", "--config.data.split.valid=0",
                   "--config.data.split.test=0"], "every user has all 2 items"),
    "no time": (["--config.data.split.kind=time", "--config.data.path={data}/good.csv"], "time"),
    "no data": (["--config.data.path="], "data.path"),
    "unknown key": (["--config.model.dimm=3"], "did you mean model.dim?"),
    "wrong type": (["--config.model.dim=many"], "config.model.dim=many"),
    "negative margin": (["--config.loss.margin=-1"], "loss.margin cannot be -1.0"),
    "infinite rate": (["--config.optimizer.learning_rate=inf"], "optimizer.learning_rate"),
    "unknown model": (["--config.model.name=svd"], "hlr, hlr++, hlr-r, cml"),
    "bad metric": (["--config.early_stopping.metric=auc@3"], "early_stopping.metric"),
    "bad shares": (["--config.data.split.test=0.9"], "data.split.test"),
    "unknown flag": (["--wrkdir=x"], "wrkdir"),
    "unknown mode": (["--mode=fly"], "--mode=fly"),
    "stray word": (["fly"], "'fly'"),
    "no config file": (["--config={data}/absent.py"], "absent.py: no such file"),
    "typo in file": (["--config={data}/typo.py"], "did you mean model.dim?"),
    "type in file": (["--config={data}/type.py"], "type.py, line 4"),
    "syntax in file": (["--config={data}/syntax.py"], "syntax.py, line 4"),
    "crash in file": (["--config={data}/crash.py"], "crash.py, line 4: ZeroDivisionError"),
    "users of items": (["--config.model.users=items", "--config.model.name=bpr"], "model.users"),
    "no users to take": (["--config.model.users=items", "--config.pretrained.user_vectors=u.npy"],
                         "pretrained.user_vectors"),
    "shared copies": (["--config.negatives.shared=true", "--config.loss.copy_relation=true"],
                      "cannot be combined"),
    "divided and dense": (["--config.parallel.tables=sharded"], "optimizer.rows=lazy"),
    "divided constants": (["--config.parallel.tables=sharded", "--config.optimizer.rows=lazy",
                           "--config.model.name=transcf"], "it can with hlr,"),
    "divided candidates": (["--config.parallel.tables=sharded", "--config.optimizer.rows=lazy",
                            "--config.recommend.candidates=9"], "recommend.candidates=0"),
    "unwritable": (["--workdir={data}/good.csv/run"], "cannot be written"),
    "not trained": (["--mode=recommend"], "train first"),
    "other config": (["--workdir={run}", "--config.model.dim=9"], "model.dim=8"),
    "other data": (["--workdir={run}", "--config.data.path={data}/good.csv"], "other data"),
    "unknown user": (["--workdir={run}", "--mode=recommend", "--config.recommend.users=x"], "'x'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """A folder of files and configs with mistakes."""
    folder = tmp_path_factory.mktemp("mistaken")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name, line in CONFIGS.items():
        text = "from hlrcml_jax.config import default_config\ndef get_config():\n"
        text += f"    config = default_config()\n    {line}\n    return config\n"
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence(cli, trained, mistaken, tmp_path, name):
    flags, said = MISTAKES[name]
    work, run = tmp_path / "work", tmp_path / "run"
    shutil.copytree(trained[0], run)
    before = contents(run)
    flags = [flag.format(data=mistaken, work=work, run=run) for flag in flags]
    status, _, err = cli.run(*cli.small, f"--workdir={work}", *flags)
    assert status == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("hlrcml_jax: ")
    assert said in lines[0]
    assert "Traceback" not in err
    assert not work.exists()
    assert contents(run) == before


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage", "config"])
def test_a_damaged_workdir_is_named(cli, trained, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    if damage == "config":
        (workdir / "config.json").write_text('{"config": 3')
    else:
        files = [
            path
            for path in (workdir / "checkpoints").rglob("*")
            if path.is_file() and "default" in path.parts
        ]
        assert len(files) > 3
        for path in files:
            if damage == "missing":
                path.unlink()
            elif damage == "truncated":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                path.write_bytes(b"\x80\x04garbage" * 40)
    before = contents(workdir)
    status, _, err = cli.run(*cli.small, f"--workdir={workdir}", "--config.train.epochs=5")
    assert status == 2, err
    assert str(workdir) in err
    assert "Traceback" not in err
    assert contents(workdir) == before


def test_a_loss_that_is_not_finite_stops_the_run(cli, tmp_path):
    status, _, err = cli.run(
        *cli.small, f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e38",
        "--config.model.clip_norm=1e30",
    )  # fmt: skip
    assert status == 2, err
    assert "the loss became" in err
    assert "step" in err


@pytest.mark.parametrize(("name", "value"), [("JAX_PLATFORMS", "none"), ("JAX_ENABLE_X64", "?")])
def test_a_wrong_environment_of_jax_gets_one_sentence(tmp_path, name, value):
    command = [sys.executable, "-m", "hlrcml_jax.main", "--mode=prepare", f"--workdir={tmp_path}"]
    flags = [f"--config={ROOT / 'configs' / 'default.py'}", "--config.data.path=nowhere.csv"]
    environment = os.environ | {name: value}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert name in sentence
