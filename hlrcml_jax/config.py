"""Making and validating the config of a run; `schema.py` defines its keys.

A config file has a `get_config()` that starts from `default_config()` and overrides keys; from
Python, `make_config` does the same. Both return a ConfigDict, which `validate` converts to the
frozen, typed `Config` that the program uses.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from hlrcml_jax import custom, keys
from hlrcml_jax.errors import UserError, quoted
from hlrcml_jax.keys import Key, flatten, is_path
from hlrcml_jax.registry import METRICS, OTHER_METRICS
from hlrcml_jax.schema import Config


def default_config() -> ml_collections.ConfigDict:
    """Every key at its default, locked against unknown keys."""
    return keys.to_config_dict(Config())


def make_config(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A validated config: the given values by dotted key, defaults for the rest.

    Examples:
      >>> make_config({"data.name": "ml-100k", "train.epochs": 5}).train.epochs
      5

    Args:
      values: by dotted key; lists become tuples.

    Raises:
      UserError: as `validate`.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError(
            f"values of a config are a mapping {{key: value}} with dotted keys, as "
            f'{{"train.epochs": 5}}, not {quoted(values)}.'
        )
    return keys.to_config_dict(_validated(flatten(Config()) | dict(values)))


def validate(config: ml_collections.ConfigDict | Config) -> Config:
    """The typed config, after checking every key and the constraints between keys.

    Raises:
      UserError: naming a key that is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(config, ml_collections.ConfigDict | Config):
        raise UserError(f"a config is made by make_config; this is {quoted(config)}.")
    return _validated(flatten(config))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes applied; drops the options of code that the changes replace."""
    replaced = [
        section
        for section, (code_key, _) in keys.open_sections(Config).items()
        if code_key in changes and changes[code_key] != values.get(code_key)
    ]
    kept = {
        name: value
        for name, value in values.items()
        if not any(name.startswith(f"{section}.") for section in replaced)
    }
    return kept | dict(changes)


def all_keys(values: Mapping[str, Any] | None = None) -> dict[str, Key]:
    """Every key by dotted name, including the options of custom code named in `values`.

    Raises:
      UserError: when that code cannot be imported.
    """
    existing = dict(keys.by_name(Config))
    for section, (code_key, _) in keys.open_sections(Config).items():
        path = (values or {}).get(code_key)
        if is_path(path):
            options = options_of(code_key, str(path))
            existing |= {f"{section}.{name}": key for name, key in options.items()}
    return existing


def options_of(key: str, path: str) -> dict[str, Key]:
    """The options of the code at a dotted path, except built-in keys of the same section."""
    section = key.partition(".")[0] + "."
    built_in = [
        name.removeprefix(section) for name in keys.by_name(Config) if name.startswith(section)
    ]
    return custom.options_of(key, custom.resolve(key, path), built_in)


def unknown_key(name: str, existing: Collection[str] = ()) -> UserError:
    """The error for a key that does not exist; `existing` defaults to the built-in keys."""
    for section, (code_key, _) in keys.open_sections(Config).items():
        if name.startswith(f"{section}."):
            options = [option for option in existing if option.startswith(f"{section}.")]
            there = f"there are {', '.join(options)}" if options else f"{code_key} has no options"
            return UserError(f"config key {name} does not exist; {there}.")
    return keys.unknown_key(name, existing or keys.by_name(Config))


def code_paths(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, path) of every dotted path to custom code; values are not yet checked."""
    pairs = []
    for name, key in keys.by_name(Config).items():
        if key.code and name in values:
            several = values[name] if isinstance(values[name], list | tuple) else [values[name]]
            pairs += [(name, path) for path in several if is_path(path)]
    return pairs


