"""Checkpoints of a workdir, kept by orbax: the best, and the latest two."""

import functools
import json
import math
import os
import pathlib
import re
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
    """The checkpoints under `workdir/checkpoints`, one a validated epoch.

    Each has a digest of its arrays, so that what has been damaged since is not used: the one before
    it takes its place.

    Args:
      workdir: of the run.
      writes: whether there will be more; else nothing is changed, and a run may go on beside.
    """

    def __init__(self, workdir: pathlib.Path, writes: bool = False):
        self.folder = storage.place(workdir) / "checkpoints"
        self._writes = writes
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
            processes.in_first_process(self._check_ranks)
            # Without the handler, orbax judges by the first checkpoint that it reads how all were
            # made; it may be one that a kill left half removed.
            handler = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handler
            )
        except OSError as error:
            raise UserError(f"{self.folder} cannot be used ({error}).") from None

    def _check_ranks(self) -> None:
        """Orbax reads what ranks them at once, and fails on any that it cannot read."""
        for path in self.folder.glob("[0-9]*/metrics/metrics"):
            if not path.parents[1].name.isdigit():
                continue
            try:
                _rank(json.loads(path.read_bytes()))
            except (ValueError, TypeError, KeyError):
                said = f"{path.parents[1]}: what ranks this checkpoint cannot be read"
                if not self._writes:
                    raise UserError(f"{said}; --mode=train sets it aside.") from None
                warn(f"{said}; it is set aside.")
                self._set_aside(int(path.parents[1].name))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._not_written(error) from None

    def save(self, epoch: int, state: Tree, value: float) -> None:
        """Saves arrays in the background, with the value that ranks them (higher is better).

        Host arrays are the first process's; of divided ones each process saves its part. The arrays
        must not change afterwards.

        Raises:
          UserError: when this one, or the one before, cannot be written.
        """
        metrics = {"value": value, "epoch": epoch}
        metrics["digest"] = digest(state, metrics)
        try:
            self._manager.wait_until_finished()
            self._manager.save(epoch, args=ocp.args.StandardSave(state), metrics=metrics)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._not_written(error) from None

    def _not_written(self, error: Exception) -> UserError:
        if processes.lost_another(error):
            raise error
        kept = [step for step in self._manager.all_steps() if (self.folder / str(step)).is_dir()]
        last = f"that of epoch {max(kept)} is whole" if kept else "there is none before it"
        return UserError(
            f"{self.folder}: a checkpoint cannot be written ({_short(error)}), and {last}; make "
            "room, and give the same command again."
        )

    def latest(self, target: Tree) -> tuple[int, Tree] | None:
        """(epoch, state) of the newest checkpoint that is whole, or None before the first.

        Those after it, if any, are moved to `workdir/damaged`, and a warning says so.

        Args:
          target: as `restore` takes it.

        Raises:
          UserError: when there are some, and none is whole.
        """
        return self._first_whole(sorted(self._manager.all_steps(), reverse=True), target)

    def best(self, target: Tree) -> tuple[int, Tree] | None:
        """Likewise of the checkpoint with the best value, the earliest of equals."""
        steps = self._manager.all_steps()
        return self._first_whole(sorted(steps, key=self._value, reverse=True), target)

    def _first_whole(self, epochs: Iterable[int], target: Tree) -> tuple[int, Tree] | None:
        damaged = {}
        for epoch in epochs:
            try:
                state = self.restore(epoch, target)
            except UserError as error:
                damaged[epoch] = error
                continue
            for other, error in damaged.items():
                warn(f"{error} That of epoch {epoch} is used in its place.")
                if self._writes:
                    processes.in_first_process(functools.partial(self._set_aside, other))
                    self._manager.reload()
            return epoch, state
        if damaged:
            raise UserError(
                f"{next(iter(damaged.values()))} No other one is whole; start again in another "
                "--workdir."
            )
        return None

    def _set_aside(self, epoch: int) -> None:
        aside = self.folder.with_name("damaged")
        n = len(list(aside.iterdir())) if aside.exists() else 0
        storage.move_folder(self.folder / str(epoch), aside / f"{epoch}-{n}")

    def restore(self, epoch: int, target: Tree) -> Tree:
        """Reads a checkpoint into the structure, shapes and types of a target.

        Divided tables may have been filled up to other sizes, on other devices.

        Args:
          epoch: of the checkpoint.
          target: host arrays, and shapes of divided tables with their sharding.

        Raises:
          UserError: when it is damaged, or of another model.
        """
        state = None
        try:
            restore = ocp.args.StandardRestore(target, strict=False)
            state = self._manager.restore(epoch, args=restore)
            metrics = self._metrics(epoch)
            same = digest(state, metrics) == metrics["digest"] and metrics["epoch"] == epoch
            reason = "" if same else "its numbers are not those saved"
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = _short(error)
        if reason:
            raise UserError(
                f"{self.folder / str(epoch)}: this checkpoint cannot be read ({reason})."
            )
        # What was wanted on the host is there.
        return jax.tree.map(
            lambda wanted, x: np.asarray(x) if isinstance(wanted, np.ndarray) else x, target, state
        )

    def _metrics(self, epoch: int) -> dict[str, float]:
        return self._manager.metrics(epoch) or {}

    def _value(self, epoch: int) -> tuple[float, float]:
        try:
            return _rank(self._metrics(epoch))
        except Exception:  # damaged; `restore` will say so
            return math.inf, -epoch


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["value"], -metrics["epoch"]


def _short(error: Exception) -> str:
    """What went wrong, in a few words."""
    if refused := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(refused[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def digest(tree: Tree, metrics: dict[str, float]) -> int:
    """32 bits that change with any bit of the arrays, and with what ranks them.

    Wherever the arrays are, and also when they are filled up with zeros at the end, it is the same.
    """
    text = f"{metrics['value']!r} {metrics['epoch']}\n"
    for path, leaf in jax.tree.leaves_with_path(tree):
        text += f"{jax.tree_util.keystr(path)} {int(_digest(leaf)):x}\n"
    return zlib.crc32(text.encode())


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """The sum of an array's words, each times an odd number of its own, modulo 2^32."""
    word_N = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
    number_N = jax.lax.iota(jnp.uint32, len(word_N))
    return jnp.sum(word_N * ((number_N * np.uint32(2654435761)) | 1), dtype=jnp.uint32)
