"""JSON lines as a lazy table of text: the fields are named, and no type is guessed.

polars reads any scalar as text when the schema says so: 12.0 becomes "12", and integers keep all
their digits. So only the names of the fields are looked for, over all records.
"""

import itertools
import json
import pathlib
from collections.abc import Callable

import polars as pl
import polars.selectors as cs

from hlrcml_jax.data.diagnosis import json_records, lines_of

SAMPLE = 1000  # records whose fields are looked at one by one


def scan(path: pathlib.Path, matters: Callable[[str], bool]) -> pl.LazyFrame:
    """A column of text for each field; those that are objects or arrays are left out.

    Args:
      path: of a UTF-8 file.
      matters: whether a field that none of the first records has is wanted, by its name.

    Raises:
      UserError: naming the line, when one of the first records is no JSON object.
    """
    names, scalar, nested = {}, set(), set()
    for _, record in itertools.islice(json_records(path), SAMPLE):
        names |= dict.fromkeys(record)
        for name, value in record.items():
            if value is not None:
                (nested if isinstance(value, dict | list) else scalar).add(name)
    flat = [name for name in names if name in scalar or name not in nested]
    later = [name for name in _later_names(path) if matters(name) and name not in names]
    if later:  # a nested field has such a name too
        table = pl.scan_ndjson(path, schema=dict.fromkeys(later, pl.String))
        occurs = table.select(pl.all().is_not_null().any()).collect(engine="streaming").row(0)
        later = list(itertools.compress(later, occurs))
    return pl.scan_ndjson(path, schema=dict.fromkeys([*flat, *later], pl.String))


def _later_names(path: pathlib.Path) -> list[str]:
    """What stands before a colon after the sample: all fields, and perhaps nested ones."""
    names = (
        lines_of(path)
        .slice(SAMPLE)
        .select(pl.nth(0).str.extract_all(r'"(?:[^"\\]|\\.)*"\s*:'))
        .explode(cs.all())
        .drop_nulls()
        .unique()
        .collect(engine="streaming")
        .to_series()
    )
    found = []
    for text in names.sort():
        try:
            found.append(json.loads(text.rstrip(": \t\r")))
        except ValueError:
            continue
    return found
