"""Faults on purpose: kills at random moments, damaged checkpoints, full disks.

python experiments/faults.py --folder=runs/faults --kills=100 --damages=20

A small run is made once without any fault. Then the same run is killed (SIGKILL or SIGTERM) and
resumed until it ends, resumed from checkpoints with a damaged file, and started with a limit on
file sizes. Each time the parameters must be those of the run without faults, bit for bit, and no
checkpoint may be lost. Prints a JSON line for each kind, and fails where a promise is broken.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from absl import flags

from hlrcml_jax import config_files
from hlrcml_jax.data import synthetic
from hlrcml_jax.errors import run_program
from hlrcml_jax.runs import build
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.workdir import open_run

_FOLDER = flags.DEFINE_string("folder", None, "Folder for the runs.", required=True)
_KILLS = flags.DEFINE_integer("kills", 100, "Number of kills.")
_DAMAGES = flags.DEFINE_integer("damages", 20, "Number of damaged checkpoints.")
_LIMITS = flags.DEFINE_list(
    "limits", ["10", "300", "1000", "2000", "5000"], "Limits on the size of files, bytes."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments, files and bytes.")

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 20
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("hlrcml_jax.main", run_name="__main__", alter_sys=True)
"""


def make_command(folder: pathlib.Path) -> list[str]:
    """The command of the program on a small file of interactions, without its workdir."""
    data = folder / "interactions.csv"
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        synthetic.generate(60, 40, 2400, seed=1).write_csv(data)
    small = {
        "data.path": data,
        "data.cache_dir": folder / "cache",
        "model.name": "lrml",  # tables and a memory as HLR's, and half of its compilation
        "model.dim": 8,
        "model.memory_slots": 4,
        "model.max_prefs": 5,
        "train.batch_size": 100,
        "train.epochs": EPOCHS,
        "train.validate_every": 2,
        "early_stopping.patience": EPOCHS,
    }
    command = [sys.executable, "-m", "hlrcml_jax.main"]
    command.append(f"--config={ROOT / 'configs' / 'default.py'}")
    return command + [f"--config.{name}={value}" for name, value in small.items()]


def start(command: list[str], workdir: pathlib.Path, limit: int | None = None) -> subprocess.Popen:
    """Starts the program, with a limit on the size of files."""
    command = [*command, f"--workdir={workdir}"]
    if limit is not None:
        command[1:3] = ["-c", LIMITED, str(limit)]  # instead of -m hlrcml_jax.main
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams)


def finish(command: list[str], workdir: pathlib.Path) -> str:
    """Runs the program to its end, and returns its stderr."""
    process = start(command, workdir)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def check_same(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """The newest state, the best one and the log's losses are those of the run without faults."""
    found = []
    for path in (workdir, whole):
        run = open_run(config_files.from_workdir(path), path)
        log = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        with Checkpoints(path) as checkpoints:
            states = [
                take(build.empty_state(run)) for take in (checkpoints.latest, checkpoints.best)
            ]
        found.append(([(line["epoch"], line["loss"]) for line in log], states))
    (log, states), (log_of_whole, states_of_whole) = found
    assert log == log_of_whole, (log, log_of_whole)
    jax.tree.map(np.testing.assert_array_equal, states, states_of_whole)


def saved_epochs(workdir: pathlib.Path) -> list[int]:
    """The epochs that have a checkpoint."""
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def kill(command, folder: pathlib.Path, whole: pathlib.Path, n: int, rng: random.Random) -> dict:
    """Kills runs n times in all; none loses a checkpoint."""
    begun = time.perf_counter()
    finish(command, folder / "timed")
    seconds = time.perf_counter() - begun
    done, runs, terminated = 0, 0, 0
    while done < n:
        workdir, runs = folder / f"killed-{runs}", runs + 1
        while True:
            before = max(saved_epochs(workdir), default=0)
            process = start(command, workdir)
            try:
                # Most of a run's time goes before its first epoch.
                process.wait(rng.uniform(0.3, 1.1) * seconds)
            except subprocess.TimeoutExpired:
                how = rng.choice([signal.SIGKILL, signal.SIGTERM]) if done < n else None
                if how:
                    process.send_signal(how)
                    done += 1
            _, said = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), said
            assert max(saved_epochs(workdir), default=0) >= before
            if process.returncode == 0:
                if (workdir / "report.html").exists():  # the last that a run writes
                    break
                terminated += 1
        check_same(workdir, whole)
    return {"kills": done, "by SIGTERM": terminated, "runs": runs}


def damage(command, folder: pathlib.Path, whole: pathlib.Path, n: int, rng: random.Random) -> dict:
    """Damages a file of the newest checkpoint, n times; the run resumes from the one before."""
    half = [flag.replace(f"epochs={EPOCHS}", f"epochs={EPOCHS // 2}") for flag in command]
    finish(half, folder / "half")
    noticed = 0
    for number in range(n):
        workdir = folder / f"damaged-{number}"
        shutil.copytree(folder / "half", workdir)
        newest = workdir / "checkpoints" / str(max(saved_epochs(workdir)))
        paths = sorted(path for path in newest.rglob("*") if path.is_file())
        path = rng.choice([path for path in paths if path.stat().st_size])
        content = bytearray(path.read_bytes())
        position = rng.randrange(len(content))
        if rng.random() < 0.5:
            del content[position:]
        else:
            content[position] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        finish(command, workdir)
        noticed += (workdir / "damaged").exists()
        check_same(workdir, whole)
    return {"damaged": n, "noticed": noticed}


def fill(command, folder: pathlib.Path, whole: pathlib.Path, limits: list[int]) -> dict:
    """Limits the size of files; the program says one sentence, and without the limit resumes."""
    sentences = {}
    for limit in limits:
        workdir = folder / f"full-{limit}"
        process = start(command, workdir, limit)
        _, said = process.communicate()
        assert process.returncode == 2, (limit, process.returncode, said)
        # Libraries may print lines of their own at the same time.
        (sentences[limit],) = re.findall("hlrcml_jax: .*", said)
        finish(command, workdir)
        check_same(workdir, whole)
    return {"limits": sentences}


def main(_) -> None:
    folder, rng = pathlib.Path(_FOLDER.value).absolute(), random.Random(_SEED.value)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    command, whole = make_command(folder), folder / "whole"
    finish(command, whole)
    print(json.dumps(kill(command, folder, whole, _KILLS.value, rng)), flush=True)
    print(json.dumps(damage(command, folder, whole, _DAMAGES.value, rng)), flush=True)
    limits = [int(limit) for limit in _LIMITS.value]
    print(json.dumps(fill(command, folder, whole, limits)), flush=True)


if __name__ == "__main__":
    run_program(main)
