"""The one exception that stands for a mistake of the user's, and how programs end on it."""

import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import app


class UserError(Exception):
    """A mistake that the user can mend: one sentence naming the file, line, column or key.

    `run_program` prints it on stderr and exits with status 2; anything else is a defect of ours.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what it quotes may have lines


class Diverged(UserError):
    """The loss of a run is not finite any more."""


class Terminated(BaseException):
    """The program was stopped by SIGTERM; `run_program` exits with status 0."""


def warn(sentence: str) -> None:
    """Says on stderr what a user should know, and goes on."""
    sys.stderr.write(f"hlrcml_jax: {sentence}\n")  # at once: threads of libraries may write too
    sys.stderr.flush()


def run_program(main: Callable[[Any], Any], **options: Any) -> None:
    """`absl.app.run`, with the user's mistakes as one sentence each."""
    signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _report
    try:
        app.run(main, **options)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    except Terminated as notice:
        warn(str(notice))


def _report(found: threading.ExceptHookArgs) -> None:
    """What failed in a thread, but for orbax's, which the next call of orbax raises again."""
    frames = traceback.walk_tb(found.exc_traceback)
    if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):
        threading.__excepthook__(found)


def _terminate(*_) -> None:
    raise Terminated(
        "stopped by SIGTERM; what was finished is kept. Run the same command to resume."
    )
