"""Locating an error in a file: a slow second read, only after the first has failed."""

import codecs
import csv
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterator

import polars as pl

from hlrcml_jax.data.layout import Layout
from hlrcml_jax.errors import UserError, is_unicode, shortened

# What polars raises; OSError for compressed content under any name.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError)


def records(path: pathlib.Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each record of a delimited file."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if layout.is_long:
            for line_number, line in enumerate(file, 1):
                yield line_number, line.rstrip("\r\n").split(layout.separator)
            return
        quoting = csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(
            file, delimiter=layout.separator, quotechar=layout.quote, quoting=quoting
        )
        for fields in reader:
            yield reader.line_num, fields


def line_number(path: pathlib.Path, format: str, layout: Layout, row: int) -> int:
    """The 1-based line on which the record with index `row` (without the header) ends."""
    if format == "jsonl":
        return next((line for line, _ in itertools.islice(json_records(path), row, None)), 0)
    if format != "delimited":
        return row + 1
    index = row + layout.header
    for line, _ in itertools.islice(records(path, layout), index, index + 1):
        return line
    return index + 1


def why_unreadable(path: pathlib.Path, format: str, layout: Layout, error: Exception) -> UserError:
    """The sentence for a reader's error, with the line if it can be located."""
    try:
        wrong = _not_text(path, layout) if format in ("delimited", "jsonl") else None
        if wrong is None and format == "delimited":
            wrong = _why_not_delimited(path, layout)
        elif wrong is None and format == "jsonl":
            for line_number, record in json_records(path):
                if not is_unicode(json.dumps(record, ensure_ascii=False)):
                    half = "has half of a surrogate pair"
                    wrong = UserError(f"{path}, line {line_number}: its text {half}.")
                    break
    except csv.Error as problem:
        wrong = UserError(f"{path}: not a delimited text file ({problem}).")
    except UserError as problem:
        wrong = problem
    if wrong is None:
        kind = {"delimited": "delimited text", "jsonl": "JSON lines"}.get(format, format)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        wrong = UserError(f"{path}: not readable as {kind} ({reason[0]}).")
    return wrong


def _not_text(path: pathlib.Path, layout: Layout) -> UserError | None:
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return wrong_encoding(f"{path}, line {line_number}", layout, line)
    return None


def _why_not_delimited(path: pathlib.Path, layout: Layout) -> UserError | None:
    width = None
    for line, fields in records(path, layout):
        if fields and width is None:
            width = len(fields)
        elif len(fields) > (width or 0):
            return UserError(f"{path}, line {line}: {len(fields)} fields where line 1 has {width}.")
    return None


def json_records(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    """(line number, record) of each line that is not blank.

    Raises:
      UserError: naming the line that is no JSON object.
    """
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {line_number}"
            try:
                record = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
            except RecursionError:
                raise UserError(
                    f"{place}: not JSON that can be read (nested too deeply)."
                ) from None
            except UnicodeDecodeError:  # a ValueError too; `why_unreadable` names the encoding
                raise
            except ValueError as problem:
                whole = " (the file is one array; write an object a line)"
                hint = whole if line_number == 1 and line.lstrip()[:1] == b"[" else ""
                reason = getattr(problem, "msg", problem)
                raise UserError(f"{place}: not JSON ({reason}){hint}.") from None
            if not isinstance(record, dict):
                raise UserError(f"{place}: not a JSON object.")
            yield line_number, record


def check_fields(path: pathlib.Path, names: list[str]) -> None:
    """Checks that the fields that are read are nowhere objects, arrays or half characters.

    Raises:
      UserError: naming the line and the field.
    """
    keys = "|".join(re.escape(json.dumps(name, ensure_ascii=False)) for name in names)
    line = pl.nth(0)
    nested = line.str.contains(f"(?:{keys})\\s*:\\s*[\\[{{]")
    half = line.str.replace_all(_PAIR, "").str.contains(_HALF)
    suspect = lines_of(path).select((nested | half).any())
    if not suspect.collect(engine="streaming").item():
        return
    for line_number, record in json_records(path):
        for name in names:
            value = record.get(name)
            wrong = "is nested" if isinstance(value, dict | list) else None
            if wrong or not is_unicode(str(value)):
                text = shortened(json.dumps(value))
                wrong = wrong or "has half of a surrogate pair"
                raise UserError(f"{path}, line {line_number}: {text} in field {name!r} {wrong}.")


# A character beyond 16 bits as JSON writes it, and a half of one, which is no character.
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F]"


def lines_of(path: pathlib.Path) -> pl.LazyFrame:
    """The lines of a text file, in one column."""
    # A character that text does not have, so that a line is one field.
    return pl.scan_csv(
        path,
        separator="\x01",
        quote_char=None,
        has_header=False,
        infer_schema=False,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    )


def likely_encoding(sample: bytes) -> str:
    """The most likely encoding of text that is not UTF-8."""
    if sample.count(0) > len(sample) // 4:
        return "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def wrong_encoding(place: str, layout: Layout, sample: bytes) -> UserError:
    """The sentence for text that has another encoding, with the likely one."""
    name = "UTF-8" if codecs.lookup(layout.encoding).name == "utf-8" else layout.encoding
    likely = likely_encoding(sample)
    return UserError(
        f"{place}: the text is not {name}; set {layout.section}.encoding, probably to {likely}."
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{shortened(number)} is too large")
    return value
