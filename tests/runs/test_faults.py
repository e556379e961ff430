"""Kills, damage and full disks, at chosen moments; `experiments/faults.py` makes many at random."""

import random
import signal
import time

import forked
import pytest
from conftest import ROOT, with_devices


def test_a_workdir_has_one_program_at_a_time(cli, tmp_path):
    flags = [*cli.small, "--config.train.epochs=400", "--config.early_stopping.patience=400"]
    process = cli.start(*flags, f"--workdir={tmp_path}", to_be_killed=True)
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    status, _, err = cli.run(*flags, f"--workdir={tmp_path}")
    process.kill()
    process.communicate()
    assert status == 2
    assert "another program works on this run" in err


@pytest.fixture(scope="module")
def faults(load_program, tmp_path_factory):
    """(the program, its command, its folder, the run without faults); it forks what it starts."""
    program = load_program(ROOT / "experiments" / "faults.py")

    def start(command, workdir, limit=None, first=()):
        first = (forked.limit_files, limit) if limit is not None else first
        flags = [*command[3:], f"--workdir={workdir}"]  # behind python -m hlrcml_jax.main
        return forked.Program(flags, with_devices(1), first=first)

    program.start = start
    folder = tmp_path_factory.mktemp("faults")
    command, whole = program.make_command(folder), folder / "whole"
    program.finish(command, whole)
    return program, command, folder, whole


# One after the other in the life of a run: (signal, before which change of a file, the how manieth,
# seconds for other threads, what is said, the newest epoch that is saved). Every second epoch has
# a checkpoint, which gets its name when it is whole.
MOMENTS = [
    (signal.SIGKILL, r"os.rename \S+ \S+/config.json", 1, 0, "", 0),
    (signal.SIGTERM, r"os.mkdir \S+/checkpoints \d+", 1, 0, "finished work is kept", 0),
    # No epoch has a checkpoint before it has its line.
    (signal.SIGKILL, r"open \S+/metrics.jsonl a", 2, 2, "", 0),
    (signal.SIGKILL, r"open \S+/2\.\S+/metrics w", 1, 0, "", 0),
    (signal.SIGTERM, r"open \S+/metrics.jsonl a", 4, 0, "epoch 5 is saved", 5),
    (signal.SIGKILL, r"os.rename \S+ \S+/checkpoints/6", 1, 0, "", 5),
    # All files of an old checkpoint are gone, its folder is not.
    (signal.SIGKILL, r"os.rmdir \S+/checkpoints/\d+ .*", 1, 0, "", 6),
    (signal.SIGINT, r"open \S+/metrics.jsonl a", 1, 0, "by Ctrl-C; epoch 8 is saved", 8),
    (signal.SIGINT, r"os.rename \S+ \S+/test_users.parquet", 1, 0, "stopped by Ctrl-C;", 20),
    (signal.SIGKILL, r"os.rename \S+ \S+/test_metrics.json", 1, 0, "", 20),
]


STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0, signal.SIGINT: 130}


def test_a_killed_run_resumes(faults):
    program, command, folder, whole = faults
    workdir = folder / "killed"
    for number, moment, n, pause, says, newest in MOMENTS:
        first = (forked.signal_at, number, moment, n, pause)
        process = program.start(command, workdir, first=first)
        _, said = process.communicate()
        assert process.returncode == STATUS[number], (moment, said)
        assert says in said, moment
        assert max(program.saved_epochs(workdir), default=0) == newest, moment
    program.finish(command, workdir)
    program.check_same(workdir, whole)


def test_damaged_checkpoints_are_not_used(faults):
    program, *run = faults
    assert program.damage(*run, 3, random.Random(1))["noticed"] > 0


def test_a_full_disk_gets_one_sentence(faults):
    program, *run = faults
    found = program.fill(*run, [300, 5000])["limits"]
    assert "cannot be written" in found[300]
    assert "checkpoint cannot be written" in found[5000]
