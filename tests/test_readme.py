"""The examples in Python of README and docs run as they stand."""

import json
import pathlib
import re
import shutil

import optuna
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
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
    (written,) = pathlib.Path("wandb").glob("offline-run-*/*.wandb")
    values = [record["ndcg@10"] for record in names["records"] if "ndcg@10" in record]
    assert values
    assert all(json.dumps(value).encode() in written.read_bytes() for value in values)
    (logged,) = names["mlflow"].search_runs(output_format="list")
    assert logged.data.metrics["epoch"] == 4
    assert 0 < logged.data.metrics["ndcg at 10"] < 1
    trials = names["study"].trials
    assert len(trials) == 2
    assert all(trial.intermediate_values.keys() <= set(range(1, 5)) for trial in trials)
    assert names["study"].best_value == max(trial.value for trial in trials) > 0
    names["study"].pruner = optuna.pruners.ThresholdPruner(lower=1.1)  # no metric is so good
    names["study"].optimize(names["objective"], n_trials=1)
    assert names["study"].trials[-1].state == optuna.trial.TrialState.PRUNED
    assert len(names["study"].trials[-1].intermediate_values) == 1


def of_serving(names):
    assert names["everyone"].height == 600
    assert names["lists"]["user_id"].unique().to_list() == ["someone"]
    assert not set(names["history"]) & set(names["lists"]["item_id"])
    assert set(names["reasons"]["reason_item_id"]) <= set(names["history"])
    assert set(names["cold"]["item_id"]) == {1001, 1002, 1003}
    assert names["cold"]["score"].is_sorted(descending=True)


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
