"""Configs from files: a Python file with `get_config`, or the `config.json` of a workdir."""

import ast
import importlib.util
import json
import pathlib
import re
import traceback
import types
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from hlrcml_jax import config as config_lib
from hlrcml_jax import storage
from hlrcml_jax.errors import UserError


def read(
    source: str, changes: Mapping[str, Any] | None = None, allow_code: bool = False
) -> ml_collections.ConfigDict:
    """The config of FILE.py, FILE.py:ARGUMENTS or a workdir, with changes; validated.

    Args:
      source: of the config.
      changes: values by dotted names.
      allow_code: see `from_workdir`.

    Raises:
      UserError: a file that fails or does not exist, or a mistake in a key.
    """
    if not re.search(r"\.py(:|$)", source):
        return from_workdir(source, changes, allow_code)
    values = config_lib.flatten(call(source))
    return config_lib.make_config(config_lib.changed(values, changes or {}))


def from_workdir(
    workdir: str | pathlib.Path,
    changes: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    trusted: Collection[str] = (),
) -> ml_collections.ConfigDict:
    """The config that a workdir was trained with, with changes; validated.

    A workdir may come from someone else: the code that its config names is imported only with
    `allow_code`, when the path is trusted, or when the changes have the same key.

    Args:
      workdir: of a run.
      changes: values by dotted names.
      allow_code: whether all code that it names may be imported.
      trusted: dotted paths that may be imported.

    Raises:
      UserError: when there is no run, or its config names code that is not allowed.
    """
    found = read_workdir(storage.place(workdir))
    if found is None:
        raise UserError(f"{workdir}: there is no config.json here; give --config=FILE.py.")
    changes = changes or {}
    for key, path in config_lib.code_paths(found["config"]):
        if not (allow_code or path in trusted or key in changes):
            raise UserError(
                f"{workdir}: its config.json names code to import, {key}={path}; if you trust it, "
                f"give --allow_code (allow_code=True), or {key} yourself."
            )
    return config_lib.make_config(config_lib.changed(found["config"], changes))


def read_workdir(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `config.json` of a workdir says, or None where there is none."""
    path = workdir / "config.json"
    try:
        text = json.loads(path.read_text())
        return {"config": dict(text["config"]), "data": text["data"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # of the file system or bucket, and what is in the file
        raise UserError(
            f"{path}: not readable as the config of a run ({error}); choose another --workdir."
        ) from None


def load(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, for another one that starts from it.

    Configs are files and not a package, so that anyone may have their own folder of them.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(source: str, function: str = "get_config") -> Any:
    """The result of a function of FILE.py or FILE.py:ARGUMENTS.

    Raises:
      UserError: naming the line, when the file fails.
    """
    path, _, arguments = source.partition(":")
    try:
        found = getattr(load(pathlib.Path(path)), function)
        return found(arguments) if arguments else found()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:  # a config file is a program, and can raise anything
        if unknown := re.search(r'Key "(\w+)" does not exist', str(error)):
            raise config_lib.unknown_key(unknown[1]) from None
        absolute = str(pathlib.Path(path).absolute())
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename in (path, absolute)]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None


def parse_change(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as Python has it where it can be read so."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
