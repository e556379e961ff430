"""SIGTERM, the notice of preemption, and SIGINT (Ctrl-C): save before stopping."""

import signal
import threading

from hlrcml_jax import processes
from hlrcml_jax.errors import Interrupted, Terminated, warn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminations:
    """A context in which SIGTERM and SIGINT are only noted; `asked` returns whether one came.

    A second one ends the program at once. Outside the main thread it has no effect.
    """

    def __enter__(self) -> "Terminations":
        self._came = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number, _) -> None:
        self._came = number
        self.__exit__()
        if number == signal.SIGINT:
            warn("stopping after this epoch; press Ctrl-C again to stop at once.")

    def asked(self) -> bool:
        """Whether any process got a signal; all processes must call this."""
        return processes.any_process(self._came is not None)

    def notice(self, epoch: int) -> Terminated:
        """What to raise after saving an epoch."""
        kind, name = Terminated, "SIGTERM"
        if self._came == signal.SIGINT:
            kind, name = Interrupted, "Ctrl-C"
        return kind(f"stopped by {name}; epoch {epoch} is saved. Run the same command to resume.")
