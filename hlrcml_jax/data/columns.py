"""Lazy text tables: columns are located, checked and typed as a stream."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import polars as pl
import polars.selectors as cs

from hlrcml_jax.data import diagnosis as mistakes
from hlrcml_jax.data.account import Counts
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.errors import UserError, listed, shortened

ROLES = ("user", "item", "value", "time")
SEPARATORS = ";\t|,"  # usual ones

# Column names recognised without configuration, in order of preference, as `_usual` writes them.
USUAL_NAMES = {
    "user": (
        *("userid", "user", "uid", "customerid", "reviewerid", "visitorid", "accountid"),
        *("memberid", "profileid", "listenerid", "personid", "customer", "username"),
    ),
    "item": (
        *("itemid", "item", "iid", "movieid", "artistid", "productid", "asin", "parentasin"),
        *("songid", "businessid", "trackid", "bookid", "isbn", "gameid", "articleid", "newsid"),
        *("videoid", "animeid", "recipeid", "venueid", "appid", "stockcode", "sku", "product"),
    ),
    "value": (
        *("rating", "ratings", "bookrating", "userrating", "reviewrating", "overall", "value"),
        *("score", "reviewscore", "count", "weight", "plays", "playcount", "stars"),
    ),
    "time": (
        *("timestamp", "time", "date", "unixtime", "unixtimestamp", "unixreviewtime", "datetime"),
        *("eventtime", "eventtimestamp", "timestamps", "ts", "createdat", "updatedat"),
        *("purchasedat", "playedat", "listenedat", "ratedat", "visitedat", "orderedat"),
        *("purchasedate", "eventdate", "orderdate", "invoicedate", "reviewdate"),
    ),
}


def _usual(name: str) -> str:
    """The name in lower case without `_`, `-`, `.` and spaces, and without RecBole's type."""
    return re.sub(r"[\s_.-]", "", re.sub(r":(token|float)(_seq)?$", "", name).lower())


def matters(name: str, layout: Layout) -> bool:
    """Whether a column of this name is one that is looked for."""
    return name in layout.columns or any(_usual(name) in usual for usual in USUAL_NAMES.values())


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
        is_index = wanted.isascii() and wanted.isdecimal() and len(wanted) < 10
        return names[int(wanted)] if is_index and int(wanted) < len(names) else None

    def _find(self, role: str) -> str | None:
        wanted = self.layout.columns[ROLES.index(role)]
        if name := self.named(wanted):
            return name
        names = self.names()
        if not wanted:
            by_usual = {_usual(name): name for name in reversed(names)}
            for usual in filter(by_usual.get, USUAL_NAMES[role]):
                return by_usual[usual]
            if not self.layout.header and ROLES.index(role) < len(names):
                return names[ROLES.index(role)]
        return None

    def column(self, role: str) -> str:
        """The name of the column for a role.

        Raises:
          UserError: when no column has the configured or a usual name.
        """
        if name := self._find(role):
            return name
        wanted = self.layout.columns[ROLES.index(role)]
        what = f"no column {wanted!r}" if wanted else f"no column that looks like the {role}"
        section = self.layout.section
        keys = f"{section}.{role}" if section != "data" else f"data.columns.{role}"
        place, separator = str(self.path), ""
        if self.format == "delimited":
            place, separator = f"{place}, line 1", f" (separator {self.layout.separator!r})"
            key, names = f"{section}.separator", self.names()
            others = [each for each in SEPARATORS if each in names[0]] if len(names) == 1 else []
            keys = f"{key}={others[0]!r}" if others else f"{key} or {keys}"
        raise UserError(
            f"{place}: {what} among {listed(self.names()) or 'none'}{separator}; set {keys}."
        )

    def collect(
        self, roles: Sequence[str], threshold: float | None, as_text: Collection[str] = ()
    ) -> tuple[pl.DataFrame, Counts, dict[str, str]]:
        """(the typed table, counts of all rows, columns that were found by their usual names).

        Every row is checked first.

        Args:
          roles: the columns to read, if present.
          threshold: rows with a smaller value are dropped.
          as_text: roles whose ids stay as they are written.
        """
        used = {}
        for role in (role for role in ROLES if role in roles):
            given = self.layout.columns[ROLES.index(role)]
            if given or role in ("user", "item") or self._find(role):
                used[role] = self.column(role)
        if threshold is not None and "value" not in used:
            above(pl.DataFrame(schema=["user"]), threshold)
        rows = self._rows(used)
        checks = {role: _CHECKS[role](pl.col(role)) for role in used}
        summary = [
            expression.alias(f"{role} {name}")
            for role, check in checks.items()
            for name, expression in check.summary().items()
        ]
        if threshold is not None:
            summary += [pl.col(role).n_unique().alias(f"{role} n") for role in ("user", "item")]
        with self.readable():
            if self.format == "jsonl":
                mistakes.check_fields(self.path, list(used.values()))
            stats = rows.select(pl.len(), *summary).collect(engine="streaming").row(0, named=True)
        if not stats["len"]:
            raise UserError(f"{self.path}: it has a header but no interactions.")
        for role, check in checks.items():
            own = {name: stats[f"{role} {name}"] for name in check.summary()}
            wrong = check.wrong(own)
            if wrong is not None:
                raise self._error(rows, used[role], role, *wrong)
            typed = pl.col(role).cast(pl.Categorical) if role in as_text else check.typed(own)
            rows = rows.with_columns(typed.alias(role))
        if threshold is not None:
            _check_reached(stats["value largest"], threshold)
            rows = rows.filter(pl.col("value") >= threshold)
        counts = Counts(stats["len"], stats.get("user n", 0), stats.get("item n", 0))
        with self.readable():
            wanted = rows.select(role for role in ROLES if role in used)
            table = wanted.collect(engine="streaming")
        given = dict(zip(ROLES, self.layout.columns, strict=True)) if self.layout.header else used
        return table, counts, {role: name for role, name in used.items() if not given[role]}

    def _rows(self, used: Mapping[str, str]) -> pl.LazyFrame:
        """The used columns by role, stripped, with the index of each row."""
        fields = [exactly(column).str.strip_chars().alias(role) for role, column in used.items()]
        if self.format != "delimited":
            return self.lines.select(fields).with_row_index("row")
        # Blank lines are rows of nulls; any other missing value is an error.
        blank = pl.all_horizontal(pl.all().is_null()).alias("blank")
        rows = self.lines.select(blank, *fields).with_row_index("row")
        return rows.filter(~pl.col("blank")).drop("blank")

    def _error(self, rows, column, role, is_wrong: pl.Expr, template: str) -> UserError:
        with self.readable():
            first = rows.filter(is_wrong).head(1).select("row", role).collect(engine="streaming")
        row, text = first.row(0)
        line = mistakes.line_number(self.path, self.format, self.layout, row)
        text = text if text is None else shortened(text)
        sentence = template.format(text=text, column=shortened(column), role=role)
        unit = "row" if self.format == "parquet" else "line"
        return UserError(f"{self.path}, {unit} {line}: {sentence}.")


