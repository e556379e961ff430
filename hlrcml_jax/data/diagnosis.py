"""Locating an error in a file: a slow second read, only after the first has failed."""

import csv
import itertools
import json
import pathlib
from collections.abc import Iterator

import polars as pl

from hlrcml_jax.data.layout import Layout
from hlrcml_jax.errors import UserError

# What polars raises; OSError for compressed content under any name.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def records(path: pathlib.Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each record of a delimited file."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if len(layout.separator) > 1:
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
    if format != "delimited":
        return row + 1
    index = row + layout.header
    for line, _ in itertools.islice(records(path, layout), index, index + 1):
        return line
    return index + 1


def why_unreadable(path: pathlib.Path, format: str, layout: Layout, error: Exception) -> UserError:
    """The sentence for a reader's error, with the line if it can be located."""
    sentence = None
    try:
        if format == "delimited":
            sentence = _why_not_delimited(path, layout)
        elif format == "jsonl":
            sentence = _why_not_json(path)
    except csv.Error as problem:
        sentence = f"{path}: not a delimited text file ({problem})."
    if sentence is None:
        kind = {"delimited": "delimited text", "jsonl": "JSON lines"}.get(format, format)
        sentence = f"{path}: not readable as {kind} ({str(error).strip().splitlines()[0]})."
    return UserError(sentence)


def _why_not_delimited(path: pathlib.Path, layout: Layout) -> str | None:
    width = None
    for line, fields in records(path, layout):
        if any("\udc80" <= letter <= "\udcff" for field in fields for letter in field):
            return f"{path}, line {line}: the text is not UTF-8."
        if fields and width is None:
            width = len(fields)
        elif len(fields) > (width or 0):
            return f"{path}, line {line}: {len(fields)} fields where line 1 has {width}."
    return None


def _why_not_json(path: pathlib.Path) -> str | None:
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            try:
                record = json.loads(line) if line.strip() else {}
            except ValueError as problem:
                return f"{path}, line {line_number}: not JSON ({problem})."
            if not isinstance(record, dict):
                return f"{path}, line {line_number}: not a JSON object."
    return None
