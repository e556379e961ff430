"""Layouts of text files: of interactions, and of item titles and categories."""

import dataclasses
import pathlib

USUAL_QUOTE = "auto"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a text file.

    Attributes:
      separator: one or more characters between fields.
      header: whether the first line holds column names.
      columns: for each role, a column name or 0-based index as text; "" guesses.
      encoding: of the text; a byte-order mark overrides it.
      quoting: the quote character around fields; "" for none, "auto" for the separator's usual.
      section: of the config that describes the file, for error messages.
    """

    separator: str = ","
    header: bool = True
    columns: tuple[str, str, str, str] = ("", "", "", "")
    encoding: str = "utf-8"
    quoting: str = USUAL_QUOTE
    section: str = "data"

    @property
    def is_long(self) -> bool:
        """Whether the separator has several bytes; such files have no quotes."""
        return len(self.separator.encode(errors="surrogatepass")) > 1

    @property
    def quote(self) -> str | None:
        """The quote character around fields, or None."""
        if self.is_long:
            return None
        if self.quoting != USUAL_QUOTE:
            return self.quoting or None
        return '"' if self.separator in (",", ";") else None

    def with_options_of(self, other: "Layout") -> "Layout":
        """This layout of a known format, with the encoding and the quotes of another."""
        return dataclasses.replace(
            self, encoding=other.encoding, quoting=other.quoting, section=other.section
        )


@dataclasses.dataclass(frozen=True)
class ItemFile:
    """A delimited file of item titles and categories.

    Attributes:
      path: of the file.
      layout: its `item` and `value` columns hold ids and titles.
      categories: column of the categories, by name or 0-based index; "" for none.
      category_separator: separator between categories.
      usual: name of the id column to try when none is given.
    """

    path: pathlib.Path
    layout: Layout
    categories: str = ""
    category_separator: str = "|"
    usual: str = ""
