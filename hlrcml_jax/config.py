"""The config of a run: made, checked and converted; `schema.py` has its keys.

A config file has a `get_config()` that starts from `default_config()` and changes what its
experiment changes; from Python, `make_config` does the same. Both give a ConfigDict, which
`validate` turns into the frozen, typed `Config` that the program works with.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from hlrcml_jax import custom, keys
from hlrcml_jax.errors import UserError
from hlrcml_jax.keys import Key, Options, flatten, is_path
from hlrcml_jax.schema import (
    ALS,
    BPR,
    DATASETS,
    DEFINITIONS,
    EASE,
    FORMATS,
    LOSSES,
    METRICS,
    MODELS,
    NEGATIVE_WEIGHTS,
    PREFERENCE_WEIGHTS,
    SPLITS,
    Analyse,
    Columns,
    Config,
    Data,
    EarlyStopping,
    Evaluation,
    ItemKNN,
    Loss,
    Model,
    Negatives,
    Optimizer,
    Parallel,
    Pretrained,
    Recommend,
    Scoring,
    Split,
    Titles,
    Train,
    TransCF,
)

__all__ = [
    "ALS",
    "BPR",
    "DATASETS",
    "DEFINITIONS",
    "EASE",
    "FORMATS",
    "LOSSES",
    "METRICS",
    "MODELS",
    "NEGATIVE_WEIGHTS",
    "PREFERENCE_WEIGHTS",
    "SPLITS",
    "Analyse",
    "Columns",
    "Config",
    "Data",
    "EarlyStopping",
    "Evaluation",
    "ItemKNN",
    "Loss",
    "Model",
    "Negatives",
    "Optimizer",
    "Options",
    "Parallel",
    "Pretrained",
    "Recommend",
    "Scoring",
    "Split",
    "Titles",
    "Train",
    "TransCF",
    "all_keys",
    "changed",
    "code_paths",
    "default_config",
    "flatten",
    "make_config",
    "options_of",
    "parse_arguments",
    "unknown_key",
    "validate",
]


def default_config() -> ml_collections.ConfigDict:
    """Every key at its default, locked against unknown keys."""
    return keys.to_config_dict(Config())


def make_config(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config with some values by dotted names, and the others at their defaults; validated.

    >>> make_config({"data.name": "ml-100k", "train.epochs": 5}).train.epochs
    5

    Args:
      values: of keys; lists stand for tuples.

    Raises:
      UserError: as `validate`.
    """
    return keys.to_config_dict(_validated(flatten(Config()) | dict(values)))


def validate(config: ml_collections.ConfigDict | Config) -> Config:
    """The typed config; checks every key, and the constraints between keys.

    Raises:
      UserError: naming the key that is unknown, missing, of the wrong type or out of range.
    """
    return _validated(flatten(config))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes, without the options of code that the changes replace."""
    replaced = [
        section
        for section, (of, _) in keys.open_sections(Config).items()
        if of in changes and changes[of] != values.get(of)
    ]
    kept = {
        name: value
        for name, value in values.items()
        if not any(name.startswith(f"{section}.") for section in replaced)
    }
    return kept | dict(changes)


def all_keys(values: Mapping[str, Any] | None = None) -> dict[str, Key]:
    """Every key by dotted name; with those of the options of code that some values name.

    Raises:
      UserError: when that code cannot be imported.
    """
    known = dict(keys.by_name(Config))
    for section, (of, _) in keys.open_sections(Config).items():
        path = (values or {}).get(of)
        if is_path(path):
            known |= {f"{section}.{name}": key for name, key in options_of(of, str(path)).items()}
    return known


def options_of(key: str, path: str) -> dict[str, Key]:
    """The options of the code that a dotted path names, without those that are keys already."""
    known = [
        name.removeprefix("model.") for name in keys.by_name(Config) if name.startswith("model.")
    ]
    found = custom.resolve(key, path)
    return custom.options_of(key, found, known if key == "model.name" else ())


def unknown_key(name: str, known: Collection[str] = ()) -> UserError:
    """The mistake of a key that is not among the known ones, which are all built-in keys."""
    for section, (of, _) in keys.open_sections(Config).items():
        if name.startswith(f"{section}."):
            options = [option for option in known if option.startswith(f"{section}.")]
            there = f"there are {', '.join(options)}" if options else f"{of} has no options"
            return UserError(f"config key {name} does not exist; {there}.")
    return keys.unknown_key(name, known or keys.by_name(Config))


def code_paths(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, path) of every dotted path among values, which may be of any type."""
    found = []
    for name, key in keys.by_name(Config).items():
        if key.code and name in values:
            several = values[name] if isinstance(values[name], list | tuple) else [values[name]]
            found += [(name, path) for path in several if is_path(path)]
    return found


