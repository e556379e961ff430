"""The configs that come with the project are valid, and say what they are said to say."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from hlrcml_jax import command_line, config_files, keys, models, schema
from hlrcml_jax import config as config_lib
from hlrcml_jax.data import downloads, readers, splits
from hlrcml_jax.errors import UserError
from hlrcml_jax.ranking import metrics
from hlrcml_jax.registry import METRICS, MODELS
from hlrcml_jax.schema import Config

FOLDER = ROOT / "configs"

# The hyper-parameters that were published with the paper. A blank is a thing the model has not.
PUBLISHED = """
    data     | model   | lr     | margin | prefs | sampling | copy | clip mem | n-core | threshold
    ml-20m   | cml     | 7.5e-4 | 0.5    |       |          |      |          | 10     | 4
    ml-20m   | lrml    | 2e-4   | 0.2    |       |          | no   | no       | 10     | 4
    ml-20m   | transcf | 5e-4   | 0.5    |       |          |      |          | 10     | 4
    ml-20m   | adacml  | 2e-4   | 0.2    | 50    | random   | no   |          | 10     | 4
    ml-20m   | hlr     | 2e-4   | 0.2    | 50    | random   | no   | no       | 10     | 4
    ml-20m   | hlr++   | 2e-4   | 0.2    | 50    | random   | no   | no       | 10     | 5
    echonest | cml     | 7.5e-4 | 0.5    |       |          |      |          | 10     | 6
    echonest | lrml    | 5e-4   | 0.5    |       |          | no   | no       | 10     | 6
    echonest | transcf | 5e-4   | 0.5    |       |          |      |          | 10     | 6
    echonest | adacml  | 5e-4   | 0.5    | 50    | random   | no   |          | 10     | 6
    echonest | hlr     | 5e-4   | 0.5    | 50    | random   | no   | no       | 10     | 6
    echonest | hlr++   | 7.5e-4 | 0.5    | 50    | random   | no   | no       | 10     | 6
    yelp     | cml     | 7.5e-4 | 0.5    |       |          |      |          | 5      | 4
    yelp     | lrml    | 7.5e-4 | 0.5    |       |          | yes  | yes      | 5      | 4
    yelp     | transcf | 5e-4   | 0.5    |       |          |      |          | 5      | 4
    yelp     | adacml  | 5e-4   | 0.5    | 50    | random   | no   |          | 5      | 4
    yelp     | hlr     | 7.5e-4 | 0.75   | 5     | unpop    | yes  | yes      | 5      | 4
    yelp     | hlr++   | 5e-4   | 0.75   | 5     | unpop    | yes  | yes      | 5      | 4
    books    | cml     | 5e-4   | 0.5    |       |          |      |          | 10     | 4
    books    | lrml    | 5e-4   | 0.5    |       |          | no   | yes      | 10     | 4
    books    | transcf | 5e-4   | 0.5    |       |          |      |          | 10     | 4
    books    | adacml  | 2e-4   | 0.5    | 50    | random   | no   |          | 10     | 4
    books    | hlr     | 5e-4   | 0.5    | 50    | random   | no   | yes      | 10     | 4
    books    | hlr++   | 7.5e-4 | 0.5    | 10    | unpop    | yes  | yes      | 10     | 4
