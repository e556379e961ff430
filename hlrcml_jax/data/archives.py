"""Files that were made smaller: unpacked as a stream, never to a place that they name."""

import contextlib
import gzip
import lzma
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

from hlrcml_jax.errors import UserError

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
                shutil.copyfileobj(source, target, 1 << 20)
        except BROKEN as error:
            raise UserError(f"{path}: cannot be unpacked ({error}).") from None
        yield plain


@contextlib.contextmanager
def _open_only_member(path: pathlib.Path):
    with zipfile.ZipFile(path) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if len(files) != 1:
            raise UserError(f"{path}: it holds {len(files)} files; unpack it, and name one.")
        with archive.open(files[0]) as source:
            yield source
