"""The log of a run, epoch by epoch: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

from hlrcml_jax import processes, storage
from hlrcml_jax.errors import UserError, warn


class MetricsLog:
    """`metrics.jsonl`, one JSON object per epoch, and the same as TensorBoard events.

    Args:
      path: of the file; events are written beside it.
      epoch: the epoch to resume after; later records, left by a killed run, are dropped, and so
        are damaged lines, with a warning.
    """

    def __init__(self, path: pathlib.Path, epoch: int):
        self._path = path
        records = processes.in_first_process(lambda: read_log(path, warns=True)) or []
        kept = [record for record in records if record["epoch"] <= epoch]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        processes.in_first_process(lambda: storage.write_text(path, text))
        self._events = None
        if processes.is_first_process():
            with _without_torch():
                from tensorboardX import SummaryWriter
            with storage.writing(path.parent):
                self._events = SummaryWriter(str(path.parent), purge_step=epoch + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, record: Mapping[str, float]) -> None:
        """Appends a record, in the first process."""
        processes.in_first_process(lambda: self._append(record))

    def _append(self, record: Mapping[str, float]) -> None:
        assert self._events is not None  # this is the first process
        storage.append_text(self._path, json.dumps(record) + "\n")
        with storage.writing(self._path):
            for name, value in record.items():
                self._events.add_scalar(name, value, int(record["epoch"]))
            self._events.flush()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch from tensorboardX, which imports it (1.6 s) although scalars do not need it.

    Earlier and later imports of torch are not affected.
    """
    if "torch" in sys.modules:
        yield
        return
    modules = cast(dict[str, Any], sys.modules)
    modules["torch"] = None  # makes `import torch` an ImportError
    try:
        yield
    finally:
        del modules["torch"]


def read_log(path: pathlib.Path, warns: bool = False) -> list[dict[str, float]]:
    """The records of a `metrics.jsonl`, without damaged lines and a truncated last line.

    Epochs ascend: a line that repeats an earlier epoch is damaged, too.

    Args:
      path: of the file.
      warns: whether to warn of damaged lines.

    Raises:
      UserError: when the file may not be read.
    """
    if not path.is_file():
        return []
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from None
    records = list(map(_record, lines))
    kept: list[dict[str, float]] = []
    damaged = []
    for number, record in enumerate(records, 1):
        if record is None or (kept and record["epoch"] <= kept[-1]["epoch"]):
            damaged.append(number)
        else:
            kept.append(record)
    if damaged and warns:
        warn(f"{path}, line {damaged[0]}: {len(damaged)} damaged line(s) are dropped.")
    return kept


def _record(line: bytes) -> dict[str, float] | None:
    """The record of a line, or None if it is damaged: an epoch and other numbers."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("epoch")) is not int:
        return None
    return record if all(type(value) in (int, float) for value in record.values()) else None
