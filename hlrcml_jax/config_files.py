"""Reading configs: a Python file with `get_config`, or the `config.json` of a workdir.

The package's own configs go by their names: `best` is `configs/best.py`.
"""

import ast
import difflib
import importlib.util
import json
import os
import pathlib
import re
import traceback
import types
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from hlrcml_jax import config as config_lib
from hlrcml_jax import storage
from hlrcml_jax.errors import UserError, quoted

# Keys by their names in workdirs that an earlier version made.
RENAMED = {
    "pretrained.users": "pretrained.user_vectors",
    "pretrained.items": "pretrained.item_vectors",
}


def own(source: str) -> str | None:
    """The path of one of the package's own configs by its name, with its arguments, if any.

    >>> own("best:model=cml").endswith("configs/best.py:model=cml")
    True
    """
    name, colon, arguments = source.partition(":")
    path = _own_files().get(name)
    return None if path is None else f"{path}{colon}{arguments}"


def _own_files() -> dict[str, pathlib.Path]:
    """The package's own configs by name."""
    package = pathlib.Path(__file__).parent
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}


def located(source: str) -> str:
    """A source as it is, if there is a file or folder of this name, or as one of `own`."""
    return source if os.path.exists(source) else own(source) or source


def read(
    source: str, changes: Mapping[str, Any] | None = None, allow_code: bool = False
) -> ml_collections.ConfigDict:
    """The validated config of FILE.py, FILE.py:ARGUMENTS or a workdir, with overrides.

    Args:
      source: FILE.py, FILE.py:ARGUMENTS, the name of the package's own in place of FILE.py, or a
        workdir.
      changes: overrides by dotted key.
      allow_code: see `from_workdir`.

    Raises:
      UserError: when the file is missing or fails, or a key is wrong.
    """
    source = located(source)
    if not re.search(r"\.py(:|$)", source):
        name, names = source.partition(":")[0], sorted(_own_files())
        if name.isidentifier() and not (os.path.exists(source) or storage.is_remote(source)):
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"--config={source}: there is no such file or run{hint}; configs of the package's "
                f"own are {', '.join(names)}."
            )
        return from_workdir(source, changes, allow_code)
    values = config_lib.flatten(call(source))
    return config_lib.make_config(config_lib.changed(values, changes or {}))


def from_workdir(
    workdir: str | pathlib.Path,
    changes: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    trusted: Collection[str] | None = None,
) -> ml_collections.ConfigDict:
    """The validated config of a trained workdir, with overrides.

    A workdir may come from someone else: custom code named in its config is imported only with
    `allow_code`, from a trusted path, or when `changes` sets the same key. Keys that are the user's
    own, as the folder of compiled programs, are taken from `changes` or their defaults.

    Args:
      workdir: of a run.
      changes: overrides by dotted key.
      allow_code: whether any code named in the config may be imported.
      trusted: dotted paths that another config, which reads this workdir, names already.

    Raises:
      UserError: when there is no run, or its config names code that may not be imported.
    """
    saved = read_workdir(storage.absolute(workdir))
    if saved is None:
        raise UserError(f"{workdir}: there is no run here (no config.json).")
    changes = changes or {}
    for key, path in config_lib.code_paths(saved["config"]):
        if not (allow_code or path in (trusted or ()) or key in changes):
            advice = (
                f"if you trust it, give --allow_code (allow_code=True), or {key} yourself"
                if trusted is None
                else "code is imported only where this run's own config names it, too"
            )
            raise UserError(
                f"{workdir}: its config.json names code to import, {key}={path}; {advice}."
            )
    known = config_lib.all_keys()
    values = {
        name: value
        for name, value in saved["config"].items()
        if not (name in known and known[name].own)
    }
    if gone := {name for name in values.keys() - known.keys() if ".options." not in name}:
        raise UserError(
            f"{workdir}: its config.json has the key {quoted(min(gone))}, which this version of "
            "hlrcml_jax does not have; use it with the version that made it."
        )
    return config_lib.make_config(config_lib.changed(values, changes))


# Of a run that continues another: its own data is a table of positives on top, of which a share is
# for validation, and a few epochs are enough.
UPDATE = {
    "data.name": "",
    "data.format": "auto",
    "data.split.kind": "user",
    "data.split.test": 0.0,
    "data.split.keep": 1.0,
    "data.split.train_path": "",
    "data.split.valid_path": "",
    "data.split.test_path": "",
    "data.min_per_user": 0,
    "data.min_per_item": 0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0,
    "train.epochs": 4,
    "train.refit": False,
}
UPDATE_RATE = 0.3  # of the learning rate: about where the recipe's decay leaves it


def update_of(
    workdir: str | pathlib.Path, changes: Mapping[str, Any], allow_code: bool = False
) -> ml_collections.ConfigDict:
    """The config of a run that continues that of a workdir with the interactions of `data.path`.

    Args:
      workdir: of the run.
      changes: overrides by dotted key, `data.path` among them.
      allow_code: see `from_workdir`.
    """
    for name, value in changes.items():
        if name.startswith("data.") and name != "data.format" and value != UPDATE.get(name, value):
            raise UserError(
                f"config key {name} has no effect on an update, whose data is that of the run with "
                "the interactions of data.path on top; leave it out."
            )
    saved = read_workdir(storage.absolute(workdir))
    values = UPDATE | {"train.continues": str(workdir)}
    if saved is not None and not saved["config"].get("train.continues"):
        values["optimizer.learning_rate"] = UPDATE_RATE * saved["config"]["optimizer.learning_rate"]
    return from_workdir(workdir, values | dict(changes), allow_code)


def read_workdir(workdir: pathlib.Path) -> dict[str, Any] | None:
    """`config.json` of a workdir as {"config", "data"}, or None if there is none."""
    path = workdir / "config.json"
    storage.check_no_links(path)
    try:
        text = json.loads(path.read_text())
        config = {RENAMED.get(name, name): value for name, value in text["config"].items()}
        return {"config": config, "data": text["data"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # from the file system, the bucket or the content
        raise UserError(
            f"{path}: not readable as the config of a run ({error}); choose another --workdir."
        ) from None


def load(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, so that another config can build on it.

    Configs are files, not a package, so that anyone can keep their own folder of them.
    """
    if not path.is_file():
        hint = f"; the package's own is --config={path.stem}" if own(path.stem) else ""
        raise UserError(f"{path}: no such file{hint}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(source: str, function: str = "get_config") -> Any:
    """Calls a function of FILE.py, with ARGUMENTS for FILE.py:ARGUMENTS.

    Raises:
      UserError: naming the line that failed.
    """
    path, _, arguments = source.partition(":")
    try:
        called = getattr(load(pathlib.Path(path)), function)
        return called(arguments) if arguments else called()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:  # a config file is code and can raise anything
        if unknown := re.search(r'Key "(\w+)" does not exist', str(error)):
            raise config_lib.unknown_key(unknown[1]) from None
        absolute = str(pathlib.Path(path).absolute())
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename in (path, absolute)]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None


def parse_change(text: str) -> tuple[str, Any]:
    """(key, value) of KEY=VALUE; the value as a Python literal, or as text."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
