"""Decompression as a stream, to a temporary file and never to a path in the archive."""

import contextlib
import gzip
import lzma
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from hlrcml_jax.data.files import most_bytes, naming
from hlrcml_jax.errors import UserError

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
PATTERN = set("*?[]{}")  # characters that libraries take for patterns of file names


@contextlib.contextmanager
def unpacked(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file, decompressed to a temporary copy if it ends in .gz, .xz or .zip.

    A zip must hold exactly one file. A path that a library might take for a pattern is given as a
    link in a temporary folder. Errors in the copy name the file.

    Raises:
      UserError: when it cannot be decompressed, or a zip holds several files.
    """
    openers = {".gz": gzip.open, ".xz": lzma.open, ".zip": _open_only_member}
    ending = path.suffix.lower()
    if ending not in openers and not PATTERN & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="hlrcml_jax-") as folder:
        plain = pathlib.Path(folder, "content")
        if ending not in openers:
            plain.symlink_to(path.absolute())
            with naming(path, plain):
                yield plain
            return
        try:
            with openers[ending](path) as source, plain.open("wb") as target:
                _copy(source, target, most_bytes(path), path)
        except BROKEN as error:
            raise UserError(
                f"{path}: cannot be unpacked ({error}); fetch it again, or unpack it yourself."
            ) from None
        with naming(path, plain):
            yield plain


def _copy(source: BinaryIO, target: BinaryIO, most: int, path: pathlib.Path) -> None:
    while part := source.read(1 << 20):
        if target.tell() + len(part) > most:
            raise UserError(
                f"{path}: more than {most:,} bytes come out of it, too many for a table; unpack "
                "it yourself if it is one."
            )
        target.write(part)


@contextlib.contextmanager
def _open_only_member(path: pathlib.Path):
    with zipfile.ZipFile(path) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if len(files) != 1:
            raise UserError(f"{path}: it holds {len(files)} files; unpack it and name one of them.")
        with archive.open(files[0]) as source:
            yield source
