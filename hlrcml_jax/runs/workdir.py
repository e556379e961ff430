"""The folder of a run: begun, resumed, or read."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import filelock
import ml_collections

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices, models, processes, storage
from hlrcml_jax.data.prepare import cache_folder, prepare
from hlrcml_jax.errors import UserError
from hlrcml_jax.keys import flatten
from hlrcml_jax.runs.checkpoints import Checkpoints
from hlrcml_jax.runs.run import Run


def open_run(
    config: ml_collections.ConfigDict | config_lib.Config, workdir: str | pathlib.Path
) -> Run:
    """A run that exists, to be read: checks the config and the workdir, prepares the data.

    Args:
      config: of the run; it is validated first.
      workdir: of the run.

    Raises:
      UserError: also when the workdir belongs to another config or to other data.
    """
    run, before = _prepare(config, workdir)
    if before is None:
        raise UserError(f"{run.workdir}: there is no run here yet; train first (--mode=train).")
    return run


@contextlib.contextmanager
def begin_run(
    config: ml_collections.ConfigDict | config_lib.Config, workdir: str | pathlib.Path
) -> Iterator[tuple[Run, Checkpoints]]:
    """A run that begins or goes on, and its checkpoints; no other program writes to it meanwhile.

    Nothing is written before the config is valid and the data is read.

    Args:
      config: of the run.
      workdir: of the run, which may be new.

    Raises:
      UserError: as `open_run`, and when another program works on the same workdir.
    """
    run, before = _prepare(config, workdir)
    lock = filelock.FileLock(_lock_of(run), blocking=False)

    def begin():
        with storage.writing(run.workdir):
            run.workdir.mkdir(parents=True, exist_ok=True)
            pathlib.Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{run.workdir}: another program works on this run; wait for it, or choose another."
            ) from None
        if before is None:
            if config_files.read_workdir(run.workdir) is not None:
                raise UserError(f"{run.workdir}: another run has begun here; choose another.")
            run.write_config()

    try:
        processes.in_first_process(begin)
        # Without another process, checkpoints would wait to be closed.
        with Checkpoints(run.workdir, writes=True) as checkpoints, processes.together():
            yield run, checkpoints
    finally:
        lock.release()


def _lock_of(run: Run) -> pathlib.Path:
    """The file that keeps other programs out; for a bucket those of this machine alone."""
    if not storage.is_remote(run.workdir):
        return run.workdir / ".lock"
    name = hashlib.sha256(str(run.workdir).encode()).hexdigest()[:16]
    return cache_folder(run.config.data.cache_dir) / "locks" / name


def _prepare(
    given: ml_collections.ConfigDict | config_lib.Config, workdir: str | pathlib.Path
) -> tuple[Run, dict[str, Any] | None]:
    """(run, what its workdir says of an earlier start)."""
    config = config_lib.validate(given)
    models.check(config)
    devices.keep_compiled(cache_folder(config.data.cache_dir) / "compiled")
    workdir = storage.place(workdir)
    before = config_files.read_workdir(workdir)
    if before is not None:
        _check_same(workdir, before["config"], config)
    dataset = processes.in_first_process(lambda: prepare(config.data)) or prepare(config.data)

    def check():
        if before is not None and before["data"] != dataset.fingerprint():
            raise UserError(
                f"{workdir}: this workdir was made with other data than what the config gives now; "
                "choose another --workdir, or restore the data."
            )

    processes.in_first_process(check)  # others need not read all of it
    return Run(config, dataset, workdir), before


def _check_same(workdir: pathlib.Path, before: dict[str, Any], config: config_lib.Config) -> None:
    values = flatten(config)
    keys, now = config_lib.all_keys(values), json.loads(json.dumps(values))
    for name, key in keys.items():
        was = before.get(name, key.default)
        if not key.may_change and was != now[name]:
            raise UserError(
                f"{workdir}: this workdir was made with {name}={was!r}, and the config now has "
                f"{now[name]!r}; choose another --workdir, or set it back."
            )
