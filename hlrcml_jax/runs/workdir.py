"""The workdir of a run: started, resumed, or read."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import filelock
import ml_collections

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices, models, processes, storage
from hlrcml_jax.data import saved as saved_data
from hlrcml_jax.data.dataset import Dataset
from hlrcml_jax.data.prepare import cache_folder, prepare, prepare_more
from hlrcml_jax.errors import UserError, warn
from hlrcml_jax.keys import flatten
from hlrcml_jax.runs.checkpoints import Checkpoints, check_made_by
from hlrcml_jax.runs.run import Run

# What programs open in place or write into; other files are replaced as a whole.
IN_PLACE = ("metrics.jsonl", ".lock", "checkpoints", "damaged", "data", "export", "plots")
IN_PLACE_PATTERNS = (".parts-*", "events.out.tfevents.*")
SOURCES = r"data\..*path$|train\.continues$"  # keys that name what the data set is made of


def open_run(
    config: ml_collections.ConfigDict | config_lib.Config, workdir: str | pathlib.Path
) -> Run:
    """Opens an existing run for reading: checks config and workdir, loads the data it holds.

    Args:
      config: of the run; it is validated first.
      workdir: of the run.

    Raises:
      UserError: when there is no run, or it has another config or other data.
    """
    run, saved = _prepare(config, workdir, trains=False)
    if saved is None:
        raise UserError(f"{run.workdir}: there is no run here yet; train first (--mode=train).")
    return run


@contextlib.contextmanager
def begin_run(
    config: ml_collections.ConfigDict | config_lib.Config, workdir: str | pathlib.Path
) -> Iterator[tuple[Run, Checkpoints]]:
    """Starts or resumes a run, with its checkpoints, under a lock of the workdir.

    Nothing is written before the config is validated and the data is read.

    Args:
      config: of the run; it is validated first.
      workdir: of the run; created if missing.

    Raises:
      UserError: when another program holds the lock, or the run has another config or data.
    """
    run, saved = _prepare(config, workdir, trains=True)
    lock = filelock.FileLock(_lock_of(run), blocking=False)

    def lock_and_write():
        with storage.writing(run.workdir):
            run.workdir.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise UserError(
                    f"{run.workdir}: another program works on this run; wait for it, or choose "
                    "another --workdir."
                ) from None
            storage.remove_scratch(run.workdir)
        if saved is None:
            if config_files.read_workdir(run.workdir) is not None:
                raise UserError(
                    f"{run.workdir}: another run has started here; choose another --workdir."
                )
            run.write_config()
        _keep(run.dataset, run.workdir)

    try:
        processes.in_first_process(lock_and_write)
        # `together` is inside: after the loss of a process, closing the checkpoints would hang.
        opened = Checkpoints(run.workdir, writes=True, made_by=run.identity())
        with opened as checkpoints, processes.together():
            yield run, checkpoints
    finally:
        lock.release()


def _keep(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Writes the data set into a workdir, if none is there, a damaged one, or other titles.

    Raises:
      UserError: when the ids are not those of the data that is there.
    """
    folder = workdir / "data"
    try:
        kept = saved_data.load(folder) if saved_data.exists(folder) else None
    except UserError as error:
        warn(f"{error} It is written again.")
        kept = None
    if kept is not None and not _equal(kept, dataset, ("user_ids", "item_ids")):
        raise UserError(
            f"{workdir}: this workdir was made with other data than the config names now, of other "
            "ids; choose another --workdir, or restore the data."
        )
    if kept is None or not _equal(kept, dataset, ("titles", "categories")):
        saved_data.save(dataset, folder)


def _equal(a: Dataset, b: Dataset, names: Iterable[str]) -> bool:
    for one, other in ((getattr(a, name), getattr(b, name)) for name in names):
        if one is None or other is None:
            if one is not other:
                return False
        elif not one.equals(other):
            return False
    return True


def _lock_of(run: Run) -> pathlib.Path:
    """The lock file of a run; for a bucket it only excludes programs on this machine."""
    if not storage.is_remote(run.workdir):
        return run.workdir / ".lock"
    name = hashlib.sha256(str(run.workdir).encode()).hexdigest()[:16]
    return cache_folder(run.config.data.cache_dir, "locks") / name


