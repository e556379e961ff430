"""Readers of interaction files: to a table of user, item and, if present, value and time.

Files are streamed, so that only the needed columns and rows are in memory.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import cast

import polars as pl

from hlrcml_jax.data import diagnosis as mistakes
from hlrcml_jax.data import json_lines, text
from hlrcml_jax.data.account import Counts
from hlrcml_jax.data.archives import unpacked
from hlrcml_jax.data.columns import (
    ROLES,
    TextTable,
    above,
    as_integer,
    exactly,
    is_integer,
    matters,
)
from hlrcml_jax.data.files import check_regular
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.data.matrix import read_matrix
from hlrcml_jax.errors import UserError, listed, shortened

_YELP = ("user_id", "business_id", "stars", "date")

LAYOUTS = {
    "u.data": Layout("\t", False, ("0", "1", "2", "3")),
    "ratings.dat": Layout("::", False, ("0", "1", "2", "3")),
    "ratings.csv": Layout(",", True, ("userId", "movieId", "rating", "timestamp")),
    "inter": Layout("\t", True, ("user_id", "item_id", "", "")),
    "train_triplets.txt": Layout("\t", False, ("0", "1", "2", "")),
    "ratings_Books.csv": Layout(",", False, ("0", "1", "2", "3")),
    "yelp_academic_dataset_review.json": Layout(columns=_YELP),
}
ADJACENCY = ("adjacency", "adjacency_counted")
JSON_LINES = ("jsonl", "yelp_academic_dataset_review.json")


def guess_format(path: pathlib.Path) -> str:
    """The format by file name, compressed or not, whatever its case; else "delimited"."""
    path = _uncompressed(path)
    if path.name in LAYOUTS:
        return path.name
    by_ending = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
    by_ending |= {".inter": "inter", ".parquet": "parquet", ".pq": "parquet"}
    return by_ending.get(path.suffix.lower(), "delimited")


def _uncompressed(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix("") if path.suffix.lower() in (".gz", ".xz", ".zip") else path


def read_interactions(
    path: pathlib.Path,
    format: str,
    layout: Layout,
    threshold: float | None = None,
    roles: Sequence[str] = ROLES,
) -> pl.DataFrame:
    """The table of `read_counted` alone."""
    return read_counted(path, format, layout, threshold, roles)[0]


def read_counted(
    path: pathlib.Path,
    format: str,
    layout: Layout,
    threshold: float | None = None,
    roles: Sequence[str] = ROLES,
    as_text: Collection[str] = (),
) -> tuple[pl.DataFrame, Counts, dict[str, str]]:
    """Reads any supported file, also compressed by gzip, xz or zip.

    Args:
      path: the file.
      format: one of registry.FORMATS, or "auto" to go by the file name.
      layout: for the formats "delimited", "jsonl" and "parquet" only; its encoding and quotes for
        all text.
      threshold: rows with a smaller value are dropped; needs the role "value".
      roles: the columns to read, if present.
      as_text: roles whose ids are not converted to integers.

    Returns:
      Columns `user` and `item` (Int64 if all ids are integers without leading zeros or whole
      fractions like 12.0; else text as written), and, if present, `value` (Float64) and `time`
      (Float64, as in the file, or seconds for dates). If there is a threshold, the counts before
      it. And the columns that were found by their usual names, by role.

    Raises:
      UserError: naming the file and, if any, the line and column.
    """
    check_regular(path)
    format = guess_format(path) if format == "auto" else format
    if format in LAYOUTS:
        layout = LAYOUTS[format].with_options_of(layout)
    with unpacked(path) as plain:
        _check_not_empty(plain)
        if format == "npz":
            table, _ = read_matrix(plain)
            table = table.with_columns(pl.col(*as_text).cast(pl.String)) if as_text else table
        elif format == "parquet":
            return _scan_parquet(plain, layout).collect(roles, threshold, as_text)
        else:
            delimited = format not in (*ADJACENCY, *JSON_LINES)
            with text.readable(plain, layout, delimited) as copy:
                _check_not_empty(copy)
                if format not in ADJACENCY:
                    source = _scan(copy, format, layout)
                    return source.collect(roles, threshold, as_text)
                table = _read_adjacency(copy, layout, format == "adjacency_counted", as_text)
    return above(table, threshold), count(table), {}


def count(table: pl.DataFrame) -> Counts:
    """The rows, users and items of a table."""
    return Counts(len(table), table["user"].n_unique(), table["item"].n_unique())


def matrix_shape(path: pathlib.Path) -> tuple[int, int]:
    """Numbers of users and items of a matrix, with those without interactions."""
    with unpacked(path) as plain:
        return read_matrix(plain)[1]


def _check_not_empty(path: pathlib.Path) -> None:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")


def read_items(file: ItemFile) -> pl.DataFrame:
    """Columns `id` and `title` as text and, if configured, `categories` as lists of text.

    All of them are stripped; of an id that occurs again the last row counts.
    """
    check_regular(file.path)
    with unpacked(file.path) as plain, text.readable(plain, file.layout) as path:
        _check_not_empty(path)
        return _read_items(path, file)


def _read_items(path: pathlib.Path, file: ItemFile) -> pl.DataFrame:
    layout = file.layout
    # RecBole's files of interactions and of items are alike.
    kind = "inter" if _uncompressed(file.path).suffix.lower() == ".item" else "delimited"
    source = _scan(path, kind, layout)
    guess = not layout.columns[ROLES.index("item")] and file.usual in source.names()
    columns = {
        "id": file.usual if guess else source.column("item"),
        "title": source.column("value"),
    }
    if file.categories:
        column = source.named(file.categories)
        if column is None:
            raise UserError(
                f"{path}, line 1: no column {file.categories!r} among {listed(source.names())}; "
                "set data.titles.categories."
            )
        columns["categories"] = column
    rows = source.lines.select(
        exactly(column).str.strip_chars().alias(name) for name, column in columns.items()
    )
    if file.categories:
        # MovieLens's text for no category.
        none = pl.col("categories") == "(no genres listed)"
        texts = pl.when(none).then(None).otherwise(pl.col("categories"))
        rows = rows.with_columns(texts.str.split(file.category_separator).alias("categories"))
    with source.readable():
        return rows.drop_nulls(["id", "title"]).unique("id", keep="last").collect()


def _scan(path: pathlib.Path, format: str, layout: Layout) -> TextTable:
    """A lazy table of a delimited file or of JSON lines."""
    if format in JSON_LINES:
        source = TextTable(path, "jsonl", layout, pl.LazyFrame())
        with source.readable():
            lines = json_lines.scan(path, functools.partial(matters, layout=layout))
        return dataclasses.replace(source, lines=lines)
    lines = _scan_delimited(path, layout)
    if format == "inter":  # RecBole appends the type to the column name
        lines = _renamed(lines, lambda name: name.split(":")[0])
    return TextTable(path, "delimited", layout, lines)


def _scan_parquet(path: pathlib.Path, layout: Layout) -> TextTable:
    source = TextTable(path, "parquet", layout, pl.LazyFrame())
    with source.readable():
        table = pl.scan_parquet(path, glob=False)
        schema = table.collect_schema()
    texts = [_as_text(name, dtype) for name, dtype in schema.items() if not dtype.is_nested()]
    return dataclasses.replace(source, lines=table.select(texts))


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A typed column as the text that a text file would have; NaN is a missing value."""
    column = exactly(name)
    if dtype in (pl.Date, pl.Datetime):
        column = column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6  # a zone's instant is UTC
    elif dtype == pl.Duration:
        column = column.dt.total_microseconds() / 1e6
    elif dtype == pl.Time:
        column = column.cast(pl.Int64) / 1e9
    elif dtype.is_float():
        column = column.fill_nan(None)
        whole = (column == column.floor()) & (column.abs() < 2.0**63)
        integer = pl.when(whole).then(column).cast(pl.Int64, strict=False).cast(pl.String)
        return pl.coalesce(integer, column.cast(pl.String)).alias(name)
    return column.cast(pl.String)


