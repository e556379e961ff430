"""Configs: made from the schema, checked, written down and read again.

A config file has a `get_config()` that starts from `default_config()` and changes what its
experiment changes; from Python, `make_config` does the same. `schema.py` has all keys.
"""

import ast
import importlib.util
import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from hlrcml_jax import storage
from hlrcml_jax.errors import UserError
from hlrcml_jax.models import DIVISIBLE, OF_ITEMS
from hlrcml_jax.schema import SCHEMA, all_keys, unknown_key


def default_config() -> ml_collections.ConfigDict:
    """Every key at its default, locked against unknown keys."""

    def build(section):
        config = ml_collections.ConfigDict()
        for name, entry in section.items():
            if isinstance(entry, dict):
                config[name] = build(entry)
            elif entry.default is None:
                config[name] = ml_collections.config_dict.placeholder(entry.kind)
            else:
                config[name] = entry.default
        return config

    return build(SCHEMA).lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every key and what keys ask of each other.

    Raises:
      UserError: naming the key that is unknown, missing, of the wrong type or out of range.
    """
    known = dict(all_keys())
    values = flatten(config)
    for name in values:
        if name not in known:
            raise unknown_key(name)
    for name, key in known.items():
        if name not in values:
            raise UserError(f"config key {name} is missing; start from default_config().")
        key.check(name, values[name])
    share = values["data.split.valid"] + values["data.split.test"]
    if share >= 1:
        raise UserError(
            f"config keys data.split.valid and data.split.test add up to {share:g}; training needs "
            "what they leave of 1."
        )
    if values["negatives.shared"] and values["loss.copy_relation"]:
        raise UserError(
            "config keys negatives.shared and loss.copy_relation exclude each other: shared "
            "negatives have the relations of their own that all examples share."
        )
    if values["parallel.tables"] == "sharded":
        if values["optimizer.rows"] != "lazy":
            raise UserError(
                "config key parallel.tables cannot be 'sharded' with optimizer.rows 'dense': only "
                "the rows that a batch touches travel between devices; set optimizer.rows=lazy."
            )
        if values["model.name"] not in DIVISIBLE:
            raise UserError(
                f"config key parallel.tables cannot be 'sharded' with model.name "
                f"{values['model.name']!r}; it can with {', '.join(DIVISIBLE)}."
            )
    if values["model.users"] == "items":
        if values["model.name"] not in OF_ITEMS:
            raise UserError(
                f"config key model.users cannot be 'items' with model.name "
                f"{values['model.name']!r}; it can with {', '.join(OF_ITEMS)}."
            )
        if values["pretrained.users"] or values["pretrained.freeze"] in ("users", "both"):
            raise UserError(
                "config keys pretrained.users and pretrained.freeze speak of user vectors; with "
                "model.users 'items' there are none."
            )


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Values by dotted name; tuples stay tuples."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{name}.{rest}": inner for rest, inner in flatten(value).items()})
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def make_config(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config with some values by dotted names, and the others at their defaults; validated.

    >>> make_config({"data.name": "ml-100k", "train.epochs": 5}).train.epochs
    5

    Args:
      values: of keys; lists stand for tuples.

    Raises:
      UserError: as `validate`.
    """
    config = default_config()
    known = dict(all_keys())
    for name, value in values.items():
        if name not in known:
            raise unknown_key(name)
        value = tuple(value) if isinstance(value, list) else value
        known[name].check(name, value)
        section, _, leaf = name.rpartition(".")
        node = config
        for part in section.split(".") if section else ():
            node = node[part]
        node[leaf] = value
    validate(config)
    return config


def load(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, for another one that starts from it.

    Configs are files and not a package, so that anyone may have their own folder of them.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(source: str, function: str = "get_config") -> Any:
    """What a function of a config file gives for FILE or FILE:ARGUMENT."""
    path, _, argument = source.partition(":")
    found = getattr(load(pathlib.Path(path)), function)
    return found(argument) if argument else found()


def parse_change(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as Python has it where it can be read so."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def read_workdir(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `config.json` of a workdir says, or None where there is none."""
    path = workdir / "config.json"
    try:
        text = json.loads(path.read_text())
        return {"config": text["config"], "data": text["data"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # of the file system or bucket, and what is in the file
        raise UserError(
            f"{path}: not readable as the config of a run ({error}); choose another --workdir."
        ) from None


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config of a run that exists: this file is the `--config` of a workdir."""
    found = read_workdir(storage.place(workdir))
    if found is None:
        raise UserError(f"{workdir}: there is no config.json here; give --config=FILE.")
    return make_config(found["config"])
