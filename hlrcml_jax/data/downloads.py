"""Public data sets by name: their sources, checksums and layout."""

import dataclasses
import hashlib
import http.client
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile

import rich.markup
import rich.progress

from hlrcml_jax import storage
from hlrcml_jax.data.archives import BROKEN
from hlrcml_jax.data.files import check_regular
from hlrcml_jax.data.layout import ItemFile, Layout
from hlrcml_jax.errors import UserError, shortened

TIMEOUT = 20  # seconds without a byte
MAX_SECONDS, MIN_RATE = 3600, 1000  # of a download; bytes a second
MAX_BYTES = 1 << 30  # the largest archive of the catalogue has a quarter
UNREACHED = (OSError, http.client.HTTPException, subprocess.SubprocessError, ValueError)
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
    layout = Layout("::", False, ("", "0", "1", ""), "latin-1")
    items = _items("movies.dat", layout, "2")
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
                    _items("u.item", Layout("|", False, ("", "0", "1", ""), "latin-1")),
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
    downloads = storage.private_folder(cache_dir / "downloads", "data.cache_dir")
    target = downloads / name
    if path is not None:
        source, content = sources[0]
        check_regular(path)
        _verify(path, source.checksum)
        return _extract(path, content, target)
    found = _search(target, sources)
    if found is not None and found.items is not None:
        return found
    shutil.rmtree(target, ignore_errors=True)  # files were deleted from it
    failures = []
    for source, content in sources:
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            try:
                archive = _fetch(source, downloads, pathlib.Path(scratch))
            except UNREACHED as error:
                failures.append(shortened(f"{_address(source)}: {_reason(error)}", 140))
                _say(failures[-1])
                continue
            _say(f"{name} from {_address(source)}, {source.checksum.split(':')[0]} verified")
            return _extract(archive, content, target)
    tried = f"{len(failures)} sources, the last " if len(failures) > 1 else ""
    raise UserError(
        f"{name} could not be fetched ({tried}{failures[-1]}); put its files into a folder and "
        "set data.path to it."
    )


def _search(folder: pathlib.Path, sources) -> Files | None:
    """The files of a source in a folder, with or without titles."""
    for _, content in sources:
        for base in (folder, folder / content.folder):
            if (base / content.interactions).is_file():
                items = dataclasses.replace(content.items, path=base / content.items.path)
                items = items if items.path.is_file() else None
                return Files(base / content.interactions, content.format, items)
    return None


def _in_folder(folder: pathlib.Path, sources) -> Files:
    found = _search(folder, sources)
    if found is not None:
        return found
    names = " or ".join(dict.fromkeys(content.interactions for _, content in sources))
    raise UserError(f"{folder}: there is no {names} in this folder; check data.path.")


def _address(source: Archive | Wheel) -> str:
    return source.url if isinstance(source, Archive) else f"the PyPI wheel {source.requirement}"


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"pip exited with status {error.returncode}"
    if isinstance(error, http.client.HTTPException):
        return f"the answer is not HTTP, or was cut ({type(error).__name__})"
    return str(getattr(error, "reason", error)) or type(error).__name__


def _fetch(source: Archive | Wheel, downloads: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Downloads the archive, unless it is in `downloads` already, and verifies it.

    Raises:
      OSError, or another of UNREACHED: when the source does not give the published file.
      UserError: when the file in `downloads` is another.
    """
    if isinstance(source, Wheel):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
        command = [*pip, "-d", str(scratch), source.requirement]
        subprocess.run(command, check=True, capture_output=True, timeout=MAX_SECONDS)
        fetched = next(scratch.glob("*.whl"), None)
        if fetched is None:
            raise OSError("pip downloaded no wheel")
    else:
        name = source.url.rsplit("/", 1)[1]
        if (downloads / name).is_file():
            _verify(downloads / name, source.checksum)
            return downloads / name
        fetched = scratch / name
        _download(source.url, fetched)
    if wrong := _difference(fetched, source.checksum):
        with fetched.open("rb") as file:
            start = file.read(1000).lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise OSError("a web page came instead of the archive (is there a login portal?)")
        raise OSError(f"what came {wrong}; it was not kept")
    return fetched


def _download(url: str, target: pathlib.Path) -> None:
    """Writes what a server sends to a file; ends when too much, too little or too slowly comes."""
    begun = time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        size = _size(response.headers.get("Content-Length"))
        if size > MAX_BYTES:
            raise OSError(f"the server announces {size:,} bytes")
        with (
            rich.progress.wrap_file(
                response, size, description=f"Fetching {target.name}"
            ) as source,
            target.open("wb") as file,
        ):
            while part := source.read(1 << 16):
                file.write(part)
                seconds = time.monotonic() - begun
                if file.tell() > (size or MAX_BYTES):
                    raise OSError(f"more than {size or MAX_BYTES:,} bytes came")
                if seconds > MAX_SECONDS or file.tell() < MIN_RATE * (seconds - TIMEOUT):
                    raise OSError(f"only {file.tell():,} bytes came in {seconds:.0f} s")
            if file.tell() < size:
                raise OSError(f"the download was cut after {file.tell():,} of {size:,} bytes")


def _size(header: str | None) -> int:
    """The announced number of bytes, or 0 if it is unknown."""
    return int(header) if header and header.isascii() and header.isdecimal() else 0


def _difference(archive: pathlib.Path, checksum: str) -> str | None:
    """How the file differs from the published one, or None."""
    kind, expected = checksum.split(":")
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, kind).hexdigest()
    if actual == expected:
        return None
    return f"has the {kind} {actual[:12]}… and not the published {expected[:12]}…"


def _verify(archive: pathlib.Path, checksum: str) -> None:
    if wrong := _difference(archive, checksum):
        raise UserError(
            f"{archive}: it {wrong}; delete the file and fetch it again, or check where it came "
            "from."
        )


def _extract(archive: pathlib.Path, content: Content, target: pathlib.Path) -> Files:
    """Copies the two named members, and nothing else, into the target folder."""
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
    except (*BROKEN, KeyError) as error:
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
    rich.print(f"[dim]{rich.markup.escape(sentence)}[/dim]", file=sys.stderr)
