"""Config keys as fields of frozen dataclasses: description, checks and conversion.

`schema.py` defines the keys themselves. `python -m hlrcml_jax.schema` prints their table, which is
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

from hlrcml_jax.errors import UserError, is_unicode, quoted

# On the devices numbers have 32 bits.
LARGEST = {bool: 1, int: 2**31 - 1, float: 3.4e38}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the default value.
      meaning: its description, with unit and range.
      allowed: predicate, whether a value is in range.
      choices: the allowed values, if they can be listed.
      may_change: whether a run can be resumed with another value.
      code: whether the value may be a dotted path to custom code, see `custom.py`.
      own: whether it is the user's own choice, never taken from a workdir.
      kind: type of the value.
    """

    default: Any
    meaning: str = ""
    allowed: Callable[[Any], bool] = lambda value: True
    choices: Collection[Any] = ()
    may_change: bool = False
    code: bool = False
    own: bool = False
    kind: type = object

    @property
    def text(self) -> str:
        """The meaning, followed by the choices."""
        listed = [str(choice) or "''" for choice in self.choices]
        listed += ["or package.module:Name of your own"] if self.code and self.choices else []
        return f"{self.meaning}; one of {', '.join(listed)}" if listed else self.meaning

    def checked(self, name: str, value: Any) -> Any:
        """The value converted to the key's type: an int to a float, a list to a tuple.

        Raises:
          UserError: naming the key, when the value is not allowed.
        """
        if value is None and self.default is None:
            return None
        if self.kind is float and type(value) is int:
            value = _as_float(value)
        if self.kind is tuple and type(value) is list:
            value = tuple(value)
        if self.kind is not object and type(value) is not self.kind:
            raise UserError(
                f"config key {name} is {quoted(value)}, of type {type(value).__name__}; it takes "
                f"a value of type {self.kind.__name__}{f' ({self.text})' if self.text else ''}."
            )
        is_code = self.code and is_path(value)
        if (self.choices and not is_code and value not in self.choices) or not self.allowed(value):
            raise UserError(f"config key {name} cannot be {quoted(value)}: {self.text}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) and not is_unicode(number):
                raise UserError(f"config key {name} cannot be {quoted(value)}: it is not UTF-8.")
            if isinstance(number, int | float) and not abs(number) <= LARGEST[type(number)]:
                raise UserError(
                    f"config key {name} cannot be {quoted(value)}: its numbers are finite, and at "
                    f"most {LARGEST[type(number)]:,}."
                )
        return value


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in ASCII digits, within the range of a key."""
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= LARGEST[int]


def is_path(value: Any) -> bool:
    """Whether a value is a dotted path, `package.module:Name`, rather than a built-in name."""
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
    own: bool = False,
) -> Any:
    """A dataclass field for a config key; the arguments are those of `Key`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Model:
    ...     gate: float = key(1.0, "strength of the gate; at least 0", lambda value: value >= 0)
    >>> Model.gate, Model().gate
    (1.0, 1.0)
    """
    made = Key(default, meaning, allowed, choices, may_change, code, own)
    return dataclasses.field(default=default, metadata={"key": made})


def field_of(section: type, name: str) -> Any:
    """A dataclass field with the default and the checks of a section's key."""
    (field,) = (field for field in dataclasses.fields(section) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


class Options(Mapping[str, Any]):
    """Options of custom code by name: an immutable open section of a config."""

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


def positive(value: float) -> bool:
    return value > 0


def at_least(least: float) -> Callable[[float], bool]:
    return lambda value: value >= least


def share(value: float) -> bool:
    return 0 <= value < 1


def factor(value: float) -> bool:
    return 0 < value <= 1


def options(code_key: str, meaning: str) -> Any:
    """A field for the options of the custom code that the field `code_key` names."""
    metadata = {"options_of": code_key, "meaning": meaning}
    return dataclasses.field(default=Options(), metadata=metadata)


def kind_of(annotation: Any, default: Any) -> type:
    """The type of a field's values; float for `float | None`."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [kind for kind in kinds if isinstance(kind, type) and kind is not types.NoneType]
    return kinds[0] if kinds else object if default is None else type(default)


@functools.cache
def by_name(section: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a dataclass and its sections by dotted name, in order of definition."""
    keys = {}
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            keys |= by_name(type(field.default), f"{prefix}{field.name}.")
        elif "key" in field.metadata:
            kind = kind_of(hints[field.name], field.default)
            keys[prefix + field.name] = dataclasses.replace(field.metadata["key"], kind=kind)
    return keys


@functools.cache
def open_sections(section: type, prefix: str = "") -> dict[str, tuple[str, str]]:
    """{open section: (key that names its code, meaning)}, by dotted name."""
    sections = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default):
            sections |= open_sections(type(field.default), f"{prefix}{field.name}.")
        elif "options_of" in field.metadata:
            code_key = prefix + field.metadata["options_of"]
            sections[prefix + field.name] = code_key, field.metadata["meaning"]
    return sections


def flatten(config: Any) -> dict[str, Any]:
    """Values of a ConfigDict or dataclass by dotted name; lists become tuples."""
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
    """A dataclass from values by dotted name; missing values take their defaults."""
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
    """A dataclass with values replaced by dotted name; unchecked, so they may be arrays."""
    return build(type(config), flatten(config) | dict(values))


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """A dataclass as a locked ConfigDict; its open sections accept new keys."""
    made = _unlocked(config).lock()
    for name in open_sections(type(config)):
        section: Any = made
        for part in name.split("."):
            section = section[part]
        section.unlock()
    return made


def _unlocked(config: Any) -> ml_collections.ConfigDict:
    made, keys = ml_collections.ConfigDict(), by_name(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            made[field.name] = _unlocked(value)
        elif isinstance(value, Options):
            made[field.name] = ml_collections.ConfigDict(dict(value))
        else:
            if field.default is None:
                made[field.name] = config_dict.placeholder(keys[field.name].kind)
            made[field.name] = value
    return made


def unknown_key(name: str, existing: Collection[str]) -> UserError:
    """The error for a key, or the last part of one, that does not exist; suggests a close one."""
    full_names = {full: full for full in existing}
    full_names |= {full.rpartition(".")[2]: full for full in existing}
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
    for name, (code_key, meaning) in open_sections(config).items():
        rows[code_key] += f"\n| `{name}.*` | | {meaning} | |"
    return "\n".join([*lines, *rows.values(), ""])