def _validated(values: Mapping[str, Any]) -> Config:
    existing = all_keys(values)
    for name in values:
        if name not in existing:
            raise unknown_key(name, existing)
    checked = {}
    for name, key in existing.items():
        is_option = name not in keys.by_name(Config)
        if name not in values and not is_option:
            raise UserError(f"config key {name} is missing; start from default_config().")
        checked[name] = key.checked(name, values.get(name, key.default))
    config = keys.build(Config, checked)
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Checks constraints between keys."""
    split, model, pretrained = config.data.split, config.model, config.pretrained
    held_out = split.valid + split.test
    if held_out >= 1:
        raise UserError(
            f"config keys data.split.valid and data.split.test add up to {held_out:g}; lower "
            "them to leave a share for training."
        )
    if config.negatives.shared and config.loss.copy_relation:
        raise UserError(
            "config keys negatives.shared and loss.copy_relation cannot be combined: shared "
            "negatives always use their own relations."
        )
    if config.train.refit and config.evaluation.known == "train":
        raise UserError(
            "config keys train.refit and evaluation.known='train' cannot be combined: test would "
            "rank the items of validation, on which the model was trained; set "
            "evaluation.known=train+valid."
        )
    if config.parallel.tables == "sharded" and config.optimizer.rows != "lazy":
        raise UserError(
            "config key parallel.tables cannot be 'sharded' with optimizer.rows 'dense': only the "
            "rows of a batch are sent between devices; set optimizer.rows=lazy."
        )
    if config.parallel.tables == "sharded" and config.recommend.candidates:
        raise UserError(
            "config key recommend.candidates needs whole tables on each device, and "
            "parallel.tables is 'sharded'; set recommend.candidates=0, or "
            "parallel.tables=replicated."
        )
    if config.parallel.tables == "sharded" and config.recommend.histories:
        raise UserError(
            "config key recommend.histories needs whole tables on each device, and "
            "parallel.tables is 'sharded'; set parallel.tables=replicated."
        )
    if model.users == "items" and (
        pretrained.user_vectors or pretrained.freeze in ("users", "both")
    ):
        raise UserError(
            "config keys pretrained.user_vectors and pretrained.freeze need user embeddings, and "
            "model.users='items' has none; set model.users=vectors."
        )
    own = [custom.name_of(path) for path in config.evaluation.metrics]
    if twice := {name for name in own if name in (*METRICS, *OTHER_METRICS) or own.count(name) > 1}:
        raise UserError(
            f"config key evaluation.metrics has a second metric {min(twice)!r}; rename it."
        )
    for path in config.evaluation.metrics:
        custom.options_of("evaluation.metrics", custom.resolve("evaluation.metrics", path))
    metric = config.early_stopping.metric.partition("@")[0]
    if metric not in ("loss", *METRICS, *own):
        raise UserError(
            f"config key early_stopping.metric cannot be {quoted(config.early_stopping.metric)}; "
            f"it is 'loss', or one of these with @k: {', '.join((*METRICS, *own))}."
        )


def parse_arguments(file: str, text: str, **choices: Collection[Any]) -> dict[str, Any]:
    """The values of `configs/FILE:KEY=VALUE,KEY=VALUE`.

    >>> parse_arguments("paper.py", "model=hlr", data=("ml-20m", "yelp"), model=("cml", "hlr"))
    {'model': 'hlr'}

    Args:
      file: name of the config file, for error messages.
      text: the text after the colon.
      **choices: the allowed values of each key.

    Returns:
      {key: chosen value}, with the type it has in `choices`.

    Raises:
      UserError: for a key or value that does not exist; it lists those that do.
    """
    chosen = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        by_text = {str(choice): choice for choice in choices.get(name, ())}
        if name in chosen or value not in by_text:
            there = "; ".join(
                f"{name}={'|'.join(map(str, dict.fromkeys(values)))}"
                for name, values in choices.items()
            )
            close = difflib.get_close_matches(value, by_text, n=1)
            hint = f" (did you mean {name}={close[0]}?)" if close and name not in chosen else ""
            raise UserError(
                f"configs/{file}:{text}: {part!r} is not an argument{hint}; arguments are "
                f"KEY=VALUE,… with {there}."
            )
        chosen[name] = by_text[value]
    return chosen
