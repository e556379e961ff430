"""Servers that do not send what was published: one sentence, and nothing is left behind."""

import contextlib
import hashlib
import io
import itertools
import socket
import threading
import zipfile

import pytest

from hlrcml_jax import schema
from hlrcml_jax.data import downloads
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import MAX_SENTENCE, UserError


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        lines = [f"{user},{item},5,1\n" for user in range(5) for item in range(4) if user != item]
        file.writestr("toy/ratings.csv", "userId,movieId,rating,timestamp\n" + "".join(lines))
        file.writestr("toy/movies.csv", "movieId,title,genres\n1,One,New\n")
    return content.getvalue()


WHOLE = archive()
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def sized(body: bytes, size: int | None = None) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % (len(body) if size is None else size) + body


@contextlib.contextmanager
def served(*answers):
    """The address of a server that sends these bytes, or these parts, once each."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for answer in answers:
                with contextlib.suppress(OSError), server.accept()[0] as client:
                    client.recv(4096)
                    for part in [answer] if isinstance(answer, bytes) else answer:
                        client.sendall(part)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/toy.zip"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Prepares the data set from these addresses."""
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    monkeypatch.setattr(downloads, "MAX_BYTES", 1 << 20)
    checksum = "sha256:" + hashlib.sha256(WHOLE).hexdigest()
    ((_, content),) = downloads._csv("toy", checksum).sources

    def toy(*urls):
        sources = tuple((downloads.Archive(url, checksum), content) for url in urls)
        monkeypatch.setitem(downloads.CATALOG, "toy", downloads.Entry(sources))
        return prepare(schema.Data(name="toy", cache_dir=str(tmp_path / "cache")))

    return toy


PORTAL = b"\n<!DOCTYPE html><html>Please log in [/b]</html>"
ENDLESS = itertools.chain([OK + b"\r\n"], itertools.repeat(b"x" * 65536))
TOO_MUCH = itertools.chain([OK + b"Content-Length: 10\r\n\r\n"], itertools.repeat(b"x" * 65536))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (sized(WHOLE[:-100], len(WHOLE)), "cut"),
        (OK + b"\r\n" + WHOLE[:-100], "not the published"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
        (b"", "not HTTP, or was cut|closed connection|reset"),
        (b"\x00\xff" * 1000, "not HTTP"),
        (ENDLESS, "more than 1,048,576 bytes came"),
        (TOO_MUCH, "not the published"),  # what is too much is not read
        (sized(b"", 10**15), "announces 1,000,000,000,000,000 bytes"),
        (OK + b"Content-Length: many\r\n\r\n" + WHOLE[:9], "not the published"),
        (sized(PORTAL), "a web page came instead of the archive"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "Not Found"),
        (b"HTTP/1.1 503 [/b][link=x]\r\nContent-Length: 0\r\n\r\n", r"toy could not be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://[::\r\n\r\n", "toy could not be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "could not be fetched"),
        (sized(WHOLE[::-1]), "has the sha256 .* and not the published .*; it was not kept"),
        (sized(b"", 0), "not the published"),
    ],
    ids=range(16),
)
def test_a_server_that_sends_something_else(tmp_path, toy, answer, said):
    with served(answer) as url, pytest.raises(UserError, match=said) as caught:
        toy(url)
    assert "toy could not be fetched (http" in str(caught.value)
    assert "set data.path" in str(caught.value)
    assert len(str(caught.value)) <= MAX_SENTENCE
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with served(sized(WHOLE)) as url:  # and the next try is a first one
        assert toy(url).n_users == 5


def slowly(parts, seconds):
    for part in parts:
        threading.Event().wait(seconds)
        yield part


def test_a_server_that_says_nothing(toy):
    with (
        served(slowly([b"", OK], 0.5)) as url,
        pytest.raises(UserError, match=r"toy could not be fetched .*timed out"),
    ):
        toy(url)


def test_a_server_that_is_too_slow(toy, monkeypatch):
    monkeypatch.setattr(downloads, "MIN_RATE", 10**9)
    parts = slowly([OK + b"\r\n", *[b"x" * 65536] * 100], 0.1)
    with (
        served(parts) as url,
        pytest.raises(UserError, match=r"only [\d,]+ bytes came in"),
    ):
        toy(url)


def test_another_source_is_tried_after_one_that_sends_something_else(toy):
    with served(sized(PORTAL), sized(WHOLE)) as url:
        assert toy(url, url).n_users == 5


@pytest.mark.parametrize("lost", ["ratings.csv", "movies.csv"])
def test_a_download_that_lost_a_file_is_fetched_again(toy, tmp_path, lost):
    with served(sized(WHOLE), sized(WHOLE)) as url:
        titles = toy(url).titles
        (file,) = tmp_path.rglob(lost)
        file.unlink()
        assert toy(url).titles.equals(titles)
        assert file.exists()
