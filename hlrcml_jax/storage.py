"""Atomic writes: a file is complete or absent, and a failed write is one sentence.

Files are on a disk, or in a Google Cloud Storage bucket, `gs://bucket/folder`, with etils paths in
place of pathlib's; files for a bucket are written to a temporary folder and then uploaded.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from etils import epath

from hlrcml_jax.errors import UserError, is_unicode, quoted

if TYPE_CHECKING:
    import polars as pl

BUCKET = "gs://"
SCRATCH = re.compile(r"\.part-[0-9a-f]{16}-.+")


def absolute(path: pathlib.Path | str) -> pathlib.Path:
    """The absolute path, local or in a bucket.

    Raises:
      UserError: when gcsfs, which buckets need, is not installed, or the path is not UTF-8.
    """
    if not is_unicode(str(path)):
        raise UserError(f"{quoted(str(path))}: this name is not UTF-8; choose another.")
    if not str(path).startswith(BUCKET):
        return pathlib.Path(path).absolute()
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path}: buckets need gcsfs; run pip install gcsfs.")
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

    The scratch file is new and has a random name, so nothing is written through a link.

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
        scratch = path.with_name(f".part-{secrets.token_hex(8)}-{path.name}")
        try:
            scratch.touch(exist_ok=False)
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


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder with its content, without locks; it is there as a whole or not at all."""
    if is_remote(target) or is_remote(source):
        _copy_folder(source, target)
        return
    scratch = target.with_name(f".part-{secrets.token_hex(8)}-{target.name}")
    try:
        _copy_folder(source, scratch)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name)
        elif path.name != ".lock":
            _copy(path, target / path.name)


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
        with open(path, "a", opener=_open_no_link) as file:
            file.write(text)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    write(path, lambda scratch: scratch.write_text(text))


def sink_csv(table: "pl.LazyFrame", path: pathlib.Path) -> None:
    """Writes a CSV file in which no text is a formula for a spreadsheet.

    Text cells that begin with =, +, -, @, a tab or a carriage return get an apostrophe before it.
    """
    import polars as pl  # not at the top: reading a config does not need it

    text = pl.selectors.string().str.replace(r"^([=+\-@\t\r])", "'$1")
    table.with_columns(text).sink_csv(path)


def remove_scratch(folder: pathlib.Path) -> None:
    """Removes scratch files of `write` in a folder, which killed programs have left."""
    if not is_remote(folder):
        for path in folder.iterdir():
            if SCRATCH.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def check_no_links(path: pathlib.Path) -> None:
    """Checks that a path, if it exists, and all below it are regular files and folders.

    Raises:
      UserError: naming the first symbolic link, pipe, socket or device.
    """
    if is_remote(path):  # buckets have no links
        return
    pending = [path]
    while pending:
        each = pending.pop()
        try:
            mode = each.lstat().st_mode
            pending += each.iterdir() if stat.S_ISDIR(mode) else ()
        except (OSError, ValueError):  # replaced by a running program, or who opens it says why not
            continue
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise UserError(
                f"{each}: {kind} in a workdir is not followed; remove it, or choose another "
                "--workdir."
            )


def private_folder(path: pathlib.Path, key: str) -> pathlib.Path:
    """A folder of this user's to which nobody else can write; created with mode 0700 if missing.

    A folder writable by a group is accepted when the group has the number of the user, as the
    private groups of Linux distributions have.

    Args:
      path: of the folder.
      key: config key of the folder, for errors.

    Raises:
      UserError: when it cannot be created, or others own it or can write to it.
    """
    with writing(f"{key}={str(path)!r}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    if not hasattr(os, "geteuid"):  # not POSIX
        return path
    if status.st_uid != os.geteuid():
        raise UserError(
            f"{key}={str(path)!r} belongs to another user (uid {status.st_uid}), and what "
            f"is in it would be trusted; set {key} to a folder of your own."
        )
    of_group = status.st_mode & stat.S_IWGRP and status.st_gid != status.st_uid
    if of_group or status.st_mode & stat.S_IWOTH:
        raise UserError(
            f"{key}={str(path)!r} is writable by other users, and what is in it would be "
            f"trusted; set {key} to a folder of your own, or run chmod go-w on it."
        )
    return path
