"""Atomic writes: a file is complete or absent, and a failed write is one sentence.

Files are on a disk, or in a Google Cloud Storage bucket, `gs://bucket/folder`, with etils paths in
place of pathlib's; files for a bucket are written to a temporary folder and then uploaded.
"""

import contextlib
import importlib.util
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from etils import epath

from hlrcml_jax.errors import UserError

BUCKET = "gs://"


def absolute(path: pathlib.Path | str) -> pathlib.Path:
    """The absolute path, local or in a bucket.

    Raises:
      UserError: when gcsfs, which buckets need, is not installed.
    """
    if not str(path).startswith(BUCKET):
        return pathlib.Path(path).absolute()
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets need gcsfs; run pip install '.[gcs]'.")
    return cast(pathlib.Path, epath.Path(path))


def is_remote(path: pathlib.Path | str) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith(BUCKET)


@contextlib.contextmanager
def writing(path: pathlib.Path | str) -> Iterator[None]:
    """Turns a file-system error into a sentence that names the path, or its config key.

    Raises:
      UserError: when writing fails, as on a full disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import polars as pl  # not at the top: reading a config does not need it

        if not isinstance(error, (OSError, pl.exceptions.PolarsError)) and not is_remote(path):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be written ({reason}); free space or choose another path, and run the "
            "same command again: finished work is kept."
        ) from None


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], object]) -> None:
    """Writes a file atomically: to a scratch file beside it, then renamed; creates the folder.

    Args:
      path: of the file.
      writer: is called with the scratch path and writes to it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            with tempfile.TemporaryDirectory() as folder:
                scratch = pathlib.Path(folder, path.name)
                writer(scratch)
                _copy(scratch, path)
            return
        scratch = path.with_name(f"part-{path.name}")
        try:
            writer(scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def local(paths: Sequence[pathlib.Path]) -> Iterator[list[pathlib.Path]]:
    """The paths themselves, or local copies of files in a bucket."""
    if not any(map(is_remote, paths)):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        copies = [pathlib.Path(folder, path.name) for path in paths]
        for path, copy in zip(paths, copies, strict=True):
            _copy(path, copy)
        yield copies


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)


def move_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a folder with its content; in a bucket, which has no folders, file by file."""
    if not is_remote(source):
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        return
    for path in source.iterdir():
        if path.is_dir():
            move_folder(path, target / path.name)
        else:
            _copy(path, target / path.name)
            path.unlink()


def append_text(path: pathlib.Path, text: str) -> None:
    """Appends to a file; a file in a bucket cannot grow, so it is rewritten."""
    with writing(path):
        if is_remote(path):
            path.write_text(path.read_text() + text)
            return
        with path.open("a") as file:
            file.write(text)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    write(path, lambda scratch: scratch.write_text(text))
