"""The one exception that stands for a mistake of the user's."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence naming the file, line, column or key.

    `main` prints it on stderr and exits with status 2; anything else is a defect of ours.
    """
