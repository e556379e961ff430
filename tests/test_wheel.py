"""What is installed works in a folder that has nothing of the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

CONTENT = ("hlrcml_jax", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in CONTENT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", source, "-w", source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent for path in (ROOT / "hlrcml_jax").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setup["options"]["packages"].split()) == names | {"hlrcml_jax.configs"}


def test_the_wheel_trains_by_the_name_of_a_config(installed, cli, tmp_path):
    scripts = (next(installed.glob("*.dist-info")) / "entry_points.txt").read_text()
    assert "hlrcml = hlrcml_jax.main:run" in scripts
    code = "import hlrcml_jax.main; hlrcml_jax.main.run()"
    flags = ["--config=best:model=cml", f"--config.data.path={cli.data}", "--config.train.epochs=2"]
    flags += [f"--config.data.cache_dir={tmp_path / 'cache'}"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "best" / "report.html").exists()
    where = [sys.executable, "-c", "import hlrcml_jax; print(hlrcml_jax.__file__)"]
    found = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))
