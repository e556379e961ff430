"""Readers of interaction files: each gives a table of user, item and, if the file has them, value
and time, with the line that a mistake stands on named."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable

import polars as pl
import scipy.sparse

from hlrcml_jax.errors import UserError

ROLES = ("user", "item", "value", "time")

# Column names that need no configuration, in lower case and without `_`.
USUAL_NAMES = {
    "user": ("userid", "user", "uid", "customerid", "reviewerid"),
    "item": ("itemid", "item", "iid", "movieid", "artistid", "productid", "asin", "songid"),
    "value": ("rating", "value", "score", "count", "weight", "plays", "playcount", "stars"),
    "time": ("timestamp", "time", "date", "unixtime", "datetime"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a delimited file is laid out.

    Attributes:
      separator: one or more characters between fields.
      header: whether the first line holds column names.
      columns: for each role, a column's name or its 0-based place as text; "" guesses.
    """

    separator: str = ","
    header: bool = True
    columns: tuple[str, str, str, str] = ("", "", "", "")


LAYOUTS = {
    "u.data": Layout("\t", False, ("0", "1", "2", "3")),
    "ratings.dat": Layout("::", False, ("0", "1", "2", "3")),
    "ratings.csv": Layout(",", True, ("userId", "movieId", "rating", "timestamp")),
    "inter": Layout("\t", True, ("user_id", "item_id", "", "")),
}
FORMATS = (*LAYOUTS, "delimited", "adjacency", "adjacency_counted", "npz")


def guess_format(path: pathlib.Path) -> str:
    """The format that a file's name promises; "delimited" where it promises none."""
    if path.name in LAYOUTS:
        return path.name
    return {".inter": "inter", ".npz": "npz"}.get(path.suffix, "delimited")


def read_interactions(path: pathlib.Path, format: str, layout: Layout) -> pl.DataFrame:
    """Reads any supported file.

    Args:
      path: the file.
      format: one of FORMATS, or "auto" to go by the file's name.
      layout: used by the format "delimited" alone.

    Returns:
      Columns `user` and `item` (both Int64, or both as written), and `value` (Float64) and
      `time` (Float64, as in the file or seconds) where the file has them.

    Raises:
      UserError: naming the file and, where there is one, the line and the column.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    format = guess_format(path) if format == "auto" else format
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    if format == "npz":
        return _read_npz(path)
    if format in ("adjacency", "adjacency_counted"):
        table = _read_adjacency(path, counted=format == "adjacency_counted")
    else:
        table = _read_delimited(path, LAYOUTS.get(format, layout))
    if table.is_empty():
        raise UserError(f"{path}: there is a header but no interaction below it.")
    return table


def read_titles(path: pathlib.Path, layout: Layout, encoding: str = "utf8") -> dict[str, str]:
    """Titles by item id as text, from the `item` and `value` columns of a layout."""
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    frame = _split_lines(path, layout, encoding)
    item, title = (_find_column(path, frame, layout, role, "titles") for role in ("item", "value"))
    rows = frame.select(pl.col(item).alias("item"), pl.col(title).alias("title")).drop_nulls()
    return dict(rows.iter_rows())


def parse_ids(texts: pl.Series) -> pl.Series:
    """Ids as Int64 when every one is written as a plain integer, as text otherwise."""
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() == 0 and (numbers.cast(pl.String) == texts).all():
        return numbers
    return texts


def _read_delimited(path: pathlib.Path, layout: Layout) -> pl.DataFrame:
    frame = _split_lines(path, layout)
    columns = {role: _find_column(path, frame, layout, role) for role in ROLES}
    used = {role: column for role, column in columns.items() if column is not None}
    frame = frame.with_row_index("row")
    # Blank lines come as rows of nulls; anything else that is missing is a mistake.
    blank = pl.all_horizontal(pl.exclude("row").is_null())
    frame = frame.filter(~blank)
    frame = frame.select(
        "row", *(pl.col(column).str.strip_chars().alias(role) for role, column in used.items())
    )
    for role, column in used.items():
        missing = frame.filter(pl.col(role).is_null() | (pl.col(role) == ""))
        if not missing.is_empty():
            line = _line_number(path, layout, missing["row"][0])
            raise UserError(f"{path}, line {line}: column {column!r} ({role}) is empty.")
    for role in ("value", "time"):
        if role in used:
            frame = _parse_numbers(path, layout, frame, role, used[role])
    for role in ("user", "item"):
        ids = parse_ids(frame[role])
        if ids.dtype == pl.Int64 and ids.len() and ids.min() < 0:
            row = frame["row"][ids.arg_min()]
            raise UserError(
                f"{path}, line {_line_number(path, layout, row)}: the {role} id {ids.min()} is "
                "negative."
            )
        frame = frame.with_columns(ids.alias(role))
    return frame.drop("row")


def _parse_numbers(path, layout, frame, role, column) -> pl.DataFrame:
    texts = frame[role]
    numbers = texts.cast(pl.Float64, strict=False)
    if role == "time" and numbers.null_count() == numbers.len() > 0:
        numbers = texts.str.to_datetime(strict=False).dt.epoch("ms").cast(pl.Float64) / 1000
    wrong = numbers.is_null() | ~numbers.is_finite().fill_null(False)
    if wrong.any():
        row = wrong.arg_max()
        line = _line_number(path, layout, frame["row"][row])
        kind = "a number" if role == "value" else "a time (seconds, or an ISO date)"
        raise UserError(
            f"{path}, line {line}: {texts[row]!r} in column {column!r} ({role}) is not {kind}."
        )
    return frame.with_columns(numbers.alias(role))


def _split_lines(path: pathlib.Path, layout: Layout, encoding: str = "utf8") -> pl.DataFrame:
    """All fields as text, in columns named by the header or by their places."""
    single = len(layout.separator) == 1
    try:
        frame = pl.read_csv(
            path,
            separator=layout.separator if single else "\x01",
            has_header=layout.header and single,
            quote_char=_quote(layout),
            infer_schema=False,
            encoding=encoding,
        )
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty.") from None
    except pl.exceptions.PolarsError as error:
        raise _why_unreadable(path, layout, error) from None
    if not single:
        frame = _split_long(path, frame.to_series(), layout)
    elif not layout.header:
        frame.columns = [str(place) for place in range(frame.width)]
    # RecBole writes the type behind the name.
    return frame.rename({name: name.split(":")[0].strip() for name in frame.columns})


def _split_long(path: pathlib.Path, lines: pl.Series, layout: Layout) -> pl.DataFrame:
    fields = lines.str.split(layout.separator)
    width = len(fields[0])
    ragged = fields.list.len() != width
    if ragged.fill_null(False).any():
        line = ragged.arg_max() + 1
        raise UserError(
            f"{path}, line {line}: {len(fields[line - 1])} fields where line 1 has {width}."
        )
    names = list(fields[0]) if layout.header else [str(place) for place in range(width)]
    frame = pl.DataFrame({name: fields.list.get(place) for place, name in enumerate(names)})
    return frame.slice(1) if layout.header else frame


def _quote(layout: Layout) -> str | None:
    return '"' if layout.separator in (",", ";") else None


def _find_column(
    path: pathlib.Path, frame: pl.DataFrame, layout: Layout, role: str, section: str = "columns"
) -> str | None:
    """The name of a role's column; None for a role that the file need not have and has not."""
    wanted = layout.columns[ROLES.index(role)]
    names = frame.columns
    if wanted in names:
        return wanted
    if wanted.isdigit() and int(wanted) < len(names):
        return names[int(wanted)]
    if not wanted:
        for name in names:
            if name.lower().replace("_", "") in USUAL_NAMES[role]:
                return name
        if not layout.header and ROLES.index(role) < len(names):
            return names[ROLES.index(role)]
        if role in ("value", "time"):
            return None
    listed = ", ".join(repr(name) for name in names)
    key = f"data.{section}.{role}"
    what = f"no column {wanted!r}" if wanted else f"no column that looks like the {role}"
    raise UserError(
        f"{path}, line 1: {what} among {listed} (separator {layout.separator!r}); "
        f"set data.separator or {key}."
    )


