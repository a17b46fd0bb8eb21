"""Ctrl-C, SIGTERM and a terminal that closes, as one request to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While the process starts, a signal raises `KeyboardInterrupt` in the main thread, as Python's
    own Ctrl-C does. After `defer` the first one sets `stop` and the next one sets `hurry`.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._deferred = False

    def install(self) -> None:
        """Main thread only. Again after whatever installs handlers of its own, as `ray.init` does.
        SIGHUP stays ignored where it was, as under nohup.
        """
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def defer(self) -> None:
        """From here on signals only set events."""
        self._deferred = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
        if not self._deferred:
            raise KeyboardInterrupt
