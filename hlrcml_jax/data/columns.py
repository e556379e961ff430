"""Lazy text tables: columns are located, checked and typed as a stream."""

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

# Column names recognised without configuration, in lower case and without `_`.
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
    """A lazy table of text columns.

    Attributes:
      path: the uncompressed file.
      format: of the file.
      layout: of the file.
      lines: one row per line or record, all columns as text.
    """

    path: pathlib.Path
    format: str
    layout: Layout
    lines: pl.LazyFrame

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Turns a reader's error into a sentence that names the line."""
        try:
            yield
        except pl.exceptions.NoDataError:
            raise UserError(f"{self.path}: the file is empty.") from None
        except mistakes.UNREADABLE as error:
            raise mistakes.why_unreadable(self.path, self.format, self.layout, error) from None

    def names(self) -> list[str]:
        """The column names."""
        with self.readable():
            return self.lines.collect_schema().names()

    def named(self, wanted: str) -> str | None:
        """The column with this name or 0-based index (as text), or None."""
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
        """The name of the column for a role.

        Raises:
          UserError: when no column has the configured or a usual name.
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
        """The typed table; every row is checked first."""
        used = {}
        for role in (role for role in ROLES if role in roles):
            given = self.layout.columns[ROLES.index(role)]
            if given or role in ("user", "item") or self._find(role):
                used[role] = self.column(role)
        if threshold is not None and "value" not in used:
            return above(pl.DataFrame(schema=["user"]), threshold)
        # Blank lines are rows of nulls; any other missing value is an error.
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
            stats = rows.select(pl.len(), *summary).collect(engine="streaming").row(0, named=True)
        if not stats["len"]:
            raise UserError(f"{self.path}: it has a header but no interactions.")
        for role, check in checks.items():
            own = {name: stats[f"{role} {name}"] for name in check.summary()}
            wrong = check.wrong(own)
            if wrong is not None:
                raise self._error(rows, used[role], role, *wrong)
            rows = rows.with_columns(check.typed(own).alias(role))
        if threshold is not None:
            _check_reached(stats["value largest"], threshold)
            rows = rows.filter(pl.col("value") >= threshold)
        with self.readable():
            return rows.select(role for role in ROLES if role in used).collect(engine="streaming")

    def _error(self, rows, column, role, is_wrong: pl.Expr, template: str) -> UserError:
        with self.readable():
            first = rows.filter(is_wrong).head(1).select("row", role).collect(engine="streaming")
        row, text = first.row(0)
        line = mistakes.line_number(self.path, self.format, self.layout, row)
        sentence = template.format(text=text, column=column, role=role)
        return UserError(f"{self.path}, line {line}: {sentence}.")


@dataclasses.dataclass(frozen=True)
class _Ids:
    """Checks of an id column: no missing value, and none negative if all are integers."""

    text: pl.Expr

    @property
    def _parsed(self) -> pl.Expr:
        return self.text.cast(pl.Int64, strict=False)

    @property
    def _missing(self) -> pl.Expr:
        return self.text.is_null() | (self.text == "")

    def summary(self) -> dict[str, pl.Expr]:
        plain = self._parsed.cast(pl.String) == self.text
        return {
            "missing": self._missing.any(),
            "plain": plain.fill_null(False).all(),
            "least": self._parsed.min(),
        }

    def wrong(self, stats: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        """(expression of the wrong rows, error template), or None."""
        if stats["missing"]:
            return self._missing, "column {column!r} ({role}) is empty"
        if stats["plain"] and stats["least"] < 0:
            return self._parsed < 0, "the {role} id {text} is negative"
        return None

    def typed(self, stats: dict[str, Any]) -> pl.Expr:
        # A Categorical stores each distinct text once.
        return self._parsed if stats["plain"] else self.text.cast(pl.Categorical)


@dataclasses.dataclass(frozen=True)
class _Numbers(_Ids):
    """Checks of a value column: finite numbers."""

    kind = "a number"

    @property
    def _template(self) -> str:
        return "{text!r} in column {column!r} ({role}) is not " + self.kind

    @property
    def _parsed(self) -> pl.Expr:
        return self.text.cast(pl.Float64, strict=False)

    @property
    def _not_finite(self) -> pl.Expr:
        return ~self._parsed.is_finite().fill_null(False)

    def summary(self) -> dict[str, pl.Expr]:
        return {
            "missing": self._missing.any(),
            "wrong": self._not_finite.any(),
            "largest": self._parsed.max(),
        }

    def wrong(self, stats: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        if stats["missing"]:
            return super().wrong(stats)
        if stats["wrong"]:
            return self._not_finite, self._template
        return None

    def typed(self, stats: dict[str, Any]) -> pl.Expr:
        return self._parsed


@dataclasses.dataclass(frozen=True)
class _Times(_Numbers):
    """Checks of a time column: all seconds, or all dates."""

    kind = "a time (seconds, or an ISO date)"

    @property
    def _date(self) -> pl.Expr:
        date = self.text.str.to_datetime(strict=False, time_unit="ms")
        return date.dt.epoch("ms").cast(pl.Float64) / 1000

    def summary(self) -> dict[str, pl.Expr]:
        return super().summary() | {
            "no number": self._parsed.is_null().all(),
            "no date": self._date.is_null().any(),
        }

    def wrong(self, stats: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        if stats["no number"] and not stats["missing"]:
            if not stats["no date"]:
                return None
            return (
                self._date.is_null(),
                "{text!r} in column {column!r} ({role}) is not " + self.kind,
            )
        return super().wrong(stats)

    def typed(self, stats: dict[str, Any]) -> pl.Expr:
        return self._date if stats["no number"] else self._parsed


_CHECKS = {"user": _Ids, "item": _Ids, "value": _Numbers, "time": _Times}


def above(table: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    """The rows with a value of at least the threshold."""
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
