"""Files that are whole or not there, and one sentence where they cannot be written.

They lie on a disk, or in a bucket of Google Cloud Storage, `gs://bucket/folder`, for which the
paths of etils stand in for those of pathlib; a file there is written elsewhere and then sent.
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


def place(path: pathlib.Path | str) -> pathlib.Path:
    """An absolute path of this machine, or one in a bucket.

    Raises:
      UserError: when what reaches buckets is not installed.
    """
    if not str(path).startswith(BUCKET):
        return pathlib.Path(path).absolute()
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets are reached through gcsfs; pip install '.[gcs]' has it.")
    return cast(pathlib.Path, epath.Path(path))


def is_remote(path: pathlib.Path | str) -> bool:
    """Whether a path lies in a bucket."""
    return str(path).startswith(BUCKET)


@contextlib.contextmanager
def writing(path: pathlib.Path | str) -> Iterator[None]:
    """Turns what the file system refuses into a sentence about the path, or its key.

    Raises:
      UserError: also of a full disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import polars as pl  # not at the top: a config is read without it

        if not isinstance(error, (OSError, pl.exceptions.PolarsError)) and not is_remote(path):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be written ({reason}); make room, or take another place, and give the "
            "same command again: what was finished before is kept."
        ) from None


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], object]) -> None:
    """Writes a file beside its place, with its folder, and moves it there.

    Args:
      path: of the file.
      writer: writes to the path that it is given.
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
    """The files themselves, or copies of those in a bucket."""
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
    """Moves a folder and what is in it; in a bucket, which has no folders, each file."""
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
    """Adds to a file; what lies in a bucket cannot grow, and is written again."""
    with writing(path):
        if is_remote(path):
            path.write_text(path.read_text() + text)
            return
        with path.open("a") as file:
            file.write(text)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of text, likewise."""
    write(path, lambda scratch: scratch.write_text(text))
