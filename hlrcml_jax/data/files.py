"""Opening what a user names: regular files alone, since pipes and devices would hang."""

import contextlib
import pathlib
from collections.abc import Iterator

from hlrcml_jax.errors import UserError

# Tables expand about tenfold; decompression bombs a thousandfold and more.
MAX_RATIO, MIN_LIMIT = 200, 1 << 28


def expanded(path: str) -> pathlib.Path:
    """The path, with `~` as the home folder.

    Raises:
      UserError: when there is no such home folder.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


def check_regular(path: pathlib.Path) -> None:
    """Checks that a path is a regular file, without opening it.

    Raises:
      UserError: when it is missing, a folder, a pipe, a socket or a device.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', error)}.") from None
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; name a file in it.")
    if not path.is_file():
        raise UserError(f"{path}: this is a pipe or device; copy its content to a file.")


@contextlib.contextmanager
def naming(path: pathlib.Path, copy: pathlib.Path) -> Iterator[None]:
    """Errors in a temporary copy of a file name the file."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error.args[0]).replace(str(copy), str(path))) from None


def most_bytes(path: pathlib.Path) -> int:
    """The most bytes that a compressed table may expand to."""
    return max(MIN_LIMIT, MAX_RATIO * path.stat().st_size)
