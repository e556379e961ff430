"""Readers of interaction files: to a table of user, item and, if present, value and time.

Files are streamed, so that only the needed columns and rows are in memory.
"""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import cast

import polars as pl
import scipy.sparse

from hlrcml_jax.data import diagnosis as mistakes
from hlrcml_jax.data.archives import unpacked
from hlrcml_jax.data.columns import ROLES, TextTable, above
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.errors import UserError

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


def guess_format(path: pathlib.Path) -> str:
    """The format by file name, compressed or not; else "delimited"."""
    if path.suffix in (".gz", ".xz", ".zip"):
        path = path.with_suffix("")
    if path.name in LAYOUTS:
        return path.name
    by_ending = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
    return {**by_ending, ".inter": "inter", ".parquet": "parquet"}.get(path.suffix, "delimited")


def read_interactions(
    path: pathlib.Path,
    format: str,
    layout: Layout,
    threshold: float | None = None,
    roles: Sequence[str] = ROLES,
) -> pl.DataFrame:
    """Reads any supported file, also compressed by gzip, xz or zip.

    Args:
      path: the file.
      format: one of registry.FORMATS, or "auto" to go by the file name.
      layout: for the formats "delimited", "jsonl" and "parquet" only.
      threshold: rows with a smaller value are dropped; needs the role "value".
      roles: the columns to read, if present.

    Returns:
      Columns `user` and `item` (Int64, or text if an id is not a plain integer), and, if present,
      `value` (Float64) and `time` (Float64, as in the file, or seconds for dates).

    Raises:
      UserError: naming the file and, if any, the line and column.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    format = guess_format(path) if format == "auto" else format
    layout = LAYOUTS.get(format, layout)
    with unpacked(path) as plain, _named(path, plain):
        if plain.stat().st_size == 0:
            raise UserError(f"{plain}: the file is empty.")
        if format == "npz":
            table = _read_npz(plain)
        elif format in ADJACENCY:
            table = _read_adjacency(plain, counted=format == "adjacency_counted")
        else:
            source = _open(plain, format, layout)
            return source.collect(roles, threshold)
    return above(table, threshold)


@contextlib.contextmanager
def _named(path: pathlib.Path, plain: pathlib.Path):
    """Errors in the unpacked copy name the original file."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(plain), str(path))) from None


def read_items(file: ItemFile) -> pl.DataFrame:
    """Columns `id` and `title` as text and, if configured, `categories` as lists of text."""
    path = file.path
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    # polars only reads UTF-8; item files are small enough to re-encode.
    try:
        content = path if file.encoding == "utf8" else path.read_text(file.encoding).encode()
    except UnicodeError as error:
        raise UserError(f"{path}: the text is not {file.encoding} ({error}).") from None
    layout = file.layout
    source = TextTable(path, "delimited", layout, _scan_delimited(content, layout, path))
    guess = not layout.columns[ROLES.index("item")] and file.usual in source.names()
    ids = file.usual if guess else source.column("item", "titles")
    columns = {"id": ids, "title": source.column("value", "titles")}
    if file.categories:
        column = source.named(file.categories)
        if column is None:
            raise UserError(
                f"{path}, line 1: no column {file.categories!r}; set data.titles.categories."
            )
        columns["categories"] = column
    rows = source.lines.select(pl.col(column).alias(name) for name, column in columns.items())
    if file.categories:
        # MovieLens's text for no category.
        none = pl.col("categories") == "(no genres listed)"
        text = pl.when(none).then(None).otherwise(pl.col("categories"))
        rows = rows.with_columns(text.str.split(file.category_separator).alias("categories"))
    with source.readable():
        return rows.drop_nulls(["id", "title"]).unique("id", keep="last").collect()


def _open(path: pathlib.Path, format: str, layout: Layout) -> TextTable:
    kind = "jsonl" if format == "yelp_academic_dataset_review.json" else format
    kind = kind if kind in ("jsonl", "parquet") else "delimited"
    if kind == "delimited":
        return TextTable(path, kind, layout, _scan_delimited(path, layout))
    try:
        table = pl.scan_parquet(path) if kind == "parquet" else pl.scan_ndjson(path)
        plain = {
            name: dtype for name, dtype in table.collect_schema().items() if not dtype.is_nested()
        }
    except mistakes.UNREADABLE as error:
        raise mistakes.why_unreadable(path, kind, layout, error) from None
    lines = table.select(pl.col(name).cast(pl.String) for name in plain)
    return TextTable(path, kind, layout, lines)


