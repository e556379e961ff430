"""The notebooks run from top to bottom, on small settings."""

import json
import os
import subprocess

import nbclient
import nbformat
import pytest
from conftest import ROOT

from hlrcml_jax.data import synthetic

FOLDER = ROOT / "experiments" / "notebooks"
SMALL = {
    "model.dim": 8,
    "model.memory_slots": 4,
    "model.max_prefs": 5,
    "train.batch_size": 200,
    "train.epochs": 2,
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Settings of a small file whose items have titles and categories."""
    folder = tmp_path_factory.mktemp("catalogue")
    table = synthetic.generate(60, 40, 2400, seed=1)
    table.write_csv(folder / "plays.csv")
    kinds = ("Comedy", "Drama|Comedy", "Drama")
    items = "".join(f"{item},Title {item},{kinds[item % 3]}\n" for item in range(40))
    (folder / "items.csv").write_text(f"item,title,kinds\n{items}")
    return {
        "data.name": "",
        "data.path": str(folder / "plays.csv"),
        "data.threshold": None,
        "data.min_per_user": 0,
        "data.titles.path": str(folder / "items.csv"),
        "data.titles.categories": "kinds",
    }


def cell(notebook, tag):
    [found] = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    return found


def test_all_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {
        "quickstart",
        "your_own_data",
        "relations",
    }


@pytest.mark.parametrize(
    ("name", "changes", "asks"),
    [
        ("quickstart", {"liked": ["title 3", "title 12", "title 7"]}, "new.height == 5"),
        (
            "your_own_data",
            {},
            "everyone.height == 10 * recommender.users.len()",
        ),
        ("relations", {"n_users": 10}, "0 < counts['attended'].min() <= counts['all'].max() <= 5"),
    ],
)
def test_runs_from_top_to_bottom(name, changes, asks, catalogue, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    settings = SMALL | (catalogue if name != "your_own_data" else {})
    settings |= {"data.cache_dir": str(tmp_path / "cache")}
    parameters = cell(notebook, "parameters")
    for variable, value in ({"settings": settings} | changes).items():
        parameters.source += f"\n{variable} = {value!r}"
    notebook.cells.append(nbformat.v4.new_code_cell(f"assert {asks}"))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ)


@pytest.mark.parametrize("name", ["quickstart", "your_own_data", "relations"])
@pytest.mark.parametrize(
    ("project", "device", "gpu", "asked"),
    [
        ("project", None, None, "project"),
        ("project", None, "/usr/bin/nvidia-smi", "project[cuda]"),
        ("project", "/dev/accel0", None, "project[tpu]"),
        ("git+https://host/it", "/dev/vfio/0", None, "hlrcml_jax[tpu] @ git+https://host/it"),
    ],
)
def test_the_first_cell_installs_for_the_runtime(name, project, device, gpu, asked, monkeypatch):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first is cell(notebook, "install")
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(
        "glob.glob", lambda pattern: [device] * (device or "").startswith(pattern[:8])
    )
    monkeypatch.setattr("shutil.which", lambda _: gpu)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(first.source.replace('PROJECT = "../.."', f'PROJECT = "{project}"'), {})
    [command] = commands
    assert command[1:] == ["-m", "pip", "install", "-q", asked]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_small_and_of_no_machine(path):
    text = path.read_text()
    assert len(text) < 200_000
    outputs = [json.dumps(cell.get("outputs", [])) for cell in json.loads(text)["cells"]]
    assert any(output != "[]" for output in outputs)
    assert not any(word in output for output in outputs for word in ("/home/", "/tmp/", "Error"))