def exactly(name: str) -> pl.Expr:
    """The column of this name, which `pl.col` would take for a pattern if it is `*` or `^…$`."""
    return cs.by_name(name).as_expr()


def is_integer(text: pl.Expr) -> pl.Expr:
    """Whether an id is an integer of 64 bits without leading zeros, or a whole fraction (12.0)."""
    return text.str.contains(r"^(?:0|-?[1-9]\d*)(?:\.0+)?$") & as_integer(text).is_not_null()


def as_integer(text: pl.Expr) -> pl.Expr:
    """The integer that an id is, or null."""
    return text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)


@dataclasses.dataclass(frozen=True)
class _Ids:
    """Checks of an id column: no missing value, and none negative if all are integers."""

    text: pl.Expr

    @property
    def _parsed(self) -> pl.Expr:
        return as_integer(self.text)

    @property
    def _missing(self) -> pl.Expr:
        return self.text.is_null() | (self.text == "")

    def summary(self) -> dict[str, pl.Expr]:
        return {
            "missing": self._missing.any(),
            "plain": is_integer(self.text).fill_null(False).all(),
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


# ISO 8601, also with a space for the T; the zone may be absent (UTC), a letter or an offset.
_DATE = r"([0-9]{4}(?:-[0-9]{2}-[0-9]{2}|/[0-9]{2}/[0-9]{2}))"
_CLOCK = r"(?:[Tt ]+([0-9]{2}:[0-9]{2})(:[0-9]{2})?([.,][0-9]+)?)?"
_ZONE = r" *(?:[Zz]|UTC|GMT|([+-])([01][0-9]|2[0-3]):?([0-5][0-9])?)?"


def seconds_of_date(text: pl.Expr) -> pl.Expr:
    """Seconds since 1970-01-01 UTC of a date, or of a date and time; null for other text."""
    parts = text.str.extract_groups(f"^{_DATE}{_CLOCK}{_ZONE}$").struct
    date, clock, second, fraction, sign, hours, minutes = map(parts.field, "1234567")
    plain = date.str.replace_all("/", "-") + pl.lit(" ")
    plain += clock.fill_null("00:00") + second.fill_null(":00")
    whole = plain.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s")
    part = fraction.str.replace(",", ".").cast(pl.Float64).fill_null(0.0)
    offset = 60 * hours.cast(pl.Int64) + minutes.cast(pl.Int64).fill_null(0)
    zone = 60 * pl.when(sign == "-").then(-offset).otherwise(offset).fill_null(0)
    return whole.cast(pl.Float64) + part - zone


@dataclasses.dataclass(frozen=True)
class _Times(_Numbers):
    """Checks of a time column: all seconds, or all dates."""

    kind = "a time (seconds, or an ISO date)"

    @property
    def _date(self) -> pl.Expr:
        return seconds_of_date(self.text)

    def summary(self) -> dict[str, pl.Expr]:
        return super().summary() | {
            "dates": self._date.is_not_null().any(),
            "no date": self._date.is_null().any(),
            "no number": self._parsed.is_null().all(),
        }

    def wrong(self, stats: dict[str, Any]) -> tuple[pl.Expr, str] | None:
        if stats["missing"] or not (stats["dates"] or stats["no number"]):
            return super().wrong(stats)
        if not stats["no date"]:
            return None
        others = " where other rows hold dates" if stats["dates"] else ""
        return self._date.is_null(), self._template + others

    def typed(self, stats: dict[str, Any]) -> pl.Expr:
        return self._date if stats["dates"] else self._parsed


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
