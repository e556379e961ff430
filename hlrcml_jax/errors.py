"""The one exception for user errors, and how programs exit on it."""

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from absl import app

MAX_SENTENCE = 300  # characters


class UserError(Exception):
    """An error the user can fix: one sentence naming the file, line, column or key.

    It has at most MAX_SENTENCE characters: a longer one loses its middle, since the file and line
    are at the start and the remedy is at the end. `run_program` prints it on stderr and exits with
    status 2; any other exception is a bug.
    """

    def __str__(self) -> str:
        sentence = " ".join(super().__str__().splitlines())  # quoted text may span lines
        return shortened(sentence, MAX_SENTENCE)


class Diverged(UserError):
    """The loss of a run became NaN or infinite."""


class Terminated(BaseException):
    """The program was stopped by SIGTERM; `run_program` exits with status 0."""


def shortened(text: str, most: int = 60) -> str:
    """The text without its middle, if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    tail = most * 2 // 5
    return f"{text[: most - tail - 3]} … {text[-tail:]}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first names, quoted and shortened, and how many more there are."""
    names = list(names)
    text = ", ".join(repr(shortened(name, 30)) for name in names[:most])
    more = len(names) - most
    return f"{text} and {more:,} more" if more > 0 else text


def warn(sentence: str) -> None:
    """Prints a warning on stderr."""
    sys.stderr.write(f"hlrcml_jax: {sentence}\n")  # one write: library threads may write too
    sys.stderr.flush()


def run_program(main: Callable[[Any], Any], **options: Any) -> None:
    """`absl.app.run`, with each user error as one sentence and exit status 2."""
    signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _report
    try:
        app.run(main, **options)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    except Terminated as notice:
        warn(str(notice))


def _report(failure: threading.ExceptHookArgs) -> None:
    """Reports exceptions in threads, except orbax's: its next call raises them again."""
    frames = traceback.walk_tb(failure.exc_traceback)
    if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):
        threading.__excepthook__(failure)


def _terminate(*_) -> None:
    raise Terminated("stopped by SIGTERM; finished work is kept. Run the same command to resume.")
