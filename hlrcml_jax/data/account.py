"""What the preparation of a data set took away, step by step, and what it warns of."""

import dataclasses
import json

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
    """What the preparation did.

    Attributes:
      steps: that took something, in their order.
      warnings: sentences.
      columns: that were found by their usual names, as text.
    """

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    columns: str = ""

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

    def to_json(self) -> str:
        """As text for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Account":
        """The account of a text of `to_json`; raises `ValueError`, `KeyError` or `TypeError`."""
        content, kinds = json.loads(text), [field.name for field in dataclasses.fields(Counts)]
        steps = [
            Step(str(step["name"]), Counts(*(int(step["taken"][kind]) for kind in kinds)))
            for step in content["steps"]
        ]
        return cls(
            tuple(steps), tuple(map(str, content["warnings"])), str(content.get("columns", ""))
        )


EMPTY = Account()
