"""Keys of a config as fields of frozen dataclasses: described, checked, written and read.

`schema.py` has the keys themselves. `python -m hlrcml_jax.schema` prints their table, which is
`configs/README.md`.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from hlrcml_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the default value.
      meaning: what it is, in which unit and range.
      allowed: whether a value is in its range.
      choices: the allowed values, where they can be listed.
      may_change: whether a run may be resumed after this key has changed.
      code: whether the value may be the dotted path of a user's own code, see `custom.py`.
      kind: type of the value.
    """

    default: Any
    meaning: str = ""
    allowed: Callable[[Any], bool] = lambda value: True
    choices: Collection[Any] = ()
    may_change: bool = False
    code: bool = False
    kind: type = object

    @property
    def text(self) -> str:
        """The meaning with its choices."""
        listed = [str(choice) or "''" for choice in self.choices]
        listed += ["or package.module:Name of your own"] if self.code and self.choices else []
        return f"{self.meaning}; one of {', '.join(listed)}" if listed else self.meaning

    def checked(self, name: str, value: Any) -> Any:
        """The value as its type, an int as a float where a float is asked for.

        Raises:
          UserError: naming the key, when it cannot have this value.
        """
        if value is None and self.default is None:
            return None
        if self.kind is float and type(value) is int:
            value = _as_float(value)
        if self.kind is tuple and type(value) is list:
            value = tuple(value)
        if self.kind is not object and type(value) is not self.kind:
            raise UserError(
                f"config key {name} is {value!r}, of type {type(value).__name__}; it takes "
                f"a value of type {self.kind.__name__} ({self.text})."
            )
        is_code = self.code and is_path(value)
        if (
            (self.choices and not is_code and value not in self.choices)
            or (isinstance(value, float) and not math.isfinite(value))
            or not self.allowed(value)
        ):
            raise UserError(f"config key {name} cannot be {value!r}: {self.text}.")
        return value


def is_path(value: Any) -> bool:
    """Whether a value is a dotted path, `package.module:Name`, and no built-in name."""
    return isinstance(value, str) and ":" in value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def key(
    default: Any,
    meaning: str,
    allowed: Callable[[Any], bool] = lambda value: True,
    *,
    choices: Collection[Any] = (),
    may_change: bool = False,
    code: bool = False,
) -> Any:
    """A field of a config's dataclass; the arguments are those of `Key`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Model:
    ...     gate: float = key(1.0, "strength of the gate; at least 0", lambda value: value >= 0)
    >>> Model.gate, Model().gate
    (1.0, 1.0)
    """
    made = Key(default, meaning, allowed, choices, may_change, code)
    return dataclasses.field(default=default, metadata={"key": made})


class Options(Mapping[str, Any]):
    """Options of a user's own code by name: an open section of a config, immutable."""

    def __init__(self, values: Mapping[str, Any] | None = None):
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._values.items())))

    def __repr__(self) -> str:
        return f"Options({self._values!r})"


def options(of: str, meaning: str) -> Any:
    """The open section with the options of the code that another field of the section names."""
    return dataclasses.field(default=Options(), metadata={"options_of": of, "meaning": meaning})


def kind_of(annotation: Any, default: Any) -> type:
    """The type of a field's values; of `float | None` it is float."""
    if default is not None:
        return type(default)
    kinds = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    kinds = [kind for kind in kinds if isinstance(kind, type) and kind is not types.NoneType]
    return kinds[0] if kinds else object


@functools.cache
def by_name(section: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a dataclass and its sections by dotted name, in their order."""
    found = {}
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            found |= by_name(type(field.default), f"{prefix}{field.name}.")
        elif "key" in field.metadata:
            kind = kind_of(hints[field.name], field.default)
            found[prefix + field.name] = dataclasses.replace(field.metadata["key"], kind=kind)
    return found


@functools.cache
def open_sections(section: type, prefix: str = "") -> dict[str, tuple[str, str]]:
    """{open section: (key that names the code, meaning)} by dotted names."""
    found = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            found |= open_sections(type(field.default), f"{prefix}{field.name}.")
        elif "options_of" in field.metadata:
            of = prefix + field.metadata["options_of"]
            found[prefix + field.name] = of, field.metadata["meaning"]
    return found


def flatten(config: Any) -> dict[str, Any]:
    """Values of a ConfigDict, or of a dataclass, by dotted name; lists become tuples."""
    if dataclasses.is_dataclass(config):
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    else:
        values = dict(config.items())
    flat = {}
    for name, value in values.items():
        if isinstance(value, ml_collections.ConfigDict | Options) or dataclasses.is_dataclass(
            value
        ):
            flat.update({f"{name}.{rest}": inner for rest, inner in flatten(value).items()})
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


Section = typing.TypeVar("Section")


def build(section: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """A dataclass from values by dotted name; those that are not given have their defaults."""
    made = {}
    for field in dataclasses.fields(section):  # pyright: ignore[reportArgumentType]
        name = prefix + field.name
        if dataclasses.is_dataclass(field.default):
            made[field.name] = build(type(field.default), values, f"{name}.")
        elif "options_of" in field.metadata:
            made[field.name] = Options(
                {
                    full.removeprefix(f"{name}."): value
                    for full, value in values.items()
                    if full.startswith(f"{name}.")
                }
            )
        elif name in values:
            made[field.name] = values[name]
    return section(**made)


def replaced(config: Section, values: Mapping[str, Any]) -> Section:
    """A dataclass with some values by dotted name, which are not checked: they may be arrays."""
    return build(type(config), flatten(config) | dict(values))


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """A locked ConfigDict of a dataclass; its open sections take new keys."""
    made = _unlocked(config).lock()
    for name in open_sections(type(config)):
        section: Any = made
        for part in name.split("."):
            section = section[part]
        section.unlock()
    return made


def _unlocked(config: Any) -> ml_collections.ConfigDict:
    made, known = ml_collections.ConfigDict(), by_name(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            made[field.name] = _unlocked(value)
        elif isinstance(value, Options):
            made[field.name] = ml_collections.ConfigDict(dict(value))
        else:
            if field.default is None:
                kind = known[field.name].kind
                made[field.name] = config_dict.placeholder(kind)
            made[field.name] = value
    return made


def unknown_key(name: str, known: Collection[str]) -> UserError:
    """The mistake of a key, or of the last part of one, that is not among the known ones."""
    full_names = {full: full for full in known}
    full_names |= {full.rpartition(".")[2]: full for full in known}
    close = difflib.get_close_matches(name, full_names, n=1)
    hint = f"did you mean {full_names[close[0]]}?" if close else "configs/README.md has all keys."
    return UserError(f"config key {name} does not exist; {hint}")


def render(config: type) -> str:
    """The text of `configs/README.md`: a table of all keys, their defaults and meanings."""
    lines = [
        "# Keys of a config",
        "",
        "Set in a config file, or on the command line as `--config.key=value`. A dot in the last",
        "column: the key may change when a run is resumed in its workdir. This table is written by",
        "`python -m hlrcml_jax.schema > configs/README.md`.",
        "",
        "| key | default | meaning | |",
        "|---|---|---|---|",
    ]
    rows = {}
    for name, made in by_name(config).items():
        default = f"`{made.default!r}`".replace("'", '"').replace("|", "\\|")
        text = made.text.replace("|", "\\|")
        rows[name] = f"| `{name}` | {default} | {text} | {'·' if made.may_change else ''} |"
    for name, (of, meaning) in open_sections(config).items():
        after = f"| `{name}.*` | | {meaning} | |"
        rows[of] = f"{rows[of]}\n{after}"
    return "\n".join([*lines, *rows.values(), ""])
