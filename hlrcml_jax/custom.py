"""Code of the user's own, named in a config by its dotted path: `package.module:Name`.

Only this module imports such code. What a path may name is the contract of the key: a subclass of
the models' base class (`model.name`), a loss (`loss.kind`), a weighting of the negatives
(`negatives.weights`), ranking metrics (`evaluation.metrics`).
"""

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hlrcml_jax.errors import UserError
from hlrcml_jax.keys import Key, kind_of

KINDS = (bool, int, float, str, tuple)
OF_FLAX = ("parent", "name")  # fields of every flax module


def name_of(path: str) -> str:
    """The last part of a dotted path: what it names."""
    return re.split(r"[:.]", path)[-1]


def resolve(key: str, path: str) -> Any:
    """Imports what a dotted path names.

    Args:
      key: of the config that has the path, for the sentence of a mistake.
      path: `package.module:Name`.

    Raises:
      UserError: naming the key, when the path cannot be imported.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*", path):
        raise UserError(f"config key {key} cannot be {path!r}: it takes package.module:Name.")
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"config key {key}: there is no module {error.name!r} for {path}; Python looks for "
                "it in the current folder and in PYTHONPATH."
            ) from None
        raise UserError(f"config key {key}: importing {module} failed: {error}.") from None
    except Exception as error:  # the module is a program, and can raise anything
        raise UserError(
            f"config key {key}: importing {module} failed: {type(error).__name__}: {error}."
        ) from None
    try:
        return functools.reduce(getattr, name.split("."), found)
    except AttributeError:
        raise UserError(f"config key {key}: module {module} has no {name!r}.") from None


def options_of(key: str, found: Any, without: Collection[str] = ()) -> dict[str, Key]:
    """The options of a user's own code: fields of a dataclass, keyword-only parameters of others.

    Args:
      key: of the config that names the code, for the sentence of a mistake.
      found: what its path names.
      without: names that are no options.

    Raises:
      UserError: an option without a default, or whose type no config can have.
    """
    described = re.findall(r"^\s*\*{0,2}(\w+): (.+?)\.?$", found.__doc__ or "", re.MULTILINE)
    meanings = dict(described)
    options = {}
    for name, annotation, default, metadata in _parameters(found):
        if name in without or name in OF_FLAX:
            continue
        if default is inspect.Parameter.empty:
            raise UserError(f"config key {key}: {name!r} of {found.__name__} needs a default.")
        made = metadata.get("key", Key(default, meanings.get(name, "")))
        kind = kind_of(annotation, default)
        if kind not in KINDS:
            raise UserError(
                f"config key {key}: {name!r} of {found.__name__} is a {kind.__name__}; an option "
                f"is one of {', '.join(kind.__name__ for kind in KINDS)}."
            )
        options[name] = dataclasses.replace(made, kind=kind)
    return options


def _parameters(found: Any) -> list[tuple[str, Any, Any, Mapping[str, Any]]]:
    """(name, annotation, default, metadata) of each."""
    if dataclasses.is_dataclass(found):
        hints = _hints(found)
        missing = inspect.Parameter.empty
        return [
            (
                field.name,
                hints.get(field.name),
                missing if field.default is dataclasses.MISSING else field.default,
                field.metadata,
            )
            for field in dataclasses.fields(found)
            if field.init
        ]
    if not callable(found):
        return []
    return [
        (name, _hints(found).get(name), parameter.default, {})
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _hints(found: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(found)
    except Exception:  # names that are imported for type checkers alone
        return {}


def bind(key: str, path: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a dotted path names, with its options.

    Raises:
      UserError: also when it cannot be called.
    """
    found = resolve(key, path)
    if not callable(found):
        raise UserError(f"config key {key}: {path} is no function.")
    return functools.partial(found, **options) if options else found
