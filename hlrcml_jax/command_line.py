"""The config on the command line: `--config=SOURCE` and `--config.KEY=VALUE`."""

import ast
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files
from hlrcml_jax.errors import UserError, shortened
from hlrcml_jax.keys import Key, flatten

PREFIXES = ("--config.", "-config.", "--noconfig.")
BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(config overrides, all other arguments); VALUE may be a separate argument."""
    changes, others, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(PREFIXES):
            others.append(argument)
            continue
        if "=" not in argument and not argument.startswith("--no"):
            is_value = rest and not rest[0].startswith("--")
            argument += f"={rest.pop(0)}" if is_value else "=true"
        changes.append(argument)
    return changes, others


def read(
    changes: Sequence[str],
    source: str | None,
    workdir: str | None,
    allow_code: bool = False,
    updates: bool = False,
) -> tuple[ml_collections.ConfigDict, str]:
    """(config, workdir); without a source, the overrides apply to the workdir's own config.

    Args:
      changes: config overrides, as returned by `split`.
      source: FILE.py, FILE.py:ARGUMENTS or a workdir.
      workdir: of the run; None for runs/<name of the source>.
      allow_code: whether custom code named in a workdir's config may be imported.
      updates: whether the run continues that of the source, a workdir.

    Raises:
      UserError: naming the wrong file or key.
    """
    if updates and None in (source, workdir):
        raise UserError(
            "--mode=update needs --config=WORKDIR of the run to continue, --config.data.path=FILE "
            "with the new interactions, and --workdir for the new run."
        )
    if source is None and workdir is None:
        raise UserError("no config: pass --config=FILE.py, or --workdir=DIR of an existing run.")
    start, texts = source or str(workdir), dict(map(_key_and_text, changes))
    values, rest = _split_options(texts)
    if rest:
        # Options of custom code get their types from that code, which the source may name.
        existing = config_lib.all_keys(flatten(_read(source, workdir, values, allow_code)))
        for name, text in rest.items():
            if name not in existing:
                raise config_lib.unknown_key(name, existing)
            values[name] = _value(name, existing[name], text)
    if updates:
        return config_files.update_of(str(source), values, allow_code), str(workdir)
    config = _read(source, workdir, values, allow_code)
    if workdir is None:
        path = config_files.located(start).partition(".py:")[0]
        workdir = str(pathlib.Path("runs") / pathlib.Path(path).stem)
    return config, workdir


def _read(
    source: str | None, workdir: str | None, values: dict[str, Any], allow_code: bool
) -> ml_collections.ConfigDict:
    if source is not None:
        return config_files.read(source, values, allow_code)
    return config_files.from_workdir(str(workdir), values, allow_code)  # whatever its name


def describe_options(
    changes: Sequence[str], source: str | None, workdir: str | None, allow_code: bool = False
) -> str:
    """Help text for the options of a config's custom code; "" if it has none.

    Args:
      changes: config overrides, as returned by `split`.
      source: as in `read`; with neither, the defaults.
      workdir: as in `read`.
      allow_code: as in `read`.
    """
    values, _ = _split_options(dict(map(_key_and_text, changes)))
    given = source is not None or workdir is not None
    made = _read(source, workdir, values, allow_code) if given else config_lib.make_config(values)
    lines = []
    for name, key in config_lib.all_keys(flatten(made)).items():
        if name not in config_lib.all_keys():
            lines.append(f"  --config.{name}: {key.text or 'no description'}")
            lines.append(f"    (type {key.kind.__name__}; default: {key.default!r})")
    return "\n".join(["options of your own code:", "", *lines, "", ""]) if lines else ""


def _split_options(texts: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values of built-in keys, texts of custom options)."""
    keys = config_lib.all_keys()
    rest = {name: text for name, text in texts.items() if name not in keys}
    for name in rest:
        if ".options." not in name:
            raise config_lib.unknown_key(name)
    return {name: _value(name, keys[name], texts[name]) for name in texts if name in keys}, rest


def _key_and_text(change: str) -> tuple[str, str]:
    if change.startswith("--no"):
        return change.removeprefix("--noconfig."), "false"
    name, _, text = change.partition("=")
    return name.partition(".")[2], text


def _value(name: str, key: Key, text: str) -> Any:
    """Parses the text of a key.

    Raises:
      UserError: when the text is not of the key's type.
    """
    try:
        if key.default is None and text.lower() == "none":
            return None
        if key.kind is str:
            return text
        if key.kind is bool:
            return BOOLS[text.lower()]
        if key.kind in (int, float) and not text.isascii():  # Python takes digits of any script
            raise ValueError
        if key.kind is int:
            return int(text, 0)
        if key.kind is float:
            return float(text)
        return _sequence(text)
    except (ValueError, KeyError):
        raise UserError(
            f"--config.{name}={shortened(text, 60)}: it takes a value of type {key.kind.__name__} "
            f"({key.text})."
        ) from None


def _sequence(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    return tuple(value) if isinstance(value, list | tuple) else (value,)
