"""HTML of the report: a page, its tables and lists; every text is escaped."""

import html
from collections.abc import Iterable, Sequence

from hlrcml_jax.errors import printable

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --muted: #5f6570; --line: #d9dce0;
  --page: #fff; --shadow: #0004; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --muted: #a3a9b3;
  --line: #3a3f46; --page: #16181c; --shadow: #fff5; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem;
  color: var(--text); background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4, caption { font-size: .875rem; font-weight: 400; text-align: left; margin: 0;
  padding: .3rem 0; color: var(--muted); }
p { max-width: 44rem; }
figcaption, .note { color: var(--muted); font-size: .875rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem 2rem; align-items: start; margin: 1.5rem 0; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 30rem; }
.example { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem 2rem; }
@media (min-width: 48rem) { .example { grid-template-columns: minmax(0, 1fr) minmax(0, 2.5fr); } }
ul { font-size: .9rem; list-style: none; margin: 0; padding: 0; }
li, th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); }
/* Shadows at the edges that hide a part of a table; they scroll away with the edge. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--page) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shadow), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shadow), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 6.5rem; }
td.n { min-width: 0; overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85rem; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A self-contained page, of parts that are HTML already."""
    head = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>",
        f"<body>\n<main>\n<h1>{escaped(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</main>\n</body>\n</html>\n"])


def escaped(text: str) -> str:
    """A text as HTML, without control characters."""
    return html.escape(printable(text))


def figure(picture: str, caption: str) -> str:
    """A picture, an SVG element, with its caption."""
    return f"<figure>{picture}<figcaption>{escaped(caption)}</figcaption></figure>"


def items(texts: Sequence[str]) -> str:
    """A list of texts."""
    return "\n".join(["<ul>", *(f"<li>{escaped(text)}</li>" for text in texts), "</ul>"])


def table(
    caption: str,
    label: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Sequence[str],
) -> str:
    """A table that scrolls where it does not fit; the first cell of a row is its heading.

    Args:
      caption: shown above it.
      label: of the region that scrolls, unlike those of other tables of the page.
      head: of the columns.
      rows: of texts.
      numeric: names of the columns of numbers.
    """
    classes = [" class=n" if name in numeric else "" for name in head]

    def row(tags: Sequence[str], texts: Sequence[str]) -> str:
        cells = zip(tags, classes, texts, strict=True)
        return "".join(f"<{tag}{c}>{escaped(text)}</{tag[:2]}>" for tag, c, text in cells)

    of_row = ["th scope=row", *["td"] * (len(head) - 1)]
    return "\n".join(
        [
            f'<div class=scroll role=region tabindex=0 aria-label="{escaped(label)}"><table>',
            f"<caption>{escaped(caption)}</caption>",
            f"<thead><tr>{row(['th scope=col'] * len(head), head)}</tr></thead>\n<tbody>",
            *(f"<tr>{row(of_row, texts)}</tr>" for texts in rows),
            "</tbody>\n</table></div>",
        ]
    )
