"""Custom code, named in a config by its dotted path: `package.module:Name`.

Only this module imports such code. The key says what it must be: a subclass of the models' base
class (`model.name`), a loss (`loss.kind`), a sampler of negatives (`negatives.weights`), ranking
metrics (`evaluation.metrics`); the last three are functions, or classes of callable objects.
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
FLAX_FIELDS = ("parent", "name")  # fields of every flax module


def name_of(path: str) -> str:
    """The last part of a dotted path."""
    return re.split(r"[:.]", path)[-1]


def resolve(key: str, path: str) -> Any:
    """Imports the object at a dotted path.

    Args:
      key: the config key with the path, for error messages.
      path: `package.module:Name`.

    Raises:
      UserError: naming the key, when the path cannot be imported.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*", path):
        raise UserError(f"config key {key} cannot be {path!r}; give package.module:Name.")
    module, _, name = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"config key {key}: there is no module {error.name!r} for {path}; Python looks for "
                "it in the current folder and in PYTHONPATH."
            ) from None
        raise UserError(f"config key {key}: importing {module} failed: {error}.") from None
    except (Exception, SystemExit) as error:  # a module is code and can raise anything
        raise UserError(
            f"config key {key}: importing {module} failed: {type(error).__name__}: {error}."
        ) from None
    try:
        return functools.reduce(getattr, name.split("."), imported)
    except AttributeError:
        raise UserError(f"config key {key}: module {module} has no {name!r}.") from None


def options_of(key: str, code: Any, without: Collection[str] = ()) -> dict[str, Key]:
    """The options of custom code: fields of a dataclass, or keyword-only parameters.

    Args:
      key: the config key that names the code, for error messages.
      code: the imported object.
      without: names that are not options.

    Raises:
      UserError: when an option has no default, or a type that a config cannot hold.
    """
    if not callable(code):
        raise UserError(f"config key {key}: what it names is a {type(code).__name__}, no function.")
    name_of_code = getattr(code, "__name__", type(code).__name__)
    described = re.findall(r"^\s*\*{0,2}(\w+): (.+?)\.?$", code.__doc__ or "", re.MULTILINE)
    meanings = dict(described)
    options = {}
    try:
        parameters = _parameters(code)
    except (TypeError, ValueError):  # of some functions that are not written in Python
        raise UserError(
            f"config key {key}: the parameters of {name_of_code} are unknown."
        ) from None
    for name, annotation, default, metadata in parameters:
        if name in without or name in FLAX_FIELDS:
            continue
        if default is inspect.Parameter.empty:
            raise UserError(f"config key {key}: {name!r} of {name_of_code} needs a default.")
        made = metadata.get("key", Key(default, meanings.get(name, "")))
        kind = kind_of(annotation, default)
        if kind not in KINDS:
            raise UserError(
                f"config key {key}: {name!r} of {name_of_code} is a {kind.__name__}; an option "
                f"is one of {', '.join(kind.__name__ for kind in KINDS)}."
            )
        options[name] = dataclasses.replace(made, kind=kind)
    return options


def _parameters(code: Any) -> list[tuple[str, Any, Any, Mapping[str, Any]]]:
    """(name, annotation, default, metadata) of each field or parameter."""
    if dataclasses.is_dataclass(code):
        hints = _hints(code)
        missing = inspect.Parameter.empty
        return [
            (
                field.name,
                hints.get(field.name),
                missing if field.default is dataclasses.MISSING else field.default,
                field.metadata,
            )
            for field in dataclasses.fields(code)
            if field.init
        ]
    return [
        (name, _hints(code).get(name), parameter.default, {})
        for name, parameter in inspect.signature(code).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _hints(code: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(code)
    except Exception:  # names imported for type checkers only
        return {}


def bind(
    key: str, path: str, options: Mapping[str, Any], section: Any = None
) -> Callable[..., Any]:
    """The function at a dotted path with its options bound, or the instance of a class with them.

    Args:
      key: the config key with the path, for error messages.
      path: `package.module:name`.
      options: values of its options.
      section: of a config; other options take the values of its keys with their names.

    Raises:
      UserError: when it cannot be imported, or is not callable.
    """
    function = resolve(key, path)
    if not callable(function):
        raise UserError(f"config key {key}: {path} is not a function.")
    names = [name for name, *_ in _parameters(function)] if section is not None else []
    values = {name: getattr(section, name) for name in names if hasattr(section, name)}
    values |= options
    if isinstance(function, type):
        return function(**values)
    return functools.partial(function, **values) if values else function
