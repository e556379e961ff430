"""Runs side by side: each ends as it would have alone."""

import itertools
import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlrcml_jax import config as config_lib
from hlrcml_jax import devices
from hlrcml_jax.errors import Diverged, Terminated
from hlrcml_jax.runs import experiment
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.training.loop import Training, train
from hlrcml_jax.training.preemption import Terminations
from hlrcml_jax.training.step import TrainState


@pytest.fixture(scope="module")
def base(small):
    more = {"model.memory_radius": 0.5, "train.epochs": 4, "early_stopping.patience": 2}
    return small | {"model.name": "hlr"} | more


def left(run):
    """(losses and metrics by epoch, parameters of the best checkpoint) of a run."""
    lines = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    names = ("epoch", "step", "loss", "ndcg@10", "recall@10")
    log = np.array([[line[name] for name in names] for line in lines])
    return log, best_checkpoint(run).params


def assert_same(runs, others):
    for run, other in zip(runs, others, strict=True):
        (log, params), (expected_log, expected_params) = left(run), left(other)
        np.testing.assert_allclose(log, expected_log, rtol=1e-4, atol=1e-6)
        for found, expected in zip(*map(jax.tree.leaves, (params, expected_params)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer.schedule": "exponential", "optimizer.warmup_epochs": 1},
        {
            "model.name": "hlr-r",
            "model.users": "items",
            "loss.kind": "softmax",
            "negatives.candidates": 6,
            "negatives.hardest": 2,
            "optimizer.rows": "lazy",
            "optimizer.clip_gradient": 1.0,
        },
    ],
)
def test_each_ends_as_it_would_have_alone(base, tmp_path, options):
    """Also the one that learns nothing, and stops early while the others go on."""
    changes = [
        {"seed": 3, "loss.margin": 0.5, "model.memory_radius": 0.05, "model.key_scale": 5.0},
        {"optimizer.learning_rate": 0.003, "loss.temperature": 0.7, "model.sharpness": 6.0},
        {"optimizer.learning_rate": 1e-9},
    ]
    configs = [config_lib.make_config(base | options | change) for change in changes]
    alone = [experiment.fit(config, tmp_path / f"{n}") for n, config in enumerate(configs)]
    folders = [tmp_path / f"together-{n}" for n in range(3)]
    together = experiment.fit_all(configs, folders, side_by_side=3)
    assert_same(together, alone)
    losses = [left(run)[0][:, 2] for run in together]
    assert len(losses[2]) == 3 < max(map(len, losses)) == 4
    assert len({loss_T[-1] for loss_T in losses}) == 3


def test_each_resumes_from_its_own_epoch(base, tmp_path):
    def fit(name, epochs, seeds):
        config = base | {"train.epochs": epochs, "early_stopping.patience": 9}
        configs = [config_lib.make_config(config | {"seed": seed}) for seed in seeds]
        folders = [tmp_path / f"{name}-{seed}" for seed in seeds]
        return experiment.fit_all(configs, folders, side_by_side=3)

    fit("stopped", 1, [1])
    fit("stopped", 2, [2])
    fit("stopped", 4, [3])
    assert_same(fit("stopped", 4, [1, 2, 3, 4]), fit("never", 4, [1, 2, 3, 4]))


def test_what_differs_in_more_is_trained_apart(base, tmp_path, monkeypatch):
    sizes = []
    fit_runs = experiment.fit_runs

    def watched(begun, *args):
        sizes.append([run.workdir.name for run, _ in begun])
        fit_runs(begun, *args)

    monkeypatch.setattr(experiment, "fit_runs", watched)
    changes = [
        {"seed": 1, "model.dim": 8},
        {"seed": 2, "model.memory_radius": None},
        {"seed": 3, "model.dim": 8},
        {"seed": 4, "model.dim": 8},
        {"model.name": "ease"},
    ]
    configs = [config_lib.make_config(base | {"train.epochs": 1} | change) for change in changes]
    folders = [tmp_path / str(n) for n in range(5)]
    runs = experiment.fit_all(configs, folders, side_by_side=2)
    assert sizes == [["0", "2"], ["3"], ["1"], ["4"]]
    assert [run.workdir for run in runs] == folders
    assert all((folder / "metrics.jsonl").read_text().count("\n") == 1 for folder in folders)


