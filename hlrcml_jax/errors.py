"""The one exception for user errors, and how programs exit on it."""

import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import app

LONGEST = 300  # characters of a sentence


class UserError(Exception):
    """An error the user can fix: one sentence naming the file, line, column or key.

    `run_program` prints it on stderr and exits with status 2; any other exception is a bug. Of a
    sentence with a long quotation the middle is left out.
    """

    def __str__(self) -> str:
        sentence = " ".join(super().__str__().splitlines())  # quoted text may span lines
        return shortened(sentence, LONGEST)


class Diverged(UserError):
    """The loss of a run became NaN or infinite."""


class Terminated(BaseException):
    """The program was stopped by SIGTERM; `run_program` exits with status 0."""


def shortened(text: str, longest: int) -> str:
    """A text of at most `longest` characters; of a longer one the middle is left out."""
    tail = longest // 2
    return text if len(text) <= longest else f"{text[: longest - tail - 1]}…{text[-tail:]}"


def quoted(value: Any) -> str:
    """A short `repr` of any value, for a sentence."""
    try:
        return shortened(repr(value), 60)
    except Exception:  # an integer of too many digits, or an object without one
        return f"a value of type {type(value).__name__}"


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
