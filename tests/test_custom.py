"""Code of the user's own: named by a dotted path, with options, never imported for a stranger."""

import json
import sys

import jax
import numpy as np
import pytest

from hlrcml_jax import command_line, config_files, custom, schema
from hlrcml_jax import config as config_lib
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import make_model
from hlrcml_jax.recommender import load
from hlrcml_jax.runs import build, experiment

CODE = """
import pathlib

import jax
import jax.numpy as jnp

from hlrcml_jax.models.adacml import AdaCML
from hlrcml_jax.models.bpr import BPR
from hlrcml_jax.models.hlr import HLR
from hlrcml_jax.keys import key

pathlib.Path(__file__).with_name("imported").touch()


class Gated(HLR):
    '''HLR with options.

    Attributes:
      width: width of the gate.
    '''

    gate: float = key(1.0, "strength of the gate; above 0", lambda value: value > 0)
    width: int = 3
    bound: float | None = None
    whole: float = 1


def logistic(positive_B, negative_BxN, log_weight_BxN, *, scale: float = 1.0):
    '''The logistic loss.

    Args:
      scale: of the scores.
    '''
    z_BxN = scale * (negative_BxN - positive_B[:, None])
    return jnp.mean(jax.nn.softplus(z_BxN), axis=1)


def first_hit(hits_BxK, relevant_B, k):
    return hits_BxK[:, 0]


def hopeless(positive_B, negative_BxN, log_weight_BxN, *, scale):
    return positive_B


class Stranger:
    pass


class Smooth:
    '''A loss as a class.'''

    def __init__(self, *, temperature=9.0, power: float = 1.0):
        self.temperature, self.power = temperature, power

    def __call__(self, positive_B, negative_BxN, log_weight_BxN):
        z_BxN = (negative_BxN - positive_B[:, None]) / self.temperature
        return self.power * jnp.mean(jax.nn.softplus(z_BxN), axis=1)


def evenly(key, n, count_I, *, candidates, correction):
    assert n == candidates
    assert correction is False
    return jnp.zeros(n, int), count_I[:n]


def coverage(hits_BxK, relevant_B, k):
    return hits_BxK[:, 0]


def weighted(hits_BxK, relevant_B, k, *, power):
    return hits_BxK[:, 0] ** power


class Scaled(HLR):
    '''Its own form of the scores alone, with parameters of every name.'''

    def setup(self):
        super().setup()
        self.scale = self.param("items", lambda key: jnp.ones((3, 8)))

    def scores(self, users, met, target_BxTxD, past):
        return super().scores(users, met, target_BxTxD, past) * self.scale[0, 0]


class Remembering(AdaCML):
    def setup(self):
        self.memory = self.param("memory", lambda key: jnp.zeros(4))

    def relation(self, *arguments):
        return super().relation(*arguments) + self.memory[0]


class Weighted(BPR):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes the module `mine`, which leaves a file beside it when it is imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE)
    (folder / "broken.py").write_text("1 / 0")
    (folder / "leaving.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield folder
    sys.modules.pop("mine", None)


def test_options_are_the_fields_that_no_key_has(mine):
    found = config_lib.options_of("model.name", "mine:Gated")
    assert {name: (key.kind, key.default, key.meaning) for name, key in found.items()} == {
        "gate": (float, 1.0, "strength of the gate; above 0"),
        "width": (int, 3, "width of the gate"),
        "bound": (float, None, ""),
        "whole": (float, 1, ""),
    }
    of_loss = config_lib.options_of("loss.kind", "mine:logistic")
    assert [(name, key.text) for name, key in of_loss.items()] == [("scale", "of the scores")]


def test_options_are_checked_and_reach_the_model(mine):
    values = {"model.name": "mine:Gated", "model.options.gate": 2, "model.dim": 8}
    config = config_lib.make_config(values)
    assert config.model.options.to_dict() == {
        **{"gate": 2.0, "width": 3, "bound": None, "whole": 1.0}
    }
    config.model.options.width = 5  # as a config file does
    model = make_model(config_lib.validate(config).model)
    assert (model.gate, model.width, model.bound) == (2.0, 5, None)
    assert (model.dim, model.memory_slots) == (8, schema.Model.memory_slots)
    assert config_lib.make_config(config_lib.flatten(config)) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.name": "mine.Gated"}, "model.name.*hlr, hlr.*package.module:Name"),
        ({"model.name": "mine:"}, "model.name.*package.module:Name"),
        ({"model.name": "absent.one:Gated"}, "model.name: there is no module 'absent'"),
        ({"model.name": "mine:Gate"}, "model.name: module mine has no 'Gate'"),
        ({"model.name": "broken:Gated"}, "model.name: importing broken failed: ZeroDivisionError"),
        ({"loss.kind": "math:pi"}, "loss.kind: what it names is a float, no function"),
        ({"loss.kind": "builtins:dict"}, "loss.kind: the parameters of dict are unknown"),
        ({"evaluation.metrics": ("math:pi",)}, "evaluation.metrics: what it names is a float"),
        ({"evaluation.metrics": ("absent:pi",)}, "evaluation.metrics: there is no module"),
        ({"model.name": "leaving:Gated"}, "importing leaving failed: SystemExit"),
        ({"loss.kind": "mine:hopeless"}, "loss.kind: 'scale' of hopeless needs a default"),
        ({"model.name": "mine:Gated", "model.options.gat": 1.0}, "there are model.options.gate,"),
        ({"model.name": "mine:Gated", "model.options.gate": 0.0}, "gate cannot be 0.0"),
        ({"model.name": "mine:Gated", "model.options.width": "wide"}, "width is 'wide'"),
        ({"model.options.gate": 1.0}, "model.options.gate does not exist; model.name has no"),
        ({"evaluation.metrics": ("auc",)}, "evaluation.metrics cannot be"),
        ({"evaluation.metrics": ("mine:ndcg",)}, "evaluation.metrics has a second metric 'ndcg'"),
        ({"evaluation.metrics": ("mine:coverage",)}, "has a second metric 'coverage'"),
        ({"evaluation.metrics": ("mine:weighted",)}, "'power' of weighted needs a default"),
        ({"model.name": "mine:Weighted", "model.options.l2_vector": -1.0}, "at least 0"),
        ({"early_stopping.metric": "first_hit@1"}, "early_stopping.metric.*ndcg"),
    ],
)
def test_a_mistake_names_the_key(mine, values, said):
    with pytest.raises(UserError, match=said):
        config_lib.make_config(values)


def test_a_class_that_is_no_model_is_refused(mine):
    config = config_lib.make_config({"model.name": "mine:Stranger"})
    with pytest.raises(UserError, match="model.name: mine:Stranger is no model"):
        make_model(config_lib.validate(config).model)


def test_options_on_the_command_line(mine, tmp_path):
    source = tmp_path / "own.py"
    source.write_text("from hlrcml_jax.config import default_config as get_config\n")
    flags = ["--config.model.name=mine:Gated", "--config.model.options.gate", "2", "--mode=train"]
    changes, others = command_line.split(flags)
    assert others == ["--mode=train"]
    config, workdir = command_line.read(changes, str(source), None)
    assert (config.model.options.gate, workdir) == (2.0, "runs/own")
    listed = command_line.describe_options(changes[:1], str(source), None)
    assert "--config.model.options.gate: strength of the gate; above 0\n" in listed
    assert "(type float; default: 1.0)" in listed
    # A name that is changed takes the options of the other with it.
    other, _ = command_line.read(["--config.model.name=cml"], str(source), None)
    assert not other.model.options


def test_own_code_trains_and_is_resumed(mine, small, tmp_path):
    values = {
        "model.name": "mine:Gated",
        "model.options.gate": 2.0,
        "loss.kind": "mine:logistic",
        "evaluation.metrics": ["mine:first_hit"],
        "early_stopping.metric": "first_hit@5",
        "train.epochs": 1,
    }
    workdir = tmp_path / "run"
    found = experiment.train_and_evaluate(config_lib.make_config(small | values), workdir)
    assert found["first_hit@5"]["mean"] == pytest.approx(found["hit_rate@1"]["mean"])
    assert np.isfinite(found["ndcg@10"]["mean"])
    saved = json.loads((workdir / "config.json").read_text())["config"]
    assert (saved["model.options.gate"], saved["loss.options.scale"]) == (2.0, 1.0)
    experiment.fit(config_lib.make_config(small | values | {"train.epochs": 2}), workdir)
    other = config_lib.make_config(small | values | {"model.options.gate": 3.0})
    with pytest.raises(UserError, match=r"made with model.options.gate=2.0"):
        experiment.fit(other, workdir)
    # The workdir comes to someone else.
    del sys.modules["mine"]
    (mine / "imported").unlink()
    with pytest.raises(UserError, match="names code to import, model.name=mine:Gated"):
        load(workdir)
    assert not (mine / "imported").exists()
    assert len(load(workdir, allow_code=True).recommend(k=2)) == 2 * 60
    assert (mine / "imported").exists()


KEYS = ["model.name", "loss.kind", "negatives.weights", "evaluation.metrics"]


@pytest.mark.parametrize("key", KEYS)
def test_a_strangers_workdir_imports_nothing(mine, tmp_path, key):
    """Unless the user allows it, or names the same key."""
    path = {"model.name": "mine:Gated", "evaluation.metrics": ["mine:first_hit"]}
    path = path.get(key, "mine:logistic")
    values = config_lib.flatten(config_lib.default_config()) | {key: path}
    text = {"config": values, "data": ""}
    (tmp_path / "config.json").write_text(json.dumps(text))
    for read in (
        lambda: config_files.read(str(tmp_path)),
        lambda: config_files.from_workdir(tmp_path, {"model.dim": 8}),
        lambda: command_line.read(["--config.model.dim=8"], None, str(tmp_path)),
        lambda: command_line.describe_options([], None, str(tmp_path)),
    ):
        with pytest.raises(UserError, match=rf"names code to import, {key}=mine:.*--allow_code"):
            read()
    with pytest.raises(UserError, match="only where this run's own config names it"):
        config_files.from_workdir(tmp_path, trusted=["mine:other"])
    assert not (mine / "imported").exists()
    given = {"evaluation.metrics": ["mine:first_hit"]}.get(key, path)
    config_files.from_workdir(tmp_path, {key: given})
    config_files.from_workdir(tmp_path, trusted=[given if isinstance(given, str) else given[0]])
    allowed, _ = command_line.read([], None, str(tmp_path), allow_code=True)
    assert config_lib.code_paths(config_lib.flatten(allowed))
    # Metrics are imported when they are needed.
    assert (mine / "imported").exists()


def test_code_gets_the_keys_of_its_section(mine, small, tmp_path):
    values = {
        "loss.kind": "mine:Smooth",
        "loss.temperature": 2.0,
        "loss.options.power": 3.0,
        "negatives.weights": "mine:evenly",
        "negatives.candidates": 4,
        "train.epochs": 1,
    }
    config = config_lib.make_config(small | values)
    loss = build.make_loss(config_lib.validate(config).loss)
    assert (loss.temperature, loss.power) == (2.0, 3.0)
    experiment.fit(config, tmp_path)


@pytest.mark.parametrize(("name", "rows"), [("Scaled", "lazy"), ("Remembering", "dense")])
def test_parameters_may_have_any_name_and_all_are_trained(mine, small, tmp_path, name, rows):
    values = {"model.name": f"mine:{name}", "optimizer.rows": rows, "train.epochs": 1}
    run = experiment.fit(config_lib.make_config(small | values), tmp_path)
    trained = build.best_checkpoint(run).params["model"]
    before = build.initial_state(run).params["model"]
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(before), strict=True):
        assert (np.asarray(a) != b).any()


def test_a_workdir_is_no_config_file(tmp_path):
    """Whatever its name: nothing in it is executed."""
    workdir = tmp_path / "run.py"
    workdir.write_text("raise AssertionError")
    for name in (workdir, f"{workdir}:1"):
        with pytest.raises(UserError, match="run"):
            command_line.read([], None, str(name))


def test_a_function_gets_its_options(mine):
    loss = custom.bind("loss.kind", "mine:logistic", {"scale": 0.0})
    zeros = np.zeros((2, 3), np.float32)
    np.testing.assert_allclose(loss(zeros[:, 0], zeros + 7, zeros), np.log(2), rtol=1e-6)