def _validated(values: Mapping[str, Any]) -> Config:
    known = all_keys(values)
    for name in values:
        if name not in known:
            raise unknown_key(name, known)
    checked = {}
    for name, key in known.items():
        is_option = name not in keys.by_name(Config)
        if name not in values and not is_option:
            raise UserError(f"config key {name} is missing; start from default_config().")
        checked[name] = key.checked(name, values.get(name, key.default))
    config = keys.build(Config, checked)
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """The constraints between keys."""
    split, model, pretrained = config.data.split, config.model, config.pretrained
    held_out = split.valid + split.test
    if held_out >= 1:
        raise UserError(
            f"config keys data.split.valid and data.split.test add up to {held_out:g}; the rest of "
            "1 is for training."
        )
    if config.negatives.shared and config.loss.copy_relation:
        raise UserError(
            "config keys negatives.shared and loss.copy_relation cannot be combined: shared "
            "negatives always use their own relations."
        )
    if config.parallel.tables == "sharded" and config.optimizer.rows != "lazy":
        raise UserError(
            "config key parallel.tables cannot be 'sharded' with optimizer.rows 'dense': only the "
            "rows of a batch are sent between devices; set optimizer.rows=lazy."
        )
    if model.users == "items" and (pretrained.users or pretrained.freeze in ("users", "both")):
        raise UserError(
            "config keys pretrained.users and pretrained.freeze are about user vectors, and with "
            "model.users 'items' there are none."
        )
    own = [custom.name_of(path) for path in config.evaluation.metrics]
    if twice := {name for name in own if name in METRICS or own.count(name) > 1}:
        raise UserError(f"config key evaluation.metrics has a second metric {min(twice)!r}.")
    metric = config.early_stopping.metric.partition("@")[0]
    if metric not in ("loss", *METRICS, *own):
        raise UserError(
            f"config key early_stopping.metric cannot be {config.early_stopping.metric!r}; it is "
            f"'loss', or one of these with @k: {', '.join((*METRICS, *own))}."
        )


def parse_arguments(file: str, text: str, **choices: Collection[Any]) -> dict[str, Any]:
    """The values of `configs/FILE:KEY=VALUE,KEY=VALUE`.

    >>> parse_arguments("paper.py", "model=hlr", data=("ml-20m", "yelp"), model=("cml", "hlr"))
    {'model': 'hlr'}

    Args:
      file: name of the config file, for the sentence of a mistake.
      text: what is behind its colon.
      **choices: the values of each key.

    Returns:
      The given values, as they are among the choices.

    Raises:
      UserError: for a key or a value that does not exist; it lists what there are.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        by_text = {str(choice): choice for choice in choices.get(name, ())}
        if name in found or value not in by_text:
            there = "; ".join(
                f"{name}={'|'.join(map(str, dict.fromkeys(values)))}"
                for name, values in choices.items()
            )
            close = difflib.get_close_matches(value, by_text, n=1)
            hint = f" (did you mean {name}={close[0]}?)" if close and name not in found else ""
            raise UserError(
                f"configs/{file}:{text}: {part!r} is not possible{hint}; arguments are "
                f"KEY=VALUE,… of {there}."
            )
        found[name] = by_text[value]
    return found