def _renamed(lines: pl.LazyFrame, rename: Callable[[str], str]) -> pl.LazyFrame:
    """With stripped names, where these stay distinct."""
    names = lines.collect_schema().names()
    plain = [rename(name).strip() for name in names]
    distinct = len(set(plain)) == len(plain) and plain != names
    return lines.rename(dict(zip(names, plain, strict=True))) if distinct else lines


def _scan_delimited(path: pathlib.Path, layout: Layout) -> pl.LazyFrame:
    """All fields as text, in columns named by the header or by index."""
    try:
        lines = pl.scan_csv(
            path,
            separator="\x01" if layout.is_long else layout.separator,
            has_header=layout.header and not layout.is_long,
            quote_char=layout.quote,
            infer_schema=False,
            glob=False,
        )
        names = lines.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty.") from None
    except mistakes.UNREADABLE as error:
        raise mistakes.why_unreadable(path, "delimited", layout, error) from None
    if layout.is_long:
        return _split_long(path, lines, layout)
    if not layout.header:
        return lines.rename(dict(zip(names, map(str, range(len(names))), strict=True)))
    quote = layout.quote or ""
    return _renamed(lines, lambda name: name.replace(2 * quote, quote) if quote else name)


def _split_long(path: pathlib.Path, lines: pl.LazyFrame, layout: Layout) -> pl.LazyFrame:
    """Splits fields at separators of several characters, which polars does not support."""
    column, *more = lines.collect_schema().names()
    if more:
        raise UserError(f"{path}, line 1: it holds the character \\x01, so it is not a text file.")
    fields = exactly(column).str.split(layout.separator)
    try:
        first = lines.drop_nulls().head(1).select(fields).collect()
        if first.is_empty():
            raise UserError(f"{path}: it has nothing but blank lines.")
        first = first.item()
        width = len(first)
        n_fields = lines.select(fields.list.len().alias("n")).with_row_index("row")
        wrong = n_fields.filter(pl.col("n") != width).head(1).collect(engine="streaming")
    except mistakes.UNREADABLE as error:
        raise mistakes.why_unreadable(path, "delimited", layout, error) from None
    if not wrong.is_empty():
        row, n_fields = wrong.row(0)
        raise UserError(f"{path}, line {row + 1}: {n_fields} fields where line 1 has {width}.")
    names = list(first) if layout.header else [str(index) for index in range(width)]
    table = lines.select(fields.list.get(index).alias(name) for index, name in enumerate(names))
    return table.slice(1) if layout.header else table


