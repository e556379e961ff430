"""Text files as polars reads them: UTF-8, lines that end in a newline, and well-formed quotes."""

import codecs
import contextlib
import csv
import mmap
import pathlib
import tempfile
from collections.abc import Iterator

import polars as pl

from hlrcml_jax.data.diagnosis import lines_of, wrong_encoding
from hlrcml_jax.data.files import naming
from hlrcml_jax.data.layout import Layout
from hlrcml_jax.errors import UserError

MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What polars takes for gzip, zstd or zlib and unpacks, whatever the name: text may begin with "x^".
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"x\x01", b"x^", b"x\x9c", b"x\xda")
SAMPLE = 1 << 16  # bytes from which line ends and the encoding are told


@contextlib.contextmanager
def readable(path: pathlib.Path, layout: Layout, delimited: bool = True) -> Iterator[pathlib.Path]:
    """The file, or a temporary copy of it that polars reads; errors in the copy name the file.

    Args:
      path: a text file.
      layout: its encoding, separator and quote.
      delimited: whether the quotes of a delimited file count.

    Raises:
      UserError: when the text has another encoding, or a quote is not closed.
    """
    with tempfile.TemporaryDirectory(prefix="hlrcml_jax-") as folder:
        plain = _as_utf8(path, layout, pathlib.Path(folder, "utf8"))
        if delimited and layout.quote and _has_stray_quotes(plain, layout):
            with naming(path, plain):
                plain = _quoted_again(plain, layout, pathlib.Path(folder, "quoted"))
        with naming(path, plain):
            yield plain


def _as_utf8(path: pathlib.Path, layout: Layout, target: pathlib.Path) -> pathlib.Path:
    with path.open("rb") as file:
        start = file.read(SAMPLE)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    encoding = marked or layout.encoding
    old_mac = b"\r" in start and b"\n" not in start
    packed = start.startswith(PACKED)
    if codecs.lookup(encoding).name == "utf-8" and not old_mac and not packed:
        if start.count(0) > len(start) // 4:
            raise wrong_encoding(str(path), layout, start)
        return path
    newline = None if old_mac else ""
    try:
        with (
            path.open(encoding=encoding, newline=newline) as source,
            target.open("w", encoding="utf-8-sig" if packed else "utf-8", newline="") as file,
        ):
            while part := source.read(1 << 20):
                file.write(part)
    except UnicodeError:
        if marked:
            raise UserError(f"{path}: it begins as {marked} and goes on as another text.") from None
        if packed:
            raise UserError(
                f"{path}: it begins like a compressed file; unpack it, or let its name end in .gz."
            ) from None
        raise wrong_encoding(str(path), layout, start) from None
    return target


def _has_stray_quotes(path: pathlib.Path, layout: Layout) -> bool:
    """Whether some line, taken alone, has quotes elsewhere than around and doubled in fields."""
    quote, separator = (
        f"\\x{{{ord(letter):x}}}" for letter in (str(layout.quote), layout.separator)
    )
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(str(layout.quote).encode()) < 0:
            return False
    field = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{quote}{separator}]*)"
    line = pl.nth(0)
    stray = line.str.contains(str(layout.quote), literal=True) & ~line.str.contains(
        f"^{field}(?:{separator}{field})*\r?$"
    )
    try:
        return bool(lines_of(path).select(stray.any()).collect(engine="streaming").item())
    except pl.exceptions.PolarsError:
        return True


def _quoted_again(path: pathlib.Path, layout: Layout, target: pathlib.Path) -> pathlib.Path:
    """A copy in which a quote inside a field that does not begin with one is text."""
    quote = str(layout.quote)
    csv.field_size_limit(2**31 - 1)
    first = 1  # line of the record
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as source,
        target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        reader = csv.reader(source, delimiter=layout.separator, quotechar=quote, strict=True)
        writer = csv.writer(file, delimiter=layout.separator, quotechar=quote, lineterminator="\n")
        try:
            for fields in reader:
                writer.writerow(fields)
                first = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}, line {first}: a field begins with {quote} and does not end with it "
                f"({error}); mend it, or set {layout.section}.quote='' to take quotes as text."
            ) from None
    return target
