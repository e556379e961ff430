"""The model of docs/extending.md, in a file of its own, through every mode, with own functions."""

import json
import os
import re
import subprocess
import sys

import forked
import polars as pl
import pytest
from conftest import ROOT, with_devices

import hlrcml_jax as hlr

FUNCTIONS = '''
import jax
import jax.numpy as jnp


def smooth(positive_B, negative_BxN, log_weight_BxN, *, sharpness: float = 2.0):
    """A hinge without a corner."""
    z_BxN = sharpness * (negative_BxN - positive_B[:, None]) + log_weight_BxN
    return jnp.sum(jax.nn.softplus(z_BxN), axis=1)


def rarely(key, n, count_I, *, power: float = 0.5):
    """Popular items more often, but less than by their popularity."""
    log_q_I = jax.nn.log_softmax(power * jnp.log(count_I))
    item_N = jax.random.categorical(key, log_q_I, shape=(n,))
    return item_N, log_q_I[item_N]


def top(hits_BxK, relevant_B, k):
    return hits_BxK[:, 0]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Has `gated.py` of docs/extending.md, and functions beside it."""
    folder = tmp_path_factory.mktemp("own")
    (block,) = re.findall(
        r"```python\n(# gated.py\n.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S
    )
    (folder / "gated.py").write_text(block)
    (folder / "functions.py").write_text(FUNCTIONS)
    items = "".join(
        f"{item},Title {item},{'even' if item % 2 == 0 else 'odd'}\n" for item in range(40)
    )
    (folder / "items.csv").write_text(f"item,title,kind\n{items}")
    return folder


@pytest.fixture(scope="module")
def own(cli, folder):
    """Flags of a small run with the model, a loss, a sampler and a metric of one's own."""
    values = {
        "model.name": "gated:Gated",
        "model.options.start": 0.5,
        "loss.kind": "functions:smooth",
        "loss.options.sharpness": 3.0,
        "negatives.weights": "functions:rarely",
        "negatives.options.power": 0.25,
        "negatives.shared": True,
        "negatives.candidates": 20,
        "negatives.correction": True,
        "evaluation.metrics": "functions:top",
        "early_stopping.metric": "top@5",
        "data.titles.path": folder / "items.csv",
        "data.titles.categories": "kind",
    }
    return [*cli.small, *(f"--config.{name}={value}" for name, value in values.items())]


def run(folder, *flags, devices=1):
    """Output of the program in a process of its own, which must succeed."""
    program = forked.Program(flags, with_devices(devices), first=(forked.add_path, folder))
    out, err = program.communicate()
    assert program.returncode == 0, err
    return out


def run_afresh(folder, *flags):
    """Runs the program in a fresh interpreter in the folder; it must succeed."""
    command = [sys.executable, "-m", "hlrcml_jax.main", *map(str, flags)]
    paths = {"PYTHONPATH": str(ROOT)} | with_devices(1)
    subprocess.run(command, cwd=folder, env=os.environ | paths, check=True)


@pytest.fixture(scope="module")
def trained(own, folder):
    """The workdir of a run by the command line alone."""
    workdir = folder / "run"
    run_afresh(folder, *own, "--config.train.epochs=2", f"--workdir={workdir}")
    return workdir


def test_it_is_trained_and_resumed_with_its_options(trained, own, folder):
    values = json.loads((trained / "config.json").read_text())["config"]
    assert (values["model.name"], values["model.options.start"]) == ("gated:Gated", 0.5)
    run(folder, *own, f"--workdir={trained}")
    whole = folder / "whole"
    run(folder, *own, f"--workdir={whole}")
    found, expected = (
        json.loads((path / "test_metrics.json").read_text())["metrics"] for path in (trained, whole)
    )
    assert found == expected
    assert 0 <= found["top@5"]["mean"] <= 1
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_its_help_has_its_options(folder):
    flags = ["--help", "--config.model.name=gated:Gated"]
    _, out, _ = forked.run(flags, {}, first=(forked.add_path, folder))
    assert re.search(r"model.options.start.*initial value of the gate", out, re.DOTALL)


def test_it_goes_through_every_mode(trained, folder):
    left = {
        "evaluate": "test_metrics.json",
        "recommend": "recommendations.parquet",
        "explain": "reasons.parquet",
        "export": "export/score.jax",
        "analyse": "relations.json",
    }
    for mode, name in left.items():
        (trained / name).unlink(missing_ok=True)
        run_afresh(folder, f"--mode={mode}", f"--workdir={trained}", "--allow_code")
        assert (trained / name).exists()


def test_it_may_be_sharded(own, folder):
    flags = ["--config.parallel.tables=sharded", "--config.optimizer.rows=lazy"]
    workdir = folder / "sharded"
    run(folder, *own, *flags, f"--workdir={workdir}", devices=4)
    whole = folder / "lazy"
    run(folder, *own, flags[1], f"--workdir={whole}")
    found, expected = (
        json.loads((path / "test_metrics.json").read_text())["metrics"] for path in (workdir, whole)
    )
    for name in expected:
        assert found[name]["mean"] == pytest.approx(expected[name]["mean"], abs=1e-3)


def use(folder, workdir):
    """What a program of one's own makes of the run, as frames."""
    forked.add_path(folder)
    recommender = hlr.load(workdir, allow_code=True)
    history = [1, 2, 3, 4]
    return (
        recommender.recommend([1], k=3),
        recommender.recommend_new({"someone": history}, k=3),
        recommender.explain("someone", [5], history=history),
    )


def test_it_is_loaded_in_another_process(trained, folder):
    known, new, why = forked.call(with_devices(1), use, folder, trained)
    assert known.height == new.height == 3
    assert not set(new["item_id"]) & {1, 2, 3, 4}
    assert set(why["reason_item_id"]) <= {1, 2, 3, 4}
    assert why["share"].sum() == pytest.approx(1.0, abs=1e-5)
    assert isinstance(known, pl.DataFrame)
