"""The script for TPU VMs prints a complete plan, and gives no command, in a dry run."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT

SCRIPT = ROOT / "experiments" / "tpu_vm.sh"


def run(*arguments, **environment):
    return subprocess.run(
        [shutil.which("bash"), SCRIPT, *arguments], capture_output=True, text=True, env=environment
    )


def test_a_dry_run_prints_the_whole_plan():
    """With no gcloud on the path, since nothing may be given."""
    found = run(
        "--dry-run", "mine", "all", "delete",
        PATH="/usr/bin:/bin", ZONE="here", TYPE="v5e-16", FLAGS="--config=configs/quickstart.py",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    create, archive, copy, install, train, log, delete = found.stdout.splitlines()
    assert "create mine --zone=here --accelerator-type=v5e-16" in create
    assert archive.startswith("git -C ")
    for command in (copy, install, train):
        assert "--worker=all" in command
    assert re.search(r"pip install -q .*\[tpu,gcs\]", install)
    assert "-m hlrcml_jax.main --config=configs/quickstart.py" in train
    assert re.search(r"--worker=0 .*train\.log", log)
    assert "delete mine" in delete


def test_mistakes_get_status_2():
    assert run("--dry-run", "mine", "fly", PATH="/usr/bin:/bin").returncode == 2
    found = run("mine", PATH="/usr/bin:/bin")
    assert found.returncode == 2
    assert "create, install, run and log" in found.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
