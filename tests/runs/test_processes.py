"""Several processes on one machine do what the devices of one do, and end together."""

import socket
import time

import pytest
from conftest import left

SHARDED = ["--config.optimizer.rows=lazy", "--config.parallel.tables=sharded"]


@pytest.fixture(scope="module")
def small(cli):
    """Flags of a run that is long enough to be killed."""
    longer = {"train.epochs": 10, "early_stopping.patience": 10, "train.validate_every": 2}
    return [*cli.small, *(f"--config.{name}={value}" for name, value in longer.items())]


def start(cli, n, flags, started=None, to_be_killed=False):
    """The n processes of a run, or those of them that are to be started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    joined = [*flags, coordinator, f"--num_processes={n}"]
    return [
        cli.start(*joined, f"--process_id={i}", to_be_killed=to_be_killed)
        for i in range(n if started is None else started)
    ]


def finish(processes):
    """(exit status, stderr) of each."""
    said = [process.communicate()[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]


@pytest.mark.parametrize(("tables", "kill"), [("replicated", False), ("sharded", True)])
def test_two_processes_are_two_devices_also_after_one_was_killed(
    cli, small, tables, kill, tmp_path
):
    flags = [*small, *(SHARDED if tables == "sharded" else [])]
    status, _, err = cli.run(*flags, f"--workdir={tmp_path / 'one'}", devices=2)
    assert status == 0, err
    workdir = tmp_path / "two [1]"
    flags = [*flags, f"--workdir={workdir}"]
    if kill:
        first, second = start(cli, 2, flags, to_be_killed=True)
        while not (workdir / "checkpoints" / "2").exists():
            assert first.poll() is second.poll() is None, finish([first, second])
            time.sleep(0.01)
        second.kill()
        (status, err), _ = finish([first, second])
        assert status != 0
        assert not (workdir / "test_metrics.json").exists()
    for status, err in finish(start(cli, 2, flags)):
        assert status == 0, err
    assert left(workdir) == left(tmp_path / "one")


def test_a_process_that_never_comes(cli, small, tmp_path):
    flags = [*small, f"--workdir={tmp_path / 'run'}", "--join_timeout=3"]
    ((status, err),) = finish(start(cli, 2, flags, started=1))
    assert status == 2
    assert "not all processes came to localhost" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_of_all(cli, small, tmp_path):
    """Also where only the first process finds it."""
    (tmp_path / "file").write_text("")
    flags = [*small, f"--workdir={tmp_path / 'file' / 'run'}"]
    for status, err in finish(start(cli, 2, flags)):
        assert status == 2, err
        assert "cannot be written" in err
