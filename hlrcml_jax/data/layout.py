"""Layouts of text files: of interactions, and of item titles and categories."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a delimited file.

    Attributes:
      separator: one or more characters between fields.
      header: whether the first line holds column names.
      columns: for each role, a column name or 0-based index as text; "" guesses.
    """

    separator: str = ","
    header: bool = True
    columns: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def quote(self) -> str | None:
        """The quote character around fields, if the format usually has one."""
        return '"' if self.separator in (",", ";") else None


@dataclasses.dataclass(frozen=True)
class ItemFile:
    """A delimited file of item titles and categories.

    Attributes:
      path: of the file.
      layout: its `item` and `value` columns hold ids and titles.
      encoding: of the text.
      categories: column of the categories, by name or 0-based index; "" for none.
      category_separator: separator between categories.
      usual: name of the id column to try when none is given.
    """

    path: pathlib.Path
    layout: Layout
    encoding: str = "utf8"
    categories: str = ""
    category_separator: str = "|"
    usual: str = ""