def _records(path: pathlib.Path, layout: Layout) -> Iterable[tuple[int, list[str]]]:
    """(line number, fields) of each record, read slowly, to say where a mistake stands."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if len(layout.separator) > 1:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n").split(layout.separator)
            return
        quote = _quote(layout)
        quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(file, delimiter=layout.separator, quotechar=quote, quoting=quoting)
        for fields in reader:
            yield reader.line_num, fields


def _line_number(path: pathlib.Path, layout: Layout, row: int) -> int:
    """The 1-based line on which record `row` (not counting the header) ends."""
    for record, (line, _) in enumerate(_records(path, layout)):
        if record == row + layout.header:
            return line
    return row + 1 + layout.header


def _why_unreadable(path: pathlib.Path, layout: Layout, error: Exception) -> UserError:
    width = None
    try:
        for line, fields in _records(path, layout):
            if any("\udc80" <= letter <= "\udcff" for field in fields for letter in field):
                return UserError(f"{path}, line {line}: the text is not UTF-8.")
            if fields and width is None:
                width = len(fields)
            elif len(fields) > (width or 0):
                return UserError(
                    f"{path}, line {line}: {len(fields)} fields where line 1 has {width}."
                )
    except csv.Error as problem:
        return UserError(f"{path}: not a delimited text file ({problem}).")
    reason = str(error).strip().splitlines()[0]
    return UserError(f"{path}: not readable as delimited text ({reason}).")


def _read_adjacency(path: pathlib.Path, counted: bool) -> pl.DataFrame:
    """Lists of items, one user a line: `user item …`, or `count item …` with users numbered."""
    lines = _split_lines(path, Layout("\x01", False)).to_series().str.strip_chars()
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
    frame = frame.with_columns(parse_ids(frame["item"]).alias("item"))
    for role in ("user", "item"):
        if frame[role].dtype == pl.Int64 and frame.height and frame[role].min() < 0:
            row = frame["row"][frame[role].arg_min()]
            raise UserError(
                f"{path}, line {row + 1}: the {role} id {frame[role].min()} is negative."
            )
    return frame.select("user", "item")


def _read_npz(path: pathlib.Path) -> pl.DataFrame:
    """The cells of a scipy sparse matrix of users x items, with their values."""
    matrix = load_matrix(path).tocoo()
    return pl.DataFrame(
        {
            "user": matrix.row.astype("int64"),
            "item": matrix.col.astype("int64"),
            "value": matrix.data.astype("float64"),
        }
    )


def load_matrix(path: pathlib.Path) -> scipy.sparse.sparray:
    """A matrix that `scipy.sparse.save_npz` wrote; nothing is unpickled."""
    try:
        return scipy.sparse.csr_array(scipy.sparse.load_npz(path))
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: not a scipy sparse matrix ({error}).") from None
