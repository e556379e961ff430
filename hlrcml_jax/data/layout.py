"""How text files are laid out: those of interactions, and those that say what the items are."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a delimited file is laid out.

    Attributes:
      separator: one or more characters between fields.
      header: whether the first line holds column names.
      columns: for each role, a column's name or its 0-based place as text; "" guesses.
    """

    separator: str = ","
    header: bool = True
    columns: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def quote(self) -> str | None:
        """The character around fields that hold a separator, if such fields are usual."""
        return '"' if self.separator in (",", ";") else None


@dataclasses.dataclass(frozen=True)
class ItemFile:
    """A delimited file that says what the items are.

    Attributes:
      path: of the file.
      layout: its `item` and `value` columns are ids and titles.
      encoding: of the text.
      categories: column of an item's categories, by name or place; "" if there is none.
      category_separator: between them.
      usual: the name of the ids' column where none is given and there is one of this name.
    """

    path: pathlib.Path
    layout: Layout
    encoding: str = "utf8"
    categories: str = ""
    category_separator: str = "|"
    usual: str = ""
