"""The one exception that stands for a mistake of the user's, and how programs end on it."""

import sys
from collections.abc import Callable

from absl import app


class UserError(Exception):
    """A mistake that the user can mend: one sentence naming the file, line, column or key.

    `run_program` prints it on stderr and exits with status 2; anything else is a defect of ours.
    """


def run_program(main: Callable, **options) -> None:
    """`absl.app.run`, with the user's mistakes as one sentence each."""
    try:
        app.run(main, **options)
    except UserError as error:
        print(f"hlrcml_jax: {error}", file=sys.stderr)
        sys.exit(2)
