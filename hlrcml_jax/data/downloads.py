"""Public data sets by name: their sources, checksums and layout."""

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile

import rich.progress

from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.errors import UserError

MOVIELENS = "https://files.grouplens.org/datasets/movielens"


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip archive and its published checksum, "md5:…" or "sha256:…"."""

    url: str
    checksum: str


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index that contains the data, fetched by pip."""

    requirement: str
    checksum: str


@dataclasses.dataclass(frozen=True)
class Content:
    """The files of a data set inside its archive.

    Attributes:
      folder: of the files in the archive.
      interactions: name of the interactions file.
      format: of the interactions, one of `registry.FORMATS`.
      items: the file of titles and categories; its path is a file name.
    """

    folder: str
    interactions: str
    format: str
    items: ItemFile


@dataclasses.dataclass(frozen=True)
class Entry:
    """A data set: its sources, tried in order."""

    sources: tuple[tuple[Archive | Wheel, Content], ...]


@dataclasses.dataclass(frozen=True)
class Files:
    """A data set on disk."""

    interactions: pathlib.Path
    format: str
    items: ItemFile | None


def _items(name: str, *options, **more) -> ItemFile:
    return ItemFile(pathlib.Path(name), *options, **more)


def _csv(name: str, checksum: str) -> Entry:
    """A MovieLens set of comma-separated files."""
    layout = Layout(",", True, ("", "movieId", "title", ""))
    items = _items("movies.csv", layout, categories="genres")
    content = Content(name, "ratings.csv", "ratings.csv", items)
    return Entry(((Archive(f"{MOVIELENS}/{name}.zip", checksum), content),))


def _dat(name: str, folder: str, checksum: str) -> Entry:
    """A MovieLens set of files with `::` between the fields."""
    layout = Layout("::", False, ("", "0", "1", ""))
    items = _items("movies.dat", layout, "latin1", "2")
    content = Content(folder, "ratings.dat", "ratings.dat", items)
    return Entry(((Archive(f"{MOVIELENS}/{name}.zip", checksum), content),))


CATALOG = {
    "ml-100k": Entry(
        (
            (
                Archive(f"{MOVIELENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),
                Content(
                    "ml-100k",
                    "u.data",
                    "u.data",
                    _items("u.item", Layout("|", False, ("", "0", "1", "")), "latin1"),
                ),
            ),
            (
                Wheel(
                    "recbole==1.2.1",
                    "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                ),
                Content(
                    "recbole/dataset_example/ml-100k",
                    "ml-100k.inter",
                    "inter",
                    _items(
                        "ml-100k.item",
                        Layout("\t", True, ("", "item_id", "movie_title", "")),
                        categories="class",
                        category_separator=" ",
                    ),
                ),
            ),
        )
    ),
    "ml-latest-small": _csv(
        "ml-latest-small", "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"
    ),
    "ml-1m": _dat(
        "ml-1m", "ml-1m", "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
    ),
    "ml-10m": _dat("ml-10m", "ml-10M100K", "md5:ce571fd55effeba0271552578f2648bd"),
    "ml-20m": _csv(
        "ml-20m", "sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"
    ),
    "ml-25m": _csv(
        "ml-25m", "sha256:8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"
    ),
    "ml-32m": _csv("ml-32m", "md5:d472be332d4daa821edc399621853b57"),
}


def locate(name: str, path: pathlib.Path | None, cache_dir: pathlib.Path) -> Files:
    """Finds a data set on disk, or downloads it from the first source that responds.

    Args:
      name: a key of CATALOG.
      path: a folder with the files, or the official archive; None for
        `cache_dir/downloads`, downloading what is missing.
      cache_dir: folder of the downloads.

    Raises:
      UserError: for an unknown name, a path without the files, no source that responds, or a
        wrong checksum.
    """
    if name not in CATALOG:
        names = ", ".join(CATALOG)
        raise UserError(f"data.name={name!r} is not in the catalogue; there are {names}.")
    sources = CATALOG[name].sources
    if path is not None and path.is_dir():
        return _in_folder(path, sources)
    downloads = cache_dir / "downloads"
    target = downloads / name
    if path is not None:
        source, content = sources[0]
        if not path.is_file():
            raise UserError(f"data.path={str(path)!r}: no such file or folder.")
        _verify(path, source.checksum)
        return _extract(path, content, target)
    if target.is_dir():
        return _in_folder(target, sources)
    downloads.mkdir(parents=True, exist_ok=True)
    failures = []
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        for source, content in sources:
            try:
                archive = _fetch(source, downloads, pathlib.Path(scratch))
            except (OSError, subprocess.CalledProcessError) as error:
                failures.append(f"{_address(source)}: {_reason(error)}")
                _say(failures[-1])
                continue
            _verify(archive, source.checksum)
            _say(f"{name} from {_address(source)}, {source.checksum.split(':')[0]} verified")
            return _extract(archive, content, target)
    raise UserError(
        f"{name} could not be fetched ({'; '.join(failures)}); put its files into a folder and "
        "set data.path to it."
    )


def _in_folder(folder: pathlib.Path, sources) -> Files:
    for _, content in sources:
        for base in (folder, folder / content.folder):
            if (base / content.interactions).is_file():
                items = dataclasses.replace(content.items, path=base / content.items.path)
                items = items if items.path.is_file() else None
                return Files(base / content.interactions, content.format, items)
    names = " or ".join(dict.fromkeys(content.interactions for _, content in sources))
    raise UserError(f"{folder}: there is no {names} in this folder; check data.path.")


def _address(source: Archive | Wheel) -> str:
    return source.url if isinstance(source, Archive) else f"the PyPI wheel {source.requirement}"


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"pip exited with status {error.returncode}"
    return str(getattr(error, "reason", error))


def _fetch(source: Archive | Wheel, downloads: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Downloads the archive, unless it is in `downloads` already."""
    if isinstance(source, Wheel):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
        subprocess.run([*pip, "-d", scratch, source.requirement], check=True, capture_output=True)
        return next(scratch.glob("*.whl"))
    name = source.url.rsplit("/", 1)[1]
    if (downloads / name).is_file():
        return downloads / name
    with urllib.request.urlopen(source.url, timeout=20) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with (
            rich.progress.wrap_file(response, size, description=f"Fetching {name}") as source_file,
            (scratch / name).open("wb") as file,
        ):
            shutil.copyfileobj(source_file, file)
    return scratch / name


def _verify(archive: pathlib.Path, checksum: str) -> None:
    kind, expected = checksum.split(":")
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, kind).hexdigest()
    if actual != expected:
        raise UserError(
            f"{archive}: its {kind} is {actual} and not the published {expected}; "
            "delete the file and fetch it again, or check where it came from."
        )


def _extract(archive: pathlib.Path, content: Content, target: pathlib.Path) -> Files:
    """Copies the two named members, and nothing else, into the target folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as members:
            for name in (content.interactions, content.items.path.name):
                with (
                    members.open(f"{content.folder}/{name}") as member,
                    (scratch / name).open("wb") as file,
                ):
                    shutil.copyfileobj(member, file)
        move_whole(scratch, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive}: not the expected archive ({error}).") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _in_folder(target, [(None, content)])


def move_whole(scratch: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames a finished folder, unless another process has created the target first."""
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _say(sentence: str) -> None:
    rich.print(f"[dim]{sentence}[/dim]", file=sys.stderr)
