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


def test_a_dry_run_can_be_pasted(tmp_path):
    """Each argument comes back from a shell as one, and nothing in it is executed."""
    made = tmp_path / "made"
    flags = f"--workdir='a b' $(touch {made}) `touch {made}`; touch {made}"
    plan = run("--dry-run", "mine", "create", "run", PATH="/usr/bin:/bin", ZONE="a;b*", FLAGS=flags)
    pasted = f"gcloud() {{ printf '%s\\n' \"$@\"; }}\n{plan.stdout}"
    found = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[5] == "--zone=a;b*"
    command = f"cd hlrcml_jax && nohup .venv/bin/python -m hlrcml_jax.main {flags} > train.log"
    assert f"--command={command} 2>&1 < /dev/null &" in found.stdout
    assert not made.exists()


@pytest.mark.parametrize(
    "arguments",
    [("mine", "create", "fly"), ("-mine", "create"), ("--zone=x", "create"), ("a b", "create")],
)
def test_mistakes_are_refused_before_anything_is_given(tmp_path, arguments):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f"#!/bin/sh\ntouch {tmp_path}/given\n")
    gcloud.chmod(0o755)
    found = run(*arguments, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert found.returncode == 2
    assert "see the comment at its beginning" in found.stderr
    assert not (tmp_path / "given").exists()


def test_mistakes_get_status_2():
    found = run("mine", PATH="/usr/bin:/bin")
    assert found.returncode == 2
    assert "create, install, run and log" in found.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
