import atexit
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compilation, and most of the programs are small.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others may not know these flags
    _FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if _FLAGS not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test compiles, none compiles again: in no worker, and in no program that is run.
    # Without a lock, which costs more than it saves: who reads half an entry is warned, see
    # setup.cfg, and compiles.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # an oracle's few lists

import forked
import jax
import pytest
from absl import flags

from hlrcml_jax import config_files
from hlrcml_jax.data import synthetic

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")  # as in mapped functions, on a GPU too

ROOT = pathlib.Path(__file__).parents[1]


def with_devices(n: int) -> dict[str, str]:
    """The environment that simulates n devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"
    return {"XLA_FLAGS": flags}


def left(workdir: pathlib.Path) -> tuple[list[dict], dict]:
    """(log, test metrics) of a run, but for the time that it took."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    timed = ("examples_per_s", "train_s", "validation_s")
    log = [{name: line[name] for name in line if name not in timed} for line in lines]
    return log, json.loads((workdir / "test_metrics.json").read_text())


class CommandLine:
    """Runs the program as a user does, on a small file of interactions.

    Attributes:
      small: flags of a run that takes seconds.
    """

    def __init__(self, folder: pathlib.Path):
        self.data = folder / "own.csv"
        table = synthetic.generate(60, 40, 2400, seed=1)
        table.write_csv(self.data)
        titles = "".join(f"{item},Title {item}\n" for item in range(40))
        (folder / "titles.csv").write_text(f"item,title\n{titles}")
        small = {
            "data.path": self.data,
            "data.titles.path": folder / "titles.csv",
            "data.cache_dir": folder / "cache",
            "model.dim": 8,
            "model.memory_slots": 4,
            "model.max_prefs": 5,
            "optimizer.learning_rate": 0.01,
            "train.batch_size": 100,
            "train.epochs": 3,
        }
        flags = [f"--config.{name}={value}" for name, value in small.items()]
        self.small = [f"--config={ROOT / 'configs' / 'default.py'}", *flags]

    def start(self, *flags: str, to_be_killed: bool = False) -> forked.Program:
        """Starts the program on one device."""
        first = (forked.only_read_programs,) if to_be_killed else ()
        return forked.Program(flags, with_devices(1), first=first)

    def run(self, *flags: str, devices: int = 1, **environment: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)."""
        return forked.run(flags, with_devices(devices) | environment)


@pytest.fixture(scope="session")
def cli(tmp_path_factory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="session")
def trained(cli, tmp_path_factory):
    """(workdir of a finished run, what it printed)."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    status, out, err = cli.run(*cli.small, f"--workdir={workdir}")
    assert status == 0, err
    return workdir, out


@pytest.fixture(scope="session")
def load_program():
    """Imports a program of `experiments/`, whose flags other programs may have too."""

    def load_program(path):
        before = set(flags.FLAGS)
        module = config_files.load(path)
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        return module

    return load_program


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The default cache, which a workdir that is loaded uses; fonts keep theirs."""
    os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Each compiled program holds memory maps, and the system allows a process so many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Options of a run that takes a second or two."""
    folder = tmp_path_factory.mktemp("small")
    synthetic.generate(60, 40, 2400, seed=1).write_csv(folder / "own.csv")
    return {
        "data.path": str(folder / "own.csv"),
        "data.cache_dir": str(folder / "cache"),
        "model.dim": 8,
        "model.memory_slots": 4,
        "model.max_prefs": 5,
        "model.als.regularization": 0.1,
        "model.ease.l2": 10.0,
        "optimizer.learning_rate": 0.01,
        "train.batch_size": 100,
        "train.epochs": 3,
    }
