"""Tables of text that are not in memory yet: their columns found, checked and typed as a stream."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import polars as pl

from hlrcml_jax.data import diagnosis as mistakes
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.errors import UserError

ROLES = ("user", "item", "value", "time")

# Column names that need no configuration, in lower case and without `_`.
USUAL_NAMES = {
    "user": ("userid", "user", "uid", "customerid", "reviewerid"),
    "item": (
        *("itemid", "item", "iid", "movieid", "artistid", "productid", "asin", "songid"),
        *("businessid", "trackid", "bookid"),
    ),
    "value": ("rating", "value", "score", "count", "weight", "plays", "playcount", "stars"),
    "time": ("timestamp", "time", "date", "unixtime", "datetime"),
}


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table of text that is not in memory yet.

    Attributes:
      path: the plain file.
      format: of the file.
      layout: of the file.
      lines: one row a line or record, all columns as text.
    """

    path: pathlib.Path
    format: str
    layout: Layout
    lines: pl.LazyFrame

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Says where a file cannot be read."""
        try:
            yield
        except pl.exceptions.NoDataError:
            raise UserError(f"{self.path}: the file is empty.") from None
        except mistakes.UNREADABLE as error:
            raise mistakes.why_unreadable(self.path, self.format, self.layout, error) from None

    def names(self) -> list[str]:
        """The columns' names."""
        with self.readable():
            return self.lines.collect_schema().names()

    def named(self, wanted: str) -> str | None:
        """The column with a name, or at a 0-based place written as text, if there is one."""
        names = self.names()
        if wanted in names:
            return wanted
        return names[int(wanted)] if wanted.isdigit() and int(wanted) < len(names) else None

    def _find(self, role: str) -> str | None:
        wanted = self.layout.columns[ROLES.index(role)]
        if name := self.named(wanted):
            return name
        names = self.names()
        if not wanted:
            for name in names:
                if name.lower().replace("_", "") in USUAL_NAMES[role]:
                    return name
            if not self.layout.header and ROLES.index(role) < len(names):
                return names[ROLES.index(role)]
        return None

    def column(self, role: str, section: str = "columns") -> str:
        """The name of a role's column.

        Raises:
          UserError: there is none, or none of the name that the layout gives.
        """
        if name := self._find(role):
            return name
        wanted = self.layout.columns[ROLES.index(role)]
        listed = ", ".join(repr(name) for name in self.names())
        what = f"no column {wanted!r}" if wanted else f"no column that looks like the {role}"
        separator = f" (separator {self.layout.separator!r})" if self.format == "delimited" else ""
        between = "data.titles.separator" if section == "titles" else "data.separator"
        raise UserError(
            f"{self.path}, line 1: {what} among {listed}{separator}; "
            f"set {between} or data.{section}.{role}."
        )

    def collect(self, roles: Sequence[str], threshold: float | None) -> pl.DataFrame:
        """The typed table, after every row has been checked."""
        used = {}
        for role in (role for role in ROLES if role in roles):
            given = self.layout.columns[ROLES.index(role)]
            if given or role in ("user", "item") or self._find(role):
                used[role] = self.column(role)
        if threshold is not None and "value" not in used:
            return above(pl.DataFrame(schema=["user"]), threshold)
        # Blank lines come as rows of nulls; anything else that is missing is a mistake.
        rows = self.lines.with_row_index("row").filter(
            ~pl.all_horizontal(pl.exclude("row").is_null())
        )
        fields = [pl.col(column).str.strip_chars().alias(role) for role, column in used.items()]
        rows = rows.select("row", *fields)
        checks = {role: _CHECKS[role](pl.col(role)) for role in used}
        summary = [
            expression.alias(f"{role} {name}")
            for role, check in checks.items()
            for name, expression in check.summary().items()
        ]
        with self.readable():
            found = rows.select(pl.len(), *summary).collect(engine="streaming").row(0, named=True)
        if not found["len"]:
            raise UserError(f"{self.path}: there is a header but no interaction below it.")
        for role, check in checks.items():
            own = {name: found[f"{role} {name}"] for name in check.summary()}
            wrong = check.wrong(own)
            if wrong is not None:
                raise self._mistake(rows, used[role], role, *wrong)
            rows = rows.with_columns(check.typed(own).alias(role))
        if threshold is not None:
            _check_reached(found["value largest"], threshold)
            rows = rows.filter(pl.col("value") >= threshold)
        with self.readable():
            return rows.select(role for role in ROLES if role in used).collect(engine="streaming")

    def _mistake(self, rows, column, role, is_wrong: pl.Expr, said: str) -> UserError:
        with self.readable():
            first = rows.filter(is_wrong).head(1).select("row", role).collect(engine="streaming")
        row, text = first.row(0)
        line = mistakes.line_number(self.path, self.format, self.layout, row)
        sentence = said.format(text=text, column=column, role=role)
        return UserError(f"{self.path}, line {line}: {sentence}.")


