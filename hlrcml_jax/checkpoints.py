"""Checkpoints of a workdir, kept by orbax: the best, and the latest two."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from hlrcml_jax.errors import UserError

Tree = Any


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`, one a validated epoch."""

    def __init__(self, workdir: pathlib.Path):
        self.folder = workdir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_rank,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(2),
                        checkpoint_managers.BestN(get_metric_fn=_rank, n=1),
                    ]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def save(self, epoch: int, state: Tree, value: float) -> None:
        """Saves arrays in the background, with the value that ranks them (higher is better).

        Host arrays are the first process's; of divided ones each process saves its part.

        The arrays must not change afterwards.
        """
        self._manager.save(
            epoch,
            args=ocp.args.StandardSave(state),
            metrics={"value": value, "epoch": epoch},
        )

    def latest(self) -> int | None:
        """The newest epoch that has a checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The epoch with the best value; the earliest of equals."""
        return self._manager.best_step()

    def restore(self, epoch: int, target: Tree) -> Tree:
        """Reads a checkpoint into the structure, shapes and types of a target.

        Divided tables may have been filled up to other sizes, on other devices.

        Args:
          epoch: of the checkpoint.
          target: host arrays, and shapes of divided tables with their sharding.

        Raises:
          UserError: when it cannot be read, or is of another model.
        """
        try:
            restore = ocp.args.StandardRestore(target, strict=False)
            state = self._manager.restore(epoch, args=restore)
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.folder / str(epoch)}: this checkpoint cannot be read ({reason}); delete "
                "that folder to go on from the one before, or start again in another --workdir."
            ) from None
        # What was wanted on the host is there.
        return jax.tree.map(
            lambda wanted, x: np.asarray(x) if isinstance(wanted, np.ndarray) else x, target, state
        )


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["value"], -metrics["epoch"]
