"""The search: what it draws, what it drops, and that it goes on where it was."""

import forked
import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from hlrcml_jax import config as config_lib
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import UserError

PROGRAM = ROOT / "experiments" / "sweep.py"


@pytest.fixture(scope="module")
def sweep(load_program):
    return load_program(PROGRAM)


def test_draws_are_of_the_space(sweep):
    rng = np.random.default_rng(0)
    space = {"rate": (0.001, 1.0), "kind": ["a", "b"]}
    drawn = [sweep.draw(space, rng) for _ in range(300)]
    rates = np.array([values["rate"] for values in drawn])
    assert 0.001 <= rates.min() < rates.max() <= 1.0
    assert 0.4 < np.mean(rates < 0.001**0.5) < 0.6  # half of them in half of the decades
    assert {values["kind"] for values in drawn} == {"a", "b"}


def test_all_combinations_of_lists(sweep):
    space = {"model.dim": [4, 8], "loss.kind": ["hinge", "softmax"], "seed": [1]}
    trials = sweep.combine(space)
    assert len(trials) == 4
    assert {(t["model.dim"], t["loss.kind"]) for t in trials} == {
        (dim, kind) for dim in (4, 8) for kind in ("hinge", "softmax")
    }
    with pytest.raises(UserError, match="a range of loss.margin"):
        sweep.combine({"loss.margin": (0.1, 1.0)})


def test_each_value_on_its_own(sweep):
    found = sweep.one_by_one({"a": [1, 2], "b": ["x"]})
    assert found == [{}, {"a": 1}, {"a": 2}, {"b": "x"}]


@pytest.mark.parametrize("each", [True, False])
def test_values_of_any_kind_have_a_place_in_the_table(sweep, each, tmp_path):
    values = {"gates": (0.0, 0.5), "kind": "x", "dim": 8}
    done = {"trial": 0, "epochs": 2, "value": 0.5}
    table = sweep.tabulate([done, *(done | {name: x} for name, x in values.items())], each)
    table.write_csv(tmp_path / "trials.csv")
    written = pl.read_csv(tmp_path / "trials.csv")
    if each:
        assert written["change"].to_list() == ["", "gates=(0.0, 0.5)", "kind=x", "dim=8"]
    else:
        assert [*written.row(1)[3:], *written.row(2)[4:5]] == ["(0.0, 0.5)", None, None, "x"]


def test_no_trial_begins_when_the_time_is_over(sweep, monkeypatch, tmp_path):
    clock, trained = [0.0], []

    def train(configs, workdirs):
        clock[0] += 30.0  # seconds
        trained.extend(workdir.name for workdir in workdirs)
        return [float(workdir.name[-1]) for workdir in workdirs]

    monkeypatch.setattr(sweep, "train", train)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    base = config_lib.flatten(config_lib.default_config())
    trials = [{"model.dim": 1 + n} for n in range(5)]
    rows = sweep.search(base, trials, tmp_path, [2, 6], 1.0, minutes=1.1)
    assert trained == ["trial-000", "trial-001", "trial-002"]
    assert [row["trial"] for row in rows] == [2, 1, 0, 3, 4]
    assert [row["epochs"] for row in rows] == [2, 2, 2, 0, 0]


def test_the_best_third_is_trained_further(sweep, monkeypatch, tmp_path):
    """Trial n reaches n / 10 at once; what is dropped is not trained again."""
    asked = []

    def train(configs, workdirs):
        names = [workdir.name for workdir in workdirs]
        asked.extend((n, config.train.epochs) for n, config in zip(names, configs, strict=True))
        return [int(name[-1]) / 10 for name in names]

    monkeypatch.setattr(sweep, "train", train)
    base = config_lib.flatten(config_lib.default_config())
    trials = [{"model.dim": 1 + n} for n in range(9)]
    rows = sweep.search(base, trials, tmp_path, [2, 6, 9], 1 / 3)
    assert [name for name, rung in asked if rung == 6] == ["trial-008", "trial-007", "trial-006"]
    assert [name for name, rung in asked if rung == 9] == ["trial-008"]
    assert [row["trial"] for row in rows[:4]] == [8, 7, 6, 5]
    assert (rows[0]["model.dim"], rows[0]["epochs"], rows[0]["value"]) == (9, 9, 0.8)


def test_a_stopped_sweep_resumes(tmp_path):
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    space = "def get_space():\n    return {'model.dim': [4, 8], 'loss.margin': (0.1, 1.0)}\n"
    (tmp_path / "space.py").write_text(space)

    def run(*flags):
        command = [
            f"--config={ROOT}/configs/default.py", "--trials=3", "--keep=0.4",
            f"--space={tmp_path / 'space.py'}", f"--folder={tmp_path / 'sweep'}",
            f"--set=data.path={tmp_path / 'own.csv'}", f"--set=data.cache_dir={tmp_path / 'cache'}",
            "--set=model.name=cml", *flags,
        ]  # fmt: skip
        status, out, err = forked.run(command, {}, PROGRAM)
        assert status == 0, err
        return out, pl.read_csv(tmp_path / "sweep" / "trials.csv")

    _, first = run("--epochs=1")
    said, both = run("--epochs=1,2")
    assert "Resuming after epoch 1" in said
    assert both["epochs"].to_list() == [2, 1, 1]
    assert set(both["trial"]) == set(first["trial"]) == {0, 1, 2}
    before = dict(zip(first["trial"], first["value"], strict=True))
    assert all(
        row["value"] == before[row["trial"]] for row in both.iter_rows(named=True)
        if row["epochs"] == 1
    )  # fmt: skip
    assert (tmp_path / "sweep" / "trials.png").stat().st_size > 5000
    assert not list((tmp_path / "sweep").glob("*/test_metrics.json"))
