"""Kills, damage and full disks, a few of each; `experiments/faults.py` makes as many as wanted."""

import random

import pytest
from conftest import ROOT


def test_a_workdir_has_one_program_at_a_time(cli, tmp_path):
    flags = [*cli.small, "--config.train.epochs=400", "--config.early_stopping.patience=400"]
    process = cli.start(*flags, f"--workdir={tmp_path}")
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.poll() is None
    status, _, err = cli.run(*flags, f"--workdir={tmp_path}")
    process.kill()
    process.communicate()
    assert status == 2
    assert "another program works on this run" in err


@pytest.fixture(scope="module")
def faults(load_program, tmp_path_factory):
    """(the program, its command, its folder, the run without faults)."""
    program = load_program(ROOT / "experiments" / "faults.py")
    folder = tmp_path_factory.mktemp("faults")
    command, whole = program.make_command(folder), folder / "whole"
    program.finish(command, whole)
    return program, command, folder, whole


def test_what_is_killed_goes_on(faults):
    program, *run = faults
    assert program.kill(*run, 4, random.Random(0))["kills"] == 4


def test_damaged_checkpoints_are_not_used(faults):
    program, *run = faults
    assert program.damage(*run, 3, random.Random(1))["noticed"] > 0


def test_a_full_disk_gets_one_sentence(faults):
    program, *run = faults
    found = program.fill(*run, [300, 5000])["limits"]
    assert "cannot be written" in found[300]
    assert "checkpoint cannot be written" in found[5000]
