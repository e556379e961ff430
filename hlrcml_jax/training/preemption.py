"""SIGTERM, with which machines that are taken away give notice: the work is saved first."""

import signal
import threading

from hlrcml_jax import processes


class Terminations:
    """While it is entered, SIGTERM ends nothing, and `asked` says that it came.

    A second one ends the program at once. Elsewhere than in the main thread nothing is changed.
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
        """Whether any process has been asked to end; all processes must ask together."""
        return processes.any_process(self._came)
