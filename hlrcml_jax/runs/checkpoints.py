"""Checkpoints of a workdir by orbax: the best and the latest two are kept."""

import functools
import json
import math
import os
import pathlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from hlrcml_jax import processes, storage
from hlrcml_jax.errors import UserError, warn

Tree = Any


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`, one per validated epoch.

    Each has a digest of its arrays; a damaged one is skipped for the one before it.

    Args:
      workdir: of the run.
      writes: whether to save checkpoints; else read only, safe beside a running program.
      made_by: `Run.identity` of the run, saved with each checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, writes: bool = False, made_by: int = 0):
        self.folder = storage.absolute(workdir) / "checkpoints"
        self._writes, self._made_by = writes, made_by
        rank = cast(Callable[[Tree], float], _rank)  # orbax only compares them
        options = ocp.CheckpointManagerOptions(
            best_fn=rank,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    checkpoint_managers.BestN(get_metric_fn=rank, n=1),
                ]
            ),
            cleanup_tmp_directories=writes,
            create=writes,
        )
        try:
            processes.in_first_process(self._check_metrics)
            # Without a handler, orbax infers the format of all checkpoints from the first that it
            # reads, which may be half deleted by a kill.
            handler = ocp.StandardCheckpointHandler()
            self._link = _Link(self.folder.parent)
            self._manager = ocp.CheckpointManager(
                self._link.path / "checkpoints", options=options, item_handlers=handler
            )
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be used ({error}); choose another --workdir."
            ) from None

    def _check_metrics(self) -> None:
        """Moves checkpoints with unreadable metrics away: orbax reads all, and fails on any."""
        for path in _metrics_files(self.folder):
            try:
                _rank(json.loads(path.read_bytes()))
            except (ValueError, TypeError, KeyError):
                sentence = f"{path.parents[1]}: the metrics of this checkpoint are unreadable"
                if not self._writes:
                    raise UserError(f"{sentence}; --mode=train moves it to damaged/.") from None
                warn(f"{sentence}; moved to damaged/.")
                self._move_to_damaged(int(path.parents[1].name))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._not_written(error) from None
        finally:
            self._link.remove()

    def save(self, epoch: int, state: Tree, value: float) -> None:
        """Saves a state in the background, with its validation value (higher is better).

        The first process saves host arrays; each process saves its shards of sharded ones. The
        arrays must not change afterwards.

        Raises:
          UserError: when this checkpoint, or the one before, cannot be written.
        """
        metrics = {"value": value, "epoch": epoch, "made_by": self._made_by}
        metrics["hash"] = digest(state, metrics)
        try:
            self._manager.wait_until_finished()
            self._manager.save(epoch, args=ocp.args.StandardSave(state), metrics=metrics)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._not_written(error) from None

    def _not_written(self, error: Exception) -> UserError:
        if processes.lost_another(error):
            raise error
        kept = [step for step in self._manager.all_steps() if (self.folder / str(step)).is_dir()]
        last = f"epoch {max(kept)} is saved" if kept else "there is none before it"
        return UserError(
            f"{self.folder}: a checkpoint cannot be written ({_short(error)}), and {last}; free "
            "space and run the same command again."
        )

    def latest(self, target: Tree) -> tuple[int, Tree] | None:
        """(epoch, state) of the latest intact checkpoint, or None if there is none at all.

        Damaged ones after it are moved to `workdir/damaged`, with a warning.

        Args:
          target: as in `restore`.

        Raises:
          UserError: when all checkpoints are damaged.
        """
        return self._first_intact(sorted(self._manager.all_steps(), reverse=True), target)

    def best(self, target: Tree) -> tuple[int, Tree] | None:
        """As `latest`, for the checkpoint with the best value, the earliest of equals."""
        self._manager.wait_until_finished()
        steps = self._manager.all_steps()
        return self._first_intact(sorted(steps, key=self._value, reverse=True), target)

    def _first_intact(self, epochs: Iterable[int], target: Tree) -> tuple[int, Tree] | None:
        damaged = {}
        for epoch in epochs:
            try:
                state = self.restore(epoch, target)
            except UserError as error:
                damaged[epoch] = error
                continue
            for other, error in damaged.items():
                warn(f"{error} Using that of epoch {epoch} instead.")
                if self._writes:
                    processes.in_first_process(functools.partial(self._move_to_damaged, other))
                    self._manager.reload()
            return epoch, state
        if damaged:
            raise UserError(
                f"{next(iter(damaged.values()))} No other one is intact; start again in another "
                "--workdir."
            )
        return None

    def _move_to_damaged(self, epoch: int) -> None:
        damaged = self.folder.with_name("damaged")
        n = len(list(damaged.iterdir())) if damaged.exists() else 0
        storage.move_folder(self.folder / str(epoch), damaged / f"{epoch}-{n}")

    def restore(self, epoch: int, target: Tree) -> Tree:
        """Restores a checkpoint into the structure, shapes and dtypes of a target.

        Sharded tables may have been saved on another number of devices, with other padding.

        Args:
          epoch: of the checkpoint.
          target: host arrays, and shapes with shardings for sharded tables.

        Raises:
          UserError: when it is damaged, or of another model.
        """
        state = None
        try:
            restore = ocp.args.StandardRestore(target, strict=False)
            state = self._manager.restore(epoch, args=restore)
            metrics = self._metrics(epoch)
            same = digest(state, metrics) == metrics.get("hash") and metrics["epoch"] == epoch
            reason = "" if same else "its digest does not match its arrays"
            if "digest" in metrics:
                reason = "an older version of the program wrote it"
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = _short(error)
        if reason:
            raise UserError(
                f"{self.folder / str(epoch)}: this checkpoint cannot be read ({reason})."
            )
        # Host arrays in the target are host arrays in the result.
        return jax.tree.map(
            lambda wanted, x: np.asarray(x) if isinstance(wanted, np.ndarray) else x, target, state
        )

    def _metrics(self, epoch: int) -> dict[str, float]:
        return self._manager.metrics(epoch) or {}

    def _value(self, epoch: int) -> tuple[float, float]:
        try:
            return _rank(self._metrics(epoch))
        except Exception:  # damaged; `restore` raises
            return math.inf, -epoch


def check_made_by(workdir: pathlib.Path, identity: int) -> None:
    """Refuses checkpoints of a run with another config or other data.

    Unreadable metrics, and those of older versions without an identity, are left to `Checkpoints`.

    Args:
      workdir: of the run.
      identity: `Run.identity` of the run.

    Raises:
      UserError: when there is such a checkpoint.
    """
    try:
        paths = _metrics_files(workdir / "checkpoints")
    except OSError:  # a bucket that is not there
        return
    for path in paths:
        try:
            made_by = json.loads(path.read_bytes()).get("made_by", identity)
        except (ValueError, AttributeError, OSError):
            continue
        if made_by != identity:
            raise UserError(
                f"{path.parents[1]}: a run with another config or other data saved this "
                "checkpoint; choose another --workdir, or restore config.json."
            )


def _metrics_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = folder.glob("[0-9]*/metrics/metrics")
    return [path for path in found if path.parents[1].name.isdigit()]


class _Link:
    """A path of a workdir for orbax, which takes `[`, `*`, `?` and `\\` for patterns.

    Where the workdir's own path has one of these, it is a symbolic link to the workdir.
    """

    def __init__(self, folder: pathlib.Path):
        self._temporary, self.path = None, folder
        if not storage.is_remote(folder) and re.search(r"[\[\]*?\\]", str(folder)):
            self._temporary = tempfile.TemporaryDirectory()
            self.path = pathlib.Path(self._temporary.name, "run")
            self.path.symlink_to(folder, target_is_directory=True)

    def remove(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["value"], -metrics["epoch"]


def _short(error: Exception) -> str:
    """An error as one short phrase."""
    if refused := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(refused[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def digest(tree: Tree, metrics: dict[str, float]) -> int:
    """A 32-bit digest of the arrays and the metrics.

    It does not depend on the sharding of the arrays, nor on zero rows at their end.
    """
    text = f"{metrics['value']!r} {metrics['epoch']}\n"
    for path, leaf in jax.tree.leaves_with_path(tree):
        text += f"{jax.tree_util.keystr(path)} {int(_digest(leaf)):x}\n"
    return zlib.crc32(text.encode())


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of a hash of each word that is not zero and its position."""
    word_N = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
    hash_N = word_N ^ (jax.lax.iota(jnp.uint32, len(word_N)) * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finaliser of MurmurHash3
        hash_N = (hash_N ^ (hash_N >> shift)) * np.uint32(factor)
    hash_N ^= hash_N >> 16
    return jnp.sum(jnp.where(word_N == 0, 0, hash_N), dtype=jnp.uint32)
