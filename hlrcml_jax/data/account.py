"""What the preparation of a data set took away, step by step, and what it warns of."""

import dataclasses
import json
import pathlib

FILE = "account.json"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of rows, and of the distinct users and items in them."""

    rows: int
    users: int
    items: int


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step took away.

    Attributes:
      name: of the step, with its config keys.
      taken: rows, users and items that the step took away.
    """

    name: str
    taken: Counts

    def __str__(self) -> str:
        counts = dataclasses.asdict(self.taken).items()
        kinds = [_counted(count, kind) for kind, count in counts if count]
        return f"{self.name} removed {', '.join(kinds)}"


def _counted(count: int, kind: str) -> str:
    return f"{count:,} {kind.removesuffix('s') if count == 1 else kind}"


@dataclasses.dataclass(frozen=True)
class Account:
    """The steps that took something, in their order, and the warnings."""

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    def step(self, name: str, before: Counts, after: Counts) -> "Account":
        """With one more step, if it took something."""
        taken = Counts(
            before.rows - after.rows, before.users - after.users, before.items - after.items
        )
        if taken == Counts(0, 0, 0):
            return self
        return dataclasses.replace(self, steps=(*self.steps, Step(name, taken)))

    def warn(self, *sentences: str) -> "Account":
        """With more warnings."""
        return dataclasses.replace(self, warnings=(*self.warnings, *sentences))

    def save(self, folder: pathlib.Path) -> None:
        """Writes `account.json` into the folder of a data set."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Account":
        """Reads what `save` wrote; the empty account if that is gone or damaged."""
        try:
            content = json.loads((folder / FILE).read_text())
            steps = [Step(step["name"], Counts(**step["taken"])) for step in content["steps"]]
            return cls(tuple(steps), tuple(map(str, content["warnings"])))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


EMPTY = Account()