@dataclasses.dataclass(frozen=True)
class _Ids:
    """What is asked of a column of ids: present, and not negative where all are integers."""

    text: pl.Expr

    @property
    def _number(self) -> pl.Expr:
        return self.text.cast(pl.Int64, strict=False)

    @property
    def _missing(self) -> pl.Expr:
        return self.text.is_null() | (self.text == "")

    def summary(self) -> dict[str, pl.Expr]:
        plain = self._number.cast(pl.String) == self.text
        return {
            "missing": self._missing.any(),
            "plain": plain.fill_null(False).all(),
            "least": self._number.min(),
        }

    def wrong(self, found: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        """(which rows, what is wrong with them), if any."""
        if found["missing"]:
            return self._missing, "column {column!r} ({role}) is empty"
        if found["plain"] and found["least"] < 0:
            return self._number < 0, "the {role} id {text} is negative"
        return None

    def typed(self, found: dict[str, Any]) -> pl.Expr:
        # Categories hold each text once, however often it occurs.
        return self._number if found["plain"] else self.text.cast(pl.Categorical)


@dataclasses.dataclass(frozen=True)
class _Numbers(_Ids):
    """What is asked of a column of values: finite numbers."""

    kind = "a number"

    @property
    def _said(self) -> str:
        return "{text!r} in column {column!r} ({role}) is not " + self.kind

    @property
    def _number(self) -> pl.Expr:
        return self.text.cast(pl.Float64, strict=False)

    @property
    def _not_finite(self) -> pl.Expr:
        return ~self._number.is_finite().fill_null(False)

    def summary(self) -> dict[str, pl.Expr]:
        return {
            "missing": self._missing.any(),
            "wrong": self._not_finite.any(),
            "largest": self._number.max(),
        }

    def wrong(self, found: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        if found["missing"]:
            return super().wrong(found)
        if found["wrong"]:
            return self._not_finite, self._said
        return None

    def typed(self, found: dict[str, Any]) -> pl.Expr:
        return self._number


@dataclasses.dataclass(frozen=True)
class _Times(_Numbers):
    """What is asked of a column of times: all seconds, or all dates."""

    kind = "a time (seconds, or an ISO date)"

    @property
    def _date(self) -> pl.Expr:
        date = self.text.str.to_datetime(strict=False, time_unit="ms")
        return date.dt.epoch("ms").cast(pl.Float64) / 1000

    def summary(self) -> dict[str, pl.Expr]:
        return super().summary() | {
            "no number": self._number.is_null().all(),
            "no date": self._date.is_null().any(),
        }

    def wrong(self, found: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        if found["no number"] and not found["missing"]:
            if not found["no date"]:
                return None
            return (
                self._date.is_null(),
                "{text!r} in column {column!r} ({role}) is not " + self.kind,
            )
        return super().wrong(found)

    def typed(self, found: dict[str, Any]) -> pl.Expr:
        return self._date if found["no number"] else self._number


_CHECKS = {"user": _Ids, "item": _Ids, "value": _Numbers, "time": _Times}


def above(table: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    """The rows whose value reaches the threshold."""
    if threshold is None:
        return table
    if "value" not in table.columns:
        raise UserError(
            f"data.threshold is {threshold} but the file has no column of values; set "
            "data.columns.value, or data.threshold=None."
        )
    if table.is_empty():
        return table
    _check_reached(cast(float, table["value"].max()), threshold)
    return table.filter(pl.col("value") >= threshold)


def _check_reached(largest: float, threshold: float) -> None:
    if largest < threshold:
        raise UserError(f"no value reaches data.threshold={threshold}; the largest is {largest}.")
