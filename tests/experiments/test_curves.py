"""The curves of runs: their best, what followed it, and a run without validation."""

import json

import pytest
from conftest import ROOT

from hlrcml_jax.errors import UserError


@pytest.fixture(scope="module")
def curves(load_program):
    return load_program(ROOT / "experiments" / "curves.py")


def fake_run(folder, lines):
    folder.mkdir()
    config = {"config": {"early_stopping.metric": "ndcg@10"}, "data": ""}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_follows_the_best_epoch(curves, tmp_path):
    values = {2: 0.1, 4: 0.4, 6: 0.3, 36: 0.1}  # the last is more than 30 epochs later
    lines = [{"epoch": n, "gate": float(n > 2), "ndcg@10": value} for n, value in values.items()]
    points = curves.curve(fake_run(tmp_path / "run", [*lines, {"epoch": 37}]))
    assert points["value"].to_list() == [10.0, 40.0, 30.0, 10.0]
    found = curves.summary("run", points)
    assert (found["best"], found["epoch"], found["gate"], found["last epoch"]) == (40, 4, 1, 36)
    assert found["lowest within 30 epochs, %"] == pytest.approx(75)
    curves.plot({"run": points}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_validation_is_named(curves, tmp_path):
    with pytest.raises(UserError, match="run: there is no validation"):
        curves.curve(fake_run(tmp_path / "run", [{"epoch": 1, "loss": 2.0}]))
