"""The documentation site is built without a warning, and has what the docstrings say."""

import html
import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

MODULES = re.findall(r"^::: (.*)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reference(site):
    """{dotted name: the text below its heading} of the page on Python."""
    page = (site / "docs" / "api.html").read_text()
    _, *parts = re.split(r'<h\d id="(hlrcml_jax[\w.]*)" [^>]*>', page)
    texts = (html.unescape(re.sub(r"<[^>]*>", "", part)) for part in parts[1::2])
    return dict(zip(parts[::2], map(plain, texts), strict=True))


def plain(text):
    """A text without the marks of code and without line breaks."""
    return " ".join(text.replace("`", "").split())


def public(owner):
    """(name, function or class) of a module or class, as its reader sees it."""
    names = getattr(owner, "__all__", None)
    home = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for name, value in [(name, getattr(owner, name)) for name in names or vars(owner)]:
        is_code = inspect.isfunction(value) or inspect.isclass(value)
        if is_code and not name.startswith("_") and (names or value.__module__ == home):
            yield name, value


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_docstring(module, reference):
    for name, value in public(importlib.import_module(module)):
        members = public(value) if inspect.isclass(value) else ()
        for path, each in [(name, value), *((f"{name}.{own}", m) for own, m in members)]:
            first = plain(inspect.getdoc(each).partition("\n\n")[0])
            assert first in reference[f"{module}.{path}"]


def test_the_reference_is_of_the_public_modules():
    documented = ("hlrcml_jax", "hlrcml_jax.functional", "hlrcml_jax.models.base")
    assert set(documented) < set(MODULES)


def test_nothing_comes_from_other_hosts(site):
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:link|script|img|iframe)\b[^>]*>", page.read_text())
        assert tags
        assert not [tag for tag in tags if re.search(r'(src|href)="?(https?:)?//', tag)]


def test_the_navigation_has_the_order_of_the_readme():
    def pages(entry):
        parts = entry.values() if isinstance(entry, dict) else entry
        return (
            [entry] if isinstance(entry, str) else [page for each in parts for page in pages(each)]
        )

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    linked = re.findall(r"^\| \[.*\]\((.*\.md)\)", (ROOT / "README.md").read_text(), re.MULTILINE)
    table = [page for page in linked if "results/" not in page]
    assert [page for page in pages(settings["nav"]) if page in table] == table
