"""The one exception for user errors, and how programs exit on it."""

import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from absl import app

MAX_SENTENCE = 300  # characters
REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


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
    """The program was stopped by SIGTERM; `run_program` exits with its status."""

    status = 0


class Interrupted(Terminated, KeyboardInterrupt):
    """The program was stopped by SIGINT, as by Ctrl-C."""

    status = 130  # 128 + SIGINT, as of shells


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


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def quoted(value: Any) -> str:
    """A short `repr` of any value, for a sentence."""
    try:
        return shortened(repr(value), 60)
    except Exception:  # an integer of too many digits, or an object without one
        return f"a value of type {type(value).__name__}"


def warn(sentence: str) -> None:
    """Prints a warning on stderr."""
    # One write: library threads may write too.
    sys.stderr.write(f"hlrcml_jax: {printable(sentence)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """The text with U+FFFD for control characters and those that change its direction.

    In the ids and titles of a file they could hide text, or write anywhere on a terminal.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in REORDERING
        else c
        for c in text
    )


def run_program(main: Callable[[Any], Any], **options: Any) -> None:
    """`absl.app.run`, with each user error as one sentence and exit status 2."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    threading.excepthook = _report
    try:
        app.run(main, **options)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    except Terminated as notice:
        warn(str(notice))
        if notice.status:
            sys.exit(notice.status)


def _report(failure: threading.ExceptHookArgs) -> None:
    """Reports exceptions in threads, except orbax's: its next call raises them again."""
    frames = traceback.walk_tb(failure.exc_traceback)
    if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):
        threading.__excepthook__(failure)


def _terminate(*_) -> None:
    raise Terminated("stopped by SIGTERM; finished work is kept. Run the same command to resume.")


def _interrupt(*_) -> None:
    raise Interrupted("stopped by Ctrl-C; finished work is kept. Run the same command to resume.")
