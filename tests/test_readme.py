"""The README's examples in Python run as they stand."""

import re
import shutil

import pytest
from conftest import ROOT


def test_the_examples_run(trained, cli, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
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
    assert names["everyone"].height == 600
    assert names["lists"]["user_id"].unique().to_list() == ["someone"]
    assert not set(names["history"]) & set(names["lists"]["item_id"])
    assert set(names["reasons"]["reason_item_id"]) <= set(names["history"])
    assert names["metrics"]["ndcg@10"]["mean"] == pytest.approx(0.2, abs=0.2)
    assert names["gated"] != names["metrics"]
    assert 0 < names["gated"]["ndcg@10"]["mean"] < 1
