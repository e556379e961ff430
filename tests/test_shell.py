"""The commands of README and docs run as they stand, or at least their flags are right."""

import contextlib
import itertools
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request

import forked
import numpy as np
import polars as pl
import pytest
import scipy.sparse
import shell
from conftest import ROOT, with_devices

FOLDERS = ("", "docs", "docs/results", "experiments")
PAGES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text())]

# Commands of which only the flags, and what they name, are read; and why.
ONLY_READ = {
    r"configs/quickstart\.py|data\.name=ml-": "downloads a public data set",
    r"data=(gowalla|yelp2018|lastfm-2k)": "needs published files, and trains for minutes or hours",
    r"runs/(dense|relations|sharp)-?": "evaluates a run of one of these",
    r"experiments/(?!serve)": "measures or searches for minutes to hours",
    r"--config=best": "is README's --config=configs/best.py",
    r"--coordinator=": "needs a second machine",
}
# Commands that other tests run, or that .ci/run does.
LEFT_OUT = (
    ["python3", "-m", "venv", ".venv"],
    ["bash", ".ci/run"],
    ["ruff", "check", "."],
    ["ruff", "format", "."],
    ["pyright"],
    ["mkdocs", "serve"],
)


@pytest.fixture
def reader(trained, cli, tmp_path, monkeypatch):
    """A reader's folder: the checkout, a finished quickstart, and files of interactions."""
    for name in (".ci", "configs", "experiments", "hlrcml_jax", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    shutil.copytree(trained[0], tmp_path / "runs" / "quickstart")
    shutil.copy(cli.data, tmp_path / "plays.csv")
    (tmp_path / "today.csv").write_text("user,item\n1,30\n1000,2\n1000,5\n")
    draw_UxI = np.random.default_rng(0).random((60, 40))
    for part, low, high in (("train", 0.0, 0.4), ("valid", 0.4, 0.5), ("test", 0.5, 0.6)):
        matrix = scipy.sparse.csr_array((low <= draw_UxI) & (draw_UxI < high))
        scipy.sparse.save_npz(tmp_path / f"{part}.npz", matrix)
    users, items = np.nonzero(draw_UxI < 0.5)
    plays = pl.DataFrame({"listener": users, "artist": items, "plays": 7})
    plays.write_csv(tmp_path / "plays.tsv", separator="\t")
    names = pl.DataFrame({"artist": range(40), "name": [f"Artist {n}" for n in range(40)]})
    names.write_csv(tmp_path / "artists.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of(page, reader, port, load_program):
    text = page.read_text()
    for code, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", text, re.DOTALL):
        (reader / name).write_text(code)
    with contextlib.ExitStack() as services:
        for block in BLOCK.findall(text):
            given = shell.commands(block.replace(":8000", f":{port}"), reader)
            # A command in the background may have come second.
            for words in sorted(given, key=lambda words: words[0] == "curl"):
                print(*words)
                follow(words, reader, port, services, load_program)


def follow(words, folder, port, services, load_program):
    """Does what a command says, or as much of it as a test can."""
    match words:
        case ["curl", *rest]:
            ask(rest)
        case ["pip", "install", *packages]:
            assert all(re.fullmatch(r"-q|-e|\.(\[\w+\])?|atheris", each) for each in packages)
        case ["python", "experiments/fuzz.py", kind, *_]:
            assert kind in load_program(ROOT / "experiments" / "fuzz.py").KINDS
        case ["python", "experiments/serve/app.py", *flags]:
            flags = [flag.replace("=8000", f"={port}") for flag in flags]
            services.enter_context(serving(flags))
        case ["python", "-m", "hlrcml_jax.main", *flags]:
            run(flags, None, words, (forked.add_path, folder))
        case ["python", program, *flags] if program.startswith("experiments/"):
            run(flags, program, words)
        case ["python", "-m", "pytest", *files]:
            assert all((ROOT / file).exists() for file in files)
        case _:
            assert words in LEFT_OUT


def run(flags, program, words, first=()):
    if any(re.search(pattern, " ".join(words)) for pattern in ONLY_READ):
        first = (shell.only_read,)
    elif "--mode" not in " ".join(flags):
        flags = [*flags, "--config.train.epochs=1"]
    status, _, err = forked.run(flags, with_devices(1), program, first)
    assert status == 0, f"{' '.join(words)}\n{err}"


@contextlib.contextmanager
def serving(flags):
    service = forked.Program(flags, with_devices(1), "experiments/serve/app.py")
    try:
        yield
    finally:
        service.kill()
        service.communicate()


def ask(words):
    """Asks what curl would ask, and waits for the service."""
    options = dict(itertools.pairwise(words))
    headers = dict([options["-H"].split(": ")]) if "-H" in options else {}
    data = options["-d"].encode() if "-d" in options else None
    [place] = [word for word in words if word.startswith("localhost:")]
    request = urllib.request.Request(f"http://{place}", data, headers)
    for _ in range(600):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{place}: {error} {error.read().decode()}")
        except urllib.error.URLError:
            time.sleep(0.1)
    pytest.fail(f"{place}: no answer")
