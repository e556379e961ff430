"""Several processes, on one host or many: joining, running in the first only, failing."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hlrcml_jax.errors import UserError, shortened, warn

LOST = "Gloo|UNAVAILABLE|DEADLINE_EXCEEDED"
SENTENCE = 2000  # bytes of an error sentence that is broadcast
HEARTBEAT = 30  # seconds without a sign of life until a process is lost
SHUTDOWN = 20  # seconds that an exiting process waits for the others

Tree = Any


def join(coordinator: str, n_processes: int, process: int, timeout: int) -> None:
    """Joins `jax.distributed`; call it before any other use of jax.

    Without a coordinator, only in clusters that jax detects: TPU pods, Slurm and Open MPI.

    Args:
      coordinator: host:port where the first process listens.
      n_processes: over all hosts.
      process: index of this process.
      timeout: seconds until the program exits, with a sentence, if processes are missing.
    """
    options: dict[str, Any] = {}
    if coordinator:
        ids = {"num_processes": n_processes, "process_id": process}
        options = {"coordinator_address": coordinator} | ids
    elif not _in_cluster():
        return

    def give_up():
        # jax would abort the process with a stack trace, which cannot be caught.
        print(
            f"hlrcml_jax: not all processes came to {coordinator or 'the coordinator'} within "
            f"{timeout} s; start all of them, each with its own --process_id and one --coordinator "
            "that all hosts can reach.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    # On CPUs, collectives of two concurrent programs would be mixed up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        **options,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=SHUTDOWN,
    )
    timer.cancel()


def check_devices() -> None:
    """Raises `UserError` when jax finds no device, as for an unknown `JAX_PLATFORMS`."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for platforms without a device
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({shortened(str(error), 120)})" if str(error) else ""
        raise UserError(
            f"jax finds no device with JAX_PLATFORMS={platforms!r}{reason}; unset it, or install "
            "what it needs."
        ) from None


def _in_cluster() -> bool:
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several = any(int(os.environ.get(name, 1)) > 1 for name in tasks)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Exits with a sentence when another process has been lost."""
    try:
        yield
    except Exception as error:
        if not lost_another(error):
            raise
        warn(
            f"another process was lost ({' '.join(str(error).split())[:200]}); run the "
            "same commands again: saved work is kept."
        )
        os._exit(1)  # jax would wait for it first


def lost_another(error: Exception) -> bool:
    """Whether an error means that another process was lost; jax raises many kinds."""
    return jax.process_count() > 1 and re.search(LOST, str(error)) is not None


def is_first_process() -> bool:
    """Whether this is the process that writes files for all."""
    return jax.process_index() == 0


def in_first_process(function: Callable[[], Tree]) -> Tree | None:
    """Runs a function in the first process, while the others wait; they get None.

    Raises:
      UserError: in all processes, when the function raised it.
    """
    result, sentence = None, b""
    if is_first_process():
        try:
            result = function()
        except UserError as error:
            sentence = str(error).encode()
    if jax.process_count() > 1:
        text_N = np.frombuffer(sentence.ljust(SENTENCE)[:SENTENCE], np.uint8)
        sentence = multihost_utils.broadcast_one_to_all(text_N).tobytes().rstrip()
    if sentence:
        raise UserError(sentence.decode(errors="replace"))
    return result


def any_process(condition: bool) -> bool:
    """Whether a condition holds in any process; all processes must call this."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())
