"""The log of a run: what a stopped run left, and what is not imported to write it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from hlrcml_jax.reporting.log import MetricsLog, read_log

PROGRAM = """
import pathlib, sys
import hlrcml_jax.main
from hlrcml_jax.reporting.log import MetricsLog, read_log
assert "tensorboardX" not in sys.modules
with MetricsLog(pathlib.Path(sys.argv[1], "metrics.jsonl"), 0) as log:
    log.write({"epoch": 1, "loss": 0.5})
print("logged", flush=True)
import torch
assert torch.nn
"""


def test_torch_is_not_imported_for_a_log_and_can_be_afterwards(tmp_path):
    package = tmp_path / "path" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('torch is imported')\nfrom torch import nn\n")
    (package / "nn.py").touch()
    path = os.pathsep.join([str(package.parent), str(pathlib.Path(__file__).parents[1])])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["logged", "torch is imported"]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


GOOD = [b'{"epoch": 1, "loss": 0.5}', b'{"epoch": 2, "loss": 0.25}']


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0" * 40,
        b'{"epoch": 3, "lo',
        b"\xff\xfe",
        b"null",
        b"[1]",
        b"{}",
        b'{"epoch": "3"}',
        b'{"epoch": 3, "loss": null}',
        b'{"epoch": 3, "loss": "[/b]"}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
@pytest.mark.parametrize("position", range(3))
def test_damaged_lines_are_dropped_with_one_warning(tmp_path, capsys, damaged, position):
    path = tmp_path / "metrics.jsonl"
    lines = [*GOOD[:position], damaged, *GOOD[position:]]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with MetricsLog(path, 2) as log:
        log.write({"epoch": 3, "loss": 0.1})
    assert [record["epoch"] for record in read_log(path)] == [1, 2, 3]
    (said,) = capsys.readouterr().err.splitlines()
    assert f"metrics.jsonl, line {position + 1}: 1 damaged line(s) are dropped" in said


def test_lines_after_the_epoch_that_a_run_resumes_after_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"epoch": epoch, "loss": 1 / epoch} for epoch in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 4, "lo')
    assert read_log(path) == lines  # the last was cut short
    with MetricsLog(path, 2) as log:
        log.write({"epoch": 3, "loss": 0.25})
    assert read_log(path) == [*lines[:2], {"epoch": 3, "loss": 0.25}]


def test_a_line_that_repeats_an_earlier_epoch_is_damaged(tmp_path, capfd):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"epoch": 1, "loss": 2}\n{"epoch": 2, "loss": 1}\n{"epoch": 1}\n{"epoch": 3}\n'
    )
    assert [record["epoch"] for record in read_log(path, warns=True)] == [1, 2, 3]
    assert "metrics.jsonl, line 3: 1 damaged line(s)" in capfd.readouterr().err