"""
HEAD, *ROWS = [[cell.strip() for cell in line.split("|")] for line in PUBLISHED.strip().split("\n")]


def load(name):
    return config_files.load(FOLDER / f"{name}.py")


def number(text):
    words = {"no": False, "yes": True, "random": "uniform", "unpop": "unpop"}
    return words[text] if text in words else float(text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]},{row[1]}")
def test_the_papers_hyper_parameters(row):
    cell = dict(zip(HEAD, row, strict=True))
    config = load("paper").get_config(f"data={cell['data']},model={cell['model']}")
    config_lib.validate(config)
    found = {
        "lr": config.optimizer.learning_rate,
        "margin": config.loss.margin,
        "prefs": config.model.max_prefs,
        "sampling": config.model.prefs_sampling,
        "copy": config.loss.copy_relation,
        "clip mem": config.model.clip_memory,
        "n-core": config.data.min_per_user,
        "threshold": config.data.threshold,
    }
    assert config.model.name == cell["model"]
    for name, value in found.items():
        if cell[name]:
            assert value == number(cell[name]), name
    assert not cell["copy"] or config.loss.copy_relation == number(cell["copy"])
    assert config.data.min_per_item == config.data.min_per_user
    # What all have in common.
    common = (config.model.dim, config.train.batch_size, config.model.memory_slots)
    assert common == (100, 1000, 20)
    assert (config.negatives.candidates, config.model.clip_norm, config.model.beta) == (1, 1.0, 1.0)
    assert (config.train.epochs, config.data.split.kind, config.seed) == (100, "random", 2021)
    split = config.data.split
    assert (split.test, split.valid, split.seed) == (0.2, pytest.approx(0.1 * 0.8), 2021)


@pytest.mark.parametrize("data", ["ml-20m", "echonest", "yelp", "books"])
def test_the_papers_als(data):
    config = load("paper").get_config(f"data={data},model=als")
    config_lib.validate(config)
    als = config.model.als
    assert (config.model.dim, als.iterations) == (100, 20)
    assert als.regularization == (20 if data == "yelp" else 30)


def test_every_ablation_changes_one_key():
    ablation, paper = load("ablation"), load("paper")
    base = config_lib.flatten(paper.get_config("data=echonest,model=hlr"))
    for key, values in ablation.VARIANTS.items():
        for value in values:
            config = ablation.get_config(f"data=echonest,model=hlr,{key}={value}")
            config_lib.validate(config)
            changed = {
                name: new
                for (name, new), old in zip(
                    config_lib.flatten(config).items(), base.values(), strict=True
                )
                if new != old
            }
            assert list(changed.values()) in ([], [value])
            assert all(name.endswith(key) for name in changed)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("paper", "ml-20m"),
        ("paper", "data=ml-1m,model=hlr"),
        ("paper", "data=yelp,model=svd"),
        ("ablation", "data=yelp,beta=2"),
        ("ablation", "data=yelp,model=hlr,dim=5"),
        ("compare", "data=steam-200k,loss=logistic"),
        ("compare", "data=ml-100k,data=ml-100k"),
        ("best", "model=svd"),
        ("space", "search=all,model=hlr"),
    ],
)
def test_an_unknown_choice_names_what_there_is(name, choice):
    module = load(name)
    with pytest.raises(UserError, match=rf"configs/{name}.py:{choice}.*KEY=VALUE.*model=.*hlr"):
        (module.get_space if name == "space" else module.get_config)(choice)


def test_the_table_has_every_key():
    assert (FOLDER / "README.md").read_text() == keys.render(Config)
    config = load("default").get_config()
    assert config_lib.flatten(config) == config_lib.flatten(config_lib.default_config())


def test_every_key_is_set_by_a_flag_and_by_an_attribute():
    """Also those that a ConfigDict could take for methods of its own."""
    config = config_lib.default_config()
    for name, key in keys.by_name(Config).items():
        changes, rest = command_line.split([f"--config.{name}={key.default}"])
        assert not rest
        read, _ = command_line.read(changes, str(FOLDER / "default.py"), None)
        assert config_lib.flatten(read) == config_lib.flatten(config)
        section, _, last = name.rpartition(".")
        owner = functools.reduce(getattr, section.split("."), config) if section else config
        setattr(owner, last, key.default)
        assert getattr(owner, last) == key.default


def test_choices_are_the_keys_of_their_registries():
    known = keys.by_name(Config)
    assert set(known["data.name"].choices) == {"", *downloads.CATALOG}
    assert set(readers.LAYOUTS) | set(readers.ADJACENCY) < set(known["data.format"].choices)
    assert set(splits.BY_TIME) < set(known["data.split.kind"].choices)
    assert set(known["evaluation.definitions"].choices) == set(metrics._SETS)
    assert all(set(METRICS) <= set(each) for each in metrics._SETS.values())


def test_a_typed_config_has_the_values_of_its_config_dict():
    config = load("compare").get_config("data=lastfm-2k,loss=best,model=cml")
    typed = config_lib.validate(config)
    assert typed.data.columns.item == config.data.columns.item == "artistID"
    assert config_lib.flatten(typed) == config_lib.flatten(config)
    assert config_lib.validate(typed) == typed
    assert Config().model.dim == schema.Model.dim == config_lib.default_config().model.dim
    assert hash(typed) != hash(Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.model.dim = 3


def test_a_models_fields_have_the_values_of_their_keys():
    """All numbers of the model's sections are changed, and none is left at its default."""
    numbers = {
        name: key.default + 1
        for name, key in keys.by_name(Config).items()
        if name.startswith("model.") and key.kind in (int, float) and key.default is not None
    }
    for name in MODELS:
        made = models.model_class(name)
        config = config_lib.validate(config_lib.make_config(numbers | {"model.name": name}))
        model = models.make_model(config.model)
        for field in dataclasses.fields(made):
            if field.name not in ("parent", "name", "similarity"):
                own = f"model.{name.replace('-', '_')}.{field.name}"
                expected = numbers.get(own, numbers.get(f"model.{field.name}"))
                assert getattr(model, field.name) == expected


