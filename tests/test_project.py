"""What stands in several files of the project agrees."""

import configparser
import pathlib
import re

import pytest
import yaml

import hlrcml_jax

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("", "docs", "docs/results", "experiments", "configs")
PAGES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def test_the_version_stands_in_one_place():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: hlrcml_jax.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.get("version", hlrcml_jax.__version__) == hlrcml_jax.__version__
    released = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == hlrcml_jax.__version__


def test_the_paper_is_cited_in_one_way():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    bibtex = dict(re.findall(r"(\w+) += \{(.*)\}", (ROOT / "README.md").read_text()))
    assert paper["title"] == bibtex["title"]
    assert paper["doi"] == bibtex["doi"]
    assert str(paper["year"]) == bibtex["year"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) == bibtex["author"]


def test_every_folder_of_code_is_a_package_that_gets_installed():
    folders = {path.parent for path in (ROOT / "hlrcml_jax").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_exists(page):
    for link, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def test_the_workflow_runs_what_contributors_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    given = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }
    assert given["test"] == ["bash .ci/run"]
    assert given["site"][-1] == "mkdocs build --strict"
    assert "bash .ci/run" in (ROOT / "CONTRIBUTING.md").read_text()
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in actions)
    oldest = re.search(r"python_requires = >=(.*)", (ROOT / "setup.cfg").read_text())[1]
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest


def test_every_extra_that_is_named_exists():
    """pip only warns of one that does not, and installs nothing for it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    kinds = {".md", ".py", ".sh", ".ipynb", ".yml", ".cfg", ""}
    tops = ("*", ".ci/*", ".github/**/*", "docs/**/*", "experiments/**/*", "hlrcml_jax/**/*")
    files = {path for top in tops for path in ROOT.glob(top) if path.suffix in kinds}
    texts = [path.read_text(errors="replace") for path in files if path.is_file()]
    named = re.findall(r"(?:\.|hlrcml_jax)\[([a-z_,]+)\]", "\n".join(texts))
    extras = {name for names in named for name in names.split(",")}
    assert {"test", "serve", "docs", "cuda"} <= extras <= set(setup["options.extras_require"])