def _scan_delimited(source, layout: Layout, path: pathlib.Path | None = None) -> pl.LazyFrame:
    """All fields as text, in columns named by the header or by index.

    Args:
      source: the file, or its content as bytes.
      layout: of the file.
      path: of the file, if the source is its content.
    """
    path = path or source
    single = len(layout.separator) == 1
    try:
        lines = pl.scan_csv(
            source,
            separator=layout.separator if single else "\x01",
            has_header=layout.header and single,
            quote_char=layout.quote,
            infer_schema=False,
        )
        names = lines.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty.") from None
    except mistakes.UNREADABLE as error:
        raise mistakes.why_unreadable(path, "delimited", layout, error) from None
    if not single:
        return _split_long(path, lines, layout)
    if not layout.header:
        return lines.rename(dict(zip(names, map(str, range(len(names))), strict=True)))
    # RecBole appends the type to the column name.
    plain = [name.split(":")[0].strip() for name in names]
    return lines.rename(dict(zip(names, plain, strict=True))) if plain != names else lines


def _split_long(path: pathlib.Path, lines: pl.LazyFrame, layout: Layout) -> pl.LazyFrame:
    """Splits fields at separators of several characters, which polars does not support."""
    column, *more = lines.collect_schema().names()
    if more:
        raise UserError(f"{path}, line 1: it holds the character \\x01, so it is not a text file.")
    fields = pl.col(column).str.split(layout.separator)
    try:
        first = lines.drop_nulls().head(1).select(fields).collect()
        if first.is_empty():
            raise UserError(f"{path}: it has nothing but blank lines.")
        first = first.item()
        width = len(first)
        ragged = lines.with_row_index("row").filter(fields.list.len() != width).head(1)
        wrong = ragged.select("row", fields.list.len()).collect(engine="streaming")
    except mistakes.UNREADABLE as error:
        raise mistakes.why_unreadable(path, "delimited", layout, error) from None
    if not wrong.is_empty():
        row, n_fields = wrong.row(0)
        raise UserError(f"{path}, line {row + 1}: {n_fields} fields where line 1 has {width}.")
    names = list(first) if layout.header else [str(index) for index in range(width)]
    table = lines.select(fields.list.get(index).alias(name) for index, name in enumerate(names))
    return table.slice(1) if layout.header else table


def parse_ids(texts: pl.Series) -> pl.Series:
    """Ids as Int64 if all are plain integers, else as text."""
    integers = texts.cast(pl.Int64, strict=False)
    if integers.null_count() == 0 and (integers.cast(pl.String) == texts).all():
        return integers
    return texts


def _read_adjacency(path: pathlib.Path, counted: bool) -> pl.DataFrame:
    """One user per line: `user item …`, or `count item …`, where the line index is the user id."""
    source = TextTable(path, "delimited", Layout("\x01", False), pl.LazyFrame())
    with source.readable():
        lines = _scan_delimited(path, source.layout).collect().to_series().str.strip_chars()
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
                f"{path}, line {row + 1}: the count is {head!r} but {len(items)} items follow."
            )
        frame = frame.with_columns(user=pl.int_range(pl.len(), dtype=pl.Int64))
    else:
        frame = frame.with_columns(parse_ids(frame["head"]).alias("user"))
    frame = frame.filter(pl.col("item").list.len() > 0).explode("item")
    if frame.is_empty():
        raise UserError(f"{path}: it has no interactions.")
    frame = frame.with_columns(parse_ids(frame["item"]).alias("item"))
    for role in ("user", "item"):
        if frame[role].dtype == pl.Int64:
            row, least = frame.select("row", role).row(cast(int, frame[role].arg_min()))
            if least < 0:
                raise UserError(f"{path}, line {row + 1}: the {role} id {least} is negative.")
    return frame.select("user", "item")


def _read_npz(path: pathlib.Path) -> pl.DataFrame:
    """The nonzeros of a scipy sparse matrix of users x items, with their values."""
    matrix = load_matrix(path).tocoo()
    return pl.DataFrame(
        {
            "user": matrix.row.astype("int64"),
            "item": matrix.col.astype("int64"),
            "value": matrix.data.astype("float64"),
        }
    )


def load_matrix(path: pathlib.Path) -> scipy.sparse.csr_array:
    """Loads a matrix saved by `scipy.sparse.save_npz`; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            return scipy.sparse.csr_array(scipy.sparse.load_npz(file))
    except Exception as error:  # numpy and scipy raise many kinds
        raise UserError(f"{path}: not a scipy sparse matrix ({error}).") from None