@pytest.mark.parametrize("flag", ["--help", "--config.model.dimm=3", "--config.loss.margin=-1"])
def test_help_and_a_mistake_need_no_jax(flag):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print([m for m in ('jax', 'polars') if m in sys.modules]))\n"
        f"sys.argv = ['hlrcml_jax', '--config=configs/default.py', {flag!r}]\n"
        "from hlrcml_jax import main\n"
        "main.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (1 if flag == "--help" else 2)
    assert done.stdout.endswith("[]\n")


def test_a_config_survives_being_written_down():
    config = load("quickstart").get_config()
    flat = config_lib.flatten(config)
    assert config_lib.flatten(config_lib.make_config(flat)) == flat
    kinds = itertools.groupby(sorted(str(type(value)) for value in flat.values()))
    assert len(list(kinds)) >= 4  # numbers, text, truth, tuples


@pytest.mark.parametrize(
    ("loss", "hardest", "kind"),
    [
        ("best", 0, "softmax"),
        ("softmax", 0, "softmax"),
        ("hinge", 1, "hinge"),
        ("paper", 0, "hinge"),
    ],
)
def test_steam_has_its_protocol(loss, hardest, kind):
    config = load("compare").get_config(f"data=steam-200k,loss={loss},model=hlr")
    config_lib.validate(config)
    evaluation = config.evaluation
    assert (evaluation.min_test_items, evaluation.known) == ("k", "train")
    assert 0 in evaluation.cutoffs
    assert (config.negatives.hardest, config.loss.kind) == (hardest, kind)


def test_changes_are_read_as_python_has_them():
    assert config_files.parse_change("train.epochs=3") == ("train.epochs", 3)
    assert config_files.parse_change("data.path=a/b=c.csv") == ("data.path", "a/b=c.csv")
    assert config_files.parse_change("evaluation.cutoffs=(1, 5)") == ("evaluation.cutoffs", (1, 5))


def test_a_config_file_that_is_absent_is_named():
    with pytest.raises(UserError, match="--config=bset: .*did you mean best"):
        config_files.read("bset")
    with pytest.raises(UserError, match="no such file; the package's own is --config=best"):
        config_files.read("elsewhere/best.py")
    with pytest.raises(UserError, match="absent.py: no such file"):
        config_files.call("absent.py:model=hlr")


def test_a_run_in_a_bucket_is_not_taken_for_a_name(monkeypatch):
    monkeypatch.setattr(config_files, "from_workdir", lambda source, *_: source)
    assert config_files.read("gs://bucket/run") == "gs://bucket/run"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_compared(model):
    config = load("compare").get_config(f"data=lastfm-2k,loss=best,model={model}")
    config_lib.validate(config)
    assert config.data.split.kind == "user"
    spec = models.model_class(model).spec
    assert (config.model.space == "sphere") == models.can_be_on_sphere(spec)
    config.model.space = "sphere"
    if not models.can_be_on_sphere(spec):
        with pytest.raises(UserError, match="model.space cannot be 'sphere' with model.name"):
            models.check(config_lib.validate(config))


def test_nothing_in_the_recipe_depends_on_the_data():
    recipe = config_lib.flatten(load("best").get_config())
    protocol = ("data.", "evaluation.", "model.ease.", "model.als.", "model.item_knn.")
    protocol += ("early_stopping.metric", "train.refit")
    for data in load("compare").CHOSEN:
        config = load("compare").get_config(f"data={data},loss=best,model=hlr-r")
        compared = config_lib.flatten(config_lib.validate(config))
        changed = {name for name, value in recipe.items() if compared[name] != value}
        assert all(name.startswith(protocol) for name in changed)


@pytest.mark.parametrize(
    "choice",
    [
        *(f"model={model}" for model in ("hlr", "hlr++", "hlr-r", "cml", "lrml", "adacml")),
        "search=batch,model=hlr",
        "search=recipe,model=hlr-r",
        "search=parts,model=hlr-r",
        "search=rates,model=hlr-r",
        "search=best,model=cml",
        "search=paper,model=hlr++",
        "search=best,model=bpr",
        "search=best,model=als",
        "search=best,model=item-knn",
        "search=best,model=ease",
    ],
)
def test_every_value_of_the_space_is_valid(choice):
    config = load("best").get_config(choice.split(",")[-1])
    space = load("space").get_space(choice)
    assert space
    for name, options in space.items():
        for value in options:
            changed = config_lib.make_config(config_lib.flatten(config) | {name: value})
            assert config_lib.flatten(changed)[name] == value


def test_every_promise_has_its_test():
    promises = (ROOT / "docs" / "guarantees.md").read_text().partition("## What it promises")[2]
    names = re.findall(r"`((?:\w+/)*test_\w+\.py)?::(test_\w+)`", promises.partition("\n## ")[0])
    assert len(names) > 15
    path = None
    for file, name in names:
        path = ROOT / "tests" / file if file else path
        assert f"def {name}(" in path.read_text()