def test_one_that_diverges_ends_with_a_warning(base, tmp_path, capfd):
    rates = [0.01, 1e38]
    configs = [config_lib.make_config(base | {"optimizer.learning_rate": r}) for r in rates]
    with pytest.raises(Diverged, match="lower optimizer.learning_rate"):
        experiment.fit(configs[1], tmp_path / "diverges")
    alone = experiment.fit(configs[0], tmp_path / "alone")
    capfd.readouterr()
    runs = experiment.fit_all(configs, [tmp_path / "good", tmp_path / "bad"], side_by_side=2)
    assert f"{tmp_path / 'bad'}: the loss became nan in step" in capfd.readouterr().err
    assert_same(runs[:1], [alone])
    assert len(left(runs[1])[0]) < len(left(runs[0])[0])


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [(signal.SIGINT, KeyboardInterrupt, "Ctrl-C"), (signal.SIGTERM, Terminated, "SIGTERM")],
)
def test_the_first_signal_is_noted_and_the_second_ends_at_once(number, kind, says):
    def ends(*_):
        raise ZeroDivisionError

    before = signal.signal(number, ends)
    try:
        with Terminations() as terminations:
            assert not terminations.asked()
            signal.raise_signal(number)
            assert terminations.asked()
            notice = terminations.notice(7)
            with pytest.raises(ZeroDivisionError):
                signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    with pytest.raises(kind, match=f"stopped by {says}; epoch 7 is saved"):
        raise notice


def in_training(params, epoch, validate_every=2):
    """(a run of three steps an epoch, the list of what it did)."""
    state = TrainState(params, (), jnp.int32(epoch), jnp.float32(0.5), jnp.int32(2))
    done = []

    def validate(state, epoch):
        return 0.7, {"ndcg@10": 0.7}

    run = Training(
        "run",
        devices.replicate(state),
        epoch,
        n_examples=25,
        batch_size=10,
        epochs=9,
        patience=3,
        min_improvement=0.0,
        validate_every=validate_every,
        validate=validate,
        save=lambda epoch, state, value: done.append((epoch, value)),
        report=done.append,
    )
    return run, done


PARAMS = {"users": np.ones((4, 2), np.float32), "items": np.ones((3, 2), np.float32)}


def test_an_epoch_is_reported_and_saved_when_it_is_validated_or_stopped():
    run, done = in_training(PARAMS, 2)
    run.after_epoch(np.array([5.0, 10.0, 35.0]), 3.0, False)
    of_epoch = {"epoch": 3, "step": 9, "loss": 2.0, "examples_per_s": 8.3, "train_s": 3.0}
    assert done == [of_epoch]
    run.after_epoch(np.ones(3), 0.5, True)
    assert done[1]["examples_per_s"] == 50.0
    assert done[1]["ndcg@10"] == 0.7
    assert 0 <= done[1]["validation_s"] < 60
    assert done[2] == (4, 0.7)
    run.after_epoch(np.ones(3), 1.0, True)
    assert "ndcg@10" not in done[3]
    assert done[4] == (5, -np.inf)  # saved, and never the best
    assert not run.ended
    run.epoch = 6
    run.after_epoch(np.ones(3), 1.0, False)
    assert run.ended  # three epochs after the best one


def test_a_loss_that_is_not_finite_is_named_with_its_examples():
    for epoch, kept in ((1, "there is no checkpoint"), (3, "the checkpoint of epoch 2 is")):
        run, done = in_training(PARAMS, epoch)
        with pytest.raises(Diverged) as caught:
            run.after_epoch(np.array([1.0, 2.0, np.nan]), 1.0, False)
        assert str(caught.value).startswith(
            f"the loss became nan in step 3 of epoch {epoch + 1}, examples 21-25 of the shuffled "
            f"epoch; {kept} before it"
        )
        assert not done


def test_runs_side_by_side_share_the_time_of_an_epoch(monkeypatch):
    clock = itertools.count(100.0, 6.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    (one, done), (other, also_done) = (in_training(PARAMS, 8, 20) for _ in range(2))
    one.epochs = other.epochs = 10
    one.patience = other.patience = 99
    one.ended = other.ended = False
    train([one, other], lambda states: (states, np.ones((2, 3))))
    assert [record["train_s"] for record in (done[0], also_done[0])] == [3.0, 3.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_after_the_last_step_are_noticed(value):
    """Its loss, of the parameters before it, is finite; nothing is validated or saved."""
    items = np.ones((3, 2), np.float32)
    items[1, 1] = value
    run, done = in_training(PARAMS | {"items": items}, 2)
    with pytest.raises(Diverged, match=r"parameters became NaN .* in epoch 3.* of epoch 2 is"):
        run.after_epoch(np.ones(3), 1.0, False)
    assert not done
