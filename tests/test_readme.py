"""The examples in Python of README and docs run as they stand."""

import re
import shutil

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_examples_run(page, trained, cli, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    shutil.copytree(trained[0], tmp_path / "runs" / "quickstart")
    shutil.copy(cli.data, tmp_path / "plays.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for block in blocks:
        if file := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / file[1]).write_text(block)
        else:
            exec(block, names)
    CHECKS[page.stem](names)


def of_readme(names):
    assert names["hlr"].load("runs/plays").items.equals(names["recommender"].items)


def of_training(names):
    assert names["metrics"]["ndcg@10"]["mean"] == pytest.approx(0.2, abs=0.2)


def of_serving(names):
    assert names["everyone"].height == 600
    assert names["lists"]["user_id"].unique().to_list() == ["someone"]
    assert not set(names["history"]) & set(names["lists"]["item_id"])
    assert set(names["reasons"]["reason_item_id"]) <= set(names["history"])


def of_extending(names):
    assert 0 < names["gated"]["ndcg@10"]["mean"] < 1


CHECKS = {
    "README": of_readme,
    "training": of_training,
    "serving": of_serving,
    "extending": of_extending,
}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
