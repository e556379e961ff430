"""Files that were made smaller: unpacked as a stream, never to a place that they name."""

import contextlib
import gzip
import lzma
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from hlrcml_jax.errors import UserError

# Tables grow ten times; files that are made to fill a disk, a thousand times and more.
RATIO, ROOM = 200, 1 << 28
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)


@contextlib.contextmanager
def unpacked(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file as it was before gzip, xz or zip, which go by its ending; as it is without them.

    A zip must hold one file. The copy is temporary.

    Raises:
      UserError: an archive that cannot be unpacked, or holds several files.
    """
    openers = {".gz": gzip.open, ".xz": lzma.open, ".zip": _open_only_member}
    if path.suffix not in openers:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="hlrcml_jax-") as folder:
        plain = pathlib.Path(folder) / path.with_suffix("").name
        try:
            with openers[path.suffix](path) as source, plain.open("wb") as target:
                _copy(source, target, max(ROOM, RATIO * path.stat().st_size), path)
        except BROKEN as error:
            raise UserError(f"{path}: cannot be unpacked ({error}).") from None
        yield plain


def _copy(source: BinaryIO, target: BinaryIO, most: int, path: pathlib.Path) -> None:
    while part := source.read(1 << 20):
        if target.tell() + len(part) > most:
            raise UserError(
                f"{path}: more than {most:,} bytes come out of it, which is no table; unpack it "
                "yourself if it is."
            )
        target.write(part)


@contextlib.contextmanager
def _open_only_member(path: pathlib.Path):
    with zipfile.ZipFile(path) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if len(files) != 1:
            raise UserError(f"{path}: it holds {len(files)} files; unpack it, and name one.")
        with archive.open(files[0]) as source:
            yield source
