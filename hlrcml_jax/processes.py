"""Several processes that work together, on one host or many, and what one of them does alone."""

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

from hlrcml_jax.errors import UserError, warn

LOST = "Gloo|UNAVAILABLE|DEADLINE_EXCEEDED"
SENTENCE = 2000  # bytes of what processes tell each other
SHUTDOWN = 20  # seconds that a process which ends waits for the others

Tree = Any


def join(coordinator: str, n_processes: int, process: int, timeout: int) -> None:
    """Makes this process one of several that work together; before anything else asks of jax.

    Without a coordinator that is done where a cluster says how: on TPUs, with Slurm and Open MPI.

    Args:
      coordinator: host:port where the first process listens.
      n_processes: of all hosts.
      process: number of this one.
      timeout: seconds after which the program ends, with a sentence, when not all have come.
    """
    options: dict[str, Any] = {}
    if coordinator:
        numbers = {"num_processes": n_processes, "process_id": process}
        options = {"coordinator_address": coordinator} | numbers
    elif not _in_cluster():
        return

    def give_up():
        # jax itself ends the process with a stack trace, and cannot be stopped from that.
        print(
            f"hlrcml_jax: not all processes came to {coordinator or 'the coordinator'} within "
            f"{timeout} s; start all of them, each with its own --process_id and one --coordinator "
            "that all hosts can reach.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    # On CPUs, what two programs say to other processes at one time would be mixed up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        **options, initialization_timeout=timeout + 60, shutdown_timeout_seconds=SHUTDOWN
    )
    timer.cancel()


def _in_cluster() -> bool:
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several = any(int(os.environ.get(name, 1)) > 1 for name in tasks)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process, with a sentence, when another one has been lost."""
    try:
        yield
    except Exception as error:
        if not lost_another(error):
            raise
        warn(
            f"another process was lost ({' '.join(str(error).split())[:200]}); give the same "
            "commands again: what was saved is kept."
        )
        os._exit(1)  # jax would wait for it first


def lost_another(error: Exception) -> bool:
    """Whether an error means that another process was lost, which jax says in many ways."""
    return jax.process_count() > 1 and re.search(LOST, str(error)) is not None


def is_first_process() -> bool:
    """Whether this process writes what one must write for all."""
    return jax.process_index() == 0


def in_first_process(function: Callable[[], Tree]) -> Tree | None:
    """What a function gives in the first process, for which the others wait; None in those.

    Raises:
      UserError: in all processes, when the function did in the first.
    """
    found, sentence = None, b""
    if is_first_process():
        try:
            found = function()
        except UserError as error:
            sentence = str(error).encode()
    if jax.process_count() > 1:
        text_N = np.frombuffer(sentence.ljust(SENTENCE)[:SENTENCE], np.uint8)
        sentence = multihost_utils.broadcast_one_to_all(text_N).tobytes().rstrip()
    if sentence:
        raise UserError(sentence.decode(errors="replace"))
    return found


def any_process(condition: bool) -> bool:
    """Whether it is true in any process; all must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())
