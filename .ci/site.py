"""The site has the layout of the repository, so that links between its files hold in both."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def on_files(files, config):
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in linked(ROOT / "README.md"):
        name = str(path.relative_to(ROOT))
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def linked(page: pathlib.Path) -> list[pathlib.Path]:
    """The page, and the files that its links lead to, directly or through other pages."""
    found, waiting = [], [page]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        if path.suffix == ".md":
            waiting += [(path.parent / link).resolve() for link in LINK.findall(path.read_text())]
    return found
