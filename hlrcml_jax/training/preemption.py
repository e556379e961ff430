"""SIGTERM, the notice of preemption: save before stopping."""

import signal
import threading

from hlrcml_jax import processes


class Terminations:
    """A context in which SIGTERM is only noted; `asked` returns whether it came.

    A second SIGTERM ends the program at once. Outside the main thread it has no effect.
    """

    def __enter__(self) -> "Terminations":
        self._came = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self._came = True
        signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether any process got SIGTERM; all processes must call this."""
        return processes.any_process(self._came)
