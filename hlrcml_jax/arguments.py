"""Checks of the arguments of public functions: ids, counts, flags, histories and paths.

A wrong argument is a `UserError` that names it, never an exception from the inside.
"""

import math
import numbers
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hlrcml_jax.errors import UserError, is_unicode, quoted, shortened

_HISTORIES = "a mapping {user id: item ids}, or a frame with the columns user_id and item_id"


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number, also of numpy.

    Raises:
      UserError: when it is no whole number, or below `least`.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} is {quoted(value)}; it takes a whole number of at least {least}.")
    if value < least:
        raise UserError(f"{name} is {quoted(value)}; it is at least {least}.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """A truth value, also of numpy.

    Raises:
      UserError: for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} is {quoted(value)}; it takes True or False.")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some texts.

    Raises:
      UserError: for anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} is {quoted(value)}; it takes one of {', '.join(choices)}.")
    return value


def text(name: str, value: Any) -> str:
    """A text.

    Raises:
      UserError: for anything else.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is {quoted(value)}; it takes a text.")
    return value


def path(name: str, value: Any) -> str | pathlib.Path:
    """A path, as text or as it is.

    Raises:
      UserError: when it is neither a text nor a path.
    """
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise UserError(f"{name} is {quoted(value)}; it takes the path of a folder.")
    return value if isinstance(value, pathlib.Path) else os.fspath(value)


def function(name: str, value: Any) -> Any:
    """A function, or None.

    Raises:
      UserError: for anything else.
    """
    if value is not None and not callable(value):
        raise UserError(f"{name} is {quoted(value)}; it takes a function.")
    return value


def several(name: str, value: Any) -> list[Any]:
    """The elements of an iterable that is not a text or a mapping.

    Raises:
      UserError: for anything else.
    """
    if _is_one(value) or isinstance(value, Mapping):
        raise UserError(f"{name} is {quoted(value)}; it takes a list.")
    return list(value)


def ids(name: str, wanted: Any) -> list[Any]:
    """One id, or each of an iterable of ids.

    Raises:
      UserError: for a mapping, a frame, or an array of more than one axis.
    """
    if _is_one(wanted):
        return [wanted]
    if isinstance(wanted, Mapping) or hasattr(wanted, "columns") or getattr(wanted, "ndim", 1) > 1:
        raise UserError(f"{name} is a {type(wanted).__name__}; it takes an id or a list of ids.")
    return list(wanted)


def _is_one(value: Any) -> bool:
    is_text_or_array = isinstance(value, str | bytes) or getattr(value, "ndim", 1) == 0
    return is_text_or_array or not isinstance(value, Iterable)


def histories(value: Any) -> tuple[list[Any], list[int], list[Any]]:
    """(user ids, index in them of each interaction, item id of each interaction).

    Args:
      value: {user id: item ids}, or a frame of `user_id` and `item_id`. Integer ids of users stay
        integers if all are; else all are text.

    Raises:
      UserError: for anything else.
    """
    if isinstance(value, Mapping):
        rows = [(user, ids(f"the history of {quoted(user)}", value[user])) for user in value]
    else:
        rows = [(user, [item]) for user, item in _pairs(value)]
    index_of: dict[str, int] = {}  # 196 and "196" are the same id
    row_R, item_R, whole = [], [], True
    for user, items in rows:
        new = _new_id(user)
        whole = whole and isinstance(new, int)
        row = index_of.setdefault(str(new), len(index_of))
        row_R += [row] * len(items)
        item_R += items
    return list(map(int, index_of)) if whole else list(index_of), row_R, item_R


def one_history(user: Any, items: Any) -> dict[Any, Any]:
    """The history of one new user, as `histories` takes it; raises `UserError` as it does."""
    return {_new_id(user): items}


def _pairs(frame: Any) -> Iterable[tuple[Any, Any]]:
    if hasattr(frame, "collect"):  # a lazy frame of polars
        try:
            frame = frame.collect()
        except Exception as error:  # from the caller's own query, or the files it reads
            raise UserError(f"histories: the lazy frame fails ({shortened(str(error))}).") from None
    columns: list[Any] = list(getattr(frame, "columns", ()))
    if not {"user_id", "item_id"} <= set(map(str, columns)):
        found = f"columns {', '.join(map(str, columns))}" if columns else type(frame).__name__
        raise UserError(f"histories are {_HISTORIES}; this has {quoted(found)}.")
    for name in ("user_id", "item_id"):
        if columns.count(name) > 1:
            raise UserError(f"histories are {_HISTORIES}; this has two columns {name}.")
    return zip(list(frame["user_id"]), list(frame["item_id"]), strict=True)


def _new_id(user: Any) -> int | str:
    """The id of a new user: a whole number or a text."""
    is_nan = isinstance(user, float | np.floating) and not math.isfinite(user)
    is_one = isinstance(user, str | numbers.Number | np.generic)
    is_flag = isinstance(user, bool | np.bool_)
    if is_nan or is_flag or not is_one or not is_unicode(str(user)):
        raise UserError(f"histories have the user id {quoted(user)}; it is a text or a number.")
    if not isinstance(user, numbers.Integral):
        return str(user)
    if abs(int(user)) >= 2**63:
        raise UserError(f"histories have the user id {quoted(user)}; give it as a text.")
    return int(user)
