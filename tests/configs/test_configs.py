"""The configs that come with the project are valid, and say what they are said to say."""

import itertools
import re

import pytest
from conftest import ROOT

from hlrcml_jax import config as config_lib
from hlrcml_jax import schema
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import MODELS, OF_ITEMS

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
    return config_lib.load(FOLDER / f"{name}.py")


def number(text):
    words = {"no": False, "yes": True, "random": "uniform", "unpop": "unpop"}
    return words[text] if text in words else float(text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]},{row[1]}")
def test_the_papers_hyper_parameters(row):
    cell = dict(zip(HEAD, row, strict=True))
    config = load("paper").get_config(f"{cell['data']},{cell['model']}")
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
    config = load("paper").get_config(f"{data},als")
    config_lib.validate(config)
    als = config.model.als
    assert (config.model.dim, als.iterations) == (100, 20)
    assert als.regularization == (20 if data == "yelp" else 30)


def test_every_ablation_changes_one_key():
    ablation, paper = load("ablation"), load("paper")
    base = config_lib.flatten(paper.get_config("echonest,hlr"))
    for key, values in ablation.VARIANTS.items():
        for value in values:
            config = ablation.get_config(f"echonest,hlr,{key},{value}")
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
        ("paper", "ml-1m,hlr"),
        ("paper", "yelp,svd"),
        ("ablation", "yelp,hlr,beta,2"),
        ("ablation", "yelp,hlr"),
        ("compare", "steam-200k,logistic,hlr"),
        ("compare", "steam-200k,hlr"),
        ("compare", "ml-100k,best,hlr,2"),
    ],
)
def test_an_unknown_choice_names_what_there_is(name, choice):
    with pytest.raises(UserError, match=rf"configs/{name}.py:{choice}"):
        load(name).get_config(choice)


def test_the_table_has_every_key():
    assert (FOLDER / "README.md").read_text() == schema.render()
    config = load("default").get_config()
    assert config_lib.flatten(config) == config_lib.flatten(config_lib.default_config())


def test_a_config_survives_being_written_down():
    config = load("quickstart").get_config()
    flat = config_lib.flatten(config)
    assert config_lib.flatten(config_lib.make_config(flat)) == flat
    kinds = itertools.groupby(sorted(str(type(value)) for value in flat.values()))
    assert len(list(kinds)) >= 4  # numbers, text, truth, tuples


@pytest.mark.parametrize(
    ("loss", "hardest", "kind"),
    [
        ("best", 8, "softmax"),
        ("softmax", 0, "softmax"),
        ("hinge", 1, "hinge"),
        ("paper", 0, "hinge"),
    ],
)
def test_steam_has_its_protocol(loss, hardest, kind):
    config = load("compare").get_config(f"steam-200k,{loss},hlr")
    config_lib.validate(config)
    evaluation = config.evaluation
    assert (evaluation.min_test_items, evaluation.known) == ("k", "train")
    assert 0 in evaluation.cutoffs
    assert (config.negatives.hardest, config.loss.kind) == (hardest, kind)


def test_changes_are_read_as_python_has_them():
    assert config_lib.parse_change("train.epochs=3") == ("train.epochs", 3)
    assert config_lib.parse_change("data.path=a/b=c.csv") == ("data.path", "a/b=c.csv")
    assert config_lib.parse_change("evaluation.cutoffs=(1, 5)") == ("evaluation.cutoffs", (1, 5))


def test_a_config_file_that_is_absent_is_named():
    with pytest.raises(UserError, match="absent.py: no such file"):
        config_lib.call("absent.py:hlr")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_compared(model):
    config = load("compare").get_config(f"lastfm-2k,best,{model}")
    config_lib.validate(config)
    assert config.data.split.kind == "user"
    assert (config.model.users == "items") == (model in OF_ITEMS)


@pytest.mark.parametrize(
    "choice",
    [
        *OF_ITEMS,
        "batch,hlr",
        "parts,hlr-r",
        "best,cml",
        "paper,hlr++",
        "best,bpr",
        "best,als",
        "best,item-knn",
        "best,ease",
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
    promises = (ROOT / "README.md").read_text().partition("## What it promises")[2]
    names = re.findall(r"`((?:\w+/)*test_\w+\.py)?::(test_\w+)`", promises.partition("\n## ")[0])
    assert len(names) > 15
    path = None
    for file, name in names:
        path = ROOT / "tests" / file if file else path
        assert f"def {name}(" in path.read_text()