def _prepare(
    given: ml_collections.ConfigDict | config_lib.Config,
    workdir: str | pathlib.Path,
    trains: bool,
) -> tuple[Run, dict[str, Any] | None]:
    """(run, saved `config.json` of the workdir or None)."""
    config = config_lib.validate(given)
    models.check(config)
    devices.keep_compiled(cache_folder(config.data.cache_dir, "compiled"))
    workdir = storage.absolute(workdir)
    saved = config_files.read_workdir(workdir)
    _check_links(workdir)
    if saved is not None:
        _check_same(workdir, saved["config"], config)

    reads = saved is None or _reads_files(workdir, saved["config"], config, trains)
    try:
        # Outside of `read`: it has collectives of its own.
        before = _continued(config, workdir) if reads and config.train.continues else None

        def read() -> Dataset:
            if not reads:
                return saved_data.load(workdir / "data")
            if before is None:
                return prepare(config.data)
            return prepare_more(config.data, before.dataset)

        dataset = processes.in_first_process(read) or read()
    except UserError as error:
        if saved is None or saved_data.exists(workdir / "data"):
            raise
        raise UserError(f"{workdir}: it holds no data of its own, and {error}") from None
    run = Run(config, dataset, workdir)

    def check():
        if saved is not None and saved["data"] != dataset.fingerprint():
            raise UserError(
                f"{workdir}: this workdir was made with other data than the config names now; "
                "choose another --workdir, or restore the data."
            )
        check_made_by(workdir, run.identity())

    processes.in_first_process(check)  # other processes need not read all of the data
    return run, saved


def _reads_files(
    workdir: pathlib.Path, was: dict[str, Any], config: config_lib.Config, trains: bool
) -> bool:
    """Whether a run reads the files that its config names, and not the data that it holds.

    To train, it does if they exist, so that changes of them are noticed; else only if the config
    names others than before, as other titles.
    """
    if not saved_data.exists(workdir / "data"):
        return True
    paths = {name: path for name, path in flatten(config).items() if re.match(SOURCES, name)}
    is_moved = any(path != was.get(name, "") for name, path in paths.items())
    sources = {storage.absolute(os.path.expanduser(path)) for path in paths.values() if path}
    is_there = bool(sources) and all(path.exists() for path in sources)
    return is_moved or (trains and is_there)


def _continued(config: config_lib.Config, workdir: pathlib.Path) -> Run:
    """The run that another one continues, after checking that it can.

    Raises:
      UserError: naming the key that cannot differ.
    """
    path = config.train.continues
    if config.parallel.tables == "sharded":
        raise UserError("config key train.continues needs parallel.tables=replicated.")
    if storage.absolute(os.path.expanduser(path)) == workdir:
        raise UserError(f"config key train.continues={path}: a run cannot continue itself.")
    other = open_other(config, path)
    now, was = flatten(config), flatten(other.config)
    for name in now.keys() | was.keys():
        fixed = name.startswith("model.") or name == "optimizer.rows"
        if fixed and name != "model.gates" and now.get(name) != was.get(name):
            raise UserError(
                f"config key {name} is {was.get(name)!r} in {path}, which is continued."
            )
    return other


def open_other(config: config_lib.Config, workdir: str) -> Run:
    """Opens the run of another workdir that a config names.

    Of custom code in the other config, only what this config names is imported.
    """
    path = storage.absolute(os.path.expanduser(workdir))
    trusted = [path for _, path in config_lib.code_paths(flatten(config))]
    own = {"data.cache_dir": config.data.cache_dir, "parallel.tables": "replicated"}
    return open_run(config_files.from_workdir(path, own, trusted=trusted), path)


def _check_links(workdir: pathlib.Path) -> None:
    """Refuses links and pipes in a workdir, through which other files would be overwritten."""
    if not storage.is_remote(workdir):
        named = (workdir / name for name in IN_PLACE)
        for path in itertools.chain(named, *map(workdir.glob, IN_PLACE_PATTERNS)):
            storage.check_no_links(path)


def _check_same(workdir: pathlib.Path, saved: dict[str, Any], config: config_lib.Config) -> None:
    values = flatten(config)
    keys, now = config_lib.all_keys(values), json.loads(json.dumps(values))
    for name, key in keys.items():
        was = saved.get(name, json.loads(json.dumps(key.default)))
        if not key.may_change and was != now[name]:
            raise UserError(
                f"{workdir}: this workdir was made with {name}={was!r}, and the config now has "
                f"{now[name]!r}; choose another --workdir, or set it back."
            )