def _parse_ids(frame: pl.DataFrame, column: str, role: str, as_text: Collection[str]) -> pl.Series:
    """Ids as Int64 if all are integers, else as text."""
    id = pl.col(column)
    plain = role not in as_text and frame.select(is_integer(id).all()).item()
    return frame.select((as_integer(id) if plain else id).alias(role)).to_series()


def _read_adjacency(
    path: pathlib.Path, given: Layout, counted: bool, as_text: Collection[str]
) -> pl.DataFrame:
    """One user per line: `user item …`, or `count item …`, where the line index is the user id."""
    layout = dataclasses.replace(given, separator="\x01", header=False, quoting="")
    source = TextTable(path, "delimited", layout, pl.LazyFrame())
    with source.readable():
        lines = _scan_delimited(path, source.layout).collect().to_series()
        lines = lines.str.replace_all("\t", " ").str.strip_chars()
    frame = lines.str.split(" ").alias("fields").to_frame().with_row_index("row")
    frame = frame.filter(lines.is_not_null() & (lines != ""))
    frame = frame.with_columns(pl.col("fields").list.eval(pl.element().filter(pl.element() != "")))
    rest = pl.col("fields").list.slice(1)
    frame = frame.select("row", head=pl.col("fields").list.first(), item=rest)
    if counted:
        count = pl.col("head").cast(pl.Int64, strict=False)
        wrong = frame.filter(count.is_null() | (count != pl.col("item").list.len()))
        if not wrong.is_empty():
            row, head, items = wrong.row(0)
            raise UserError(
                f"{path}, line {row + 1}: the count is {shortened(head)!r} but {len(items)} items "
                "follow."
            )
        frame = frame.with_columns(user=pl.int_range(pl.len(), dtype=pl.Int64))
    else:
        frame = frame.with_columns(_parse_ids(frame, "head", "user", as_text))
    frame = frame.filter(pl.col("item").list.len() > 0).explode("item")
    if frame.is_empty():
        raise UserError(f"{path}: it has no interactions.")
    frame = frame.with_columns(_parse_ids(frame, "item", "item", as_text))
    for role in ("user", "item"):
        if frame[role].dtype == pl.Int64:
            row, least = frame.select("row", role).row(cast(int, frame[role].arg_min()))
            if least < 0:
                raise UserError(f"{path}, line {row + 1}: the {role} id {least} is negative.")
    return frame.select("user", "item")
