"""Files that are whole or not there, and one sentence where they cannot be written."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import polars as pl

from hlrcml_jax.errors import UserError


@contextlib.contextmanager
def writing(path: pathlib.Path | str) -> Iterator[None]:
    """Turns what the file system refuses into a sentence about the path, or its key.

    Raises:
      UserError: also of a full disk.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
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
    scratch = path.with_name(f"part-{path.name}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of text, likewise."""
    write(path, lambda scratch: scratch.write_text(text))
