"""Ctrl-C, SIGTERM and a terminal that closes, as one request to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1


class StopSignals:
    """Inside `end_at_once` a signal ends the process. From `install` on one raises
    `KeyboardInterrupt` in the main thread, as Python's own Ctrl-C does; after `defer` the first one
    sets `stop` and the next one sets `hurry`. Main thread only.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._deferred = False
        # SIGHUP stays ignored where it was, as under nohup
        self._numbers = {n for n in _SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN}

    @contextmanager
    def end_at_once(self) -> Iterator[None]:
        """A signal ends the process and all that it has started, with the shell's status for it.
        One that comes after this and before `install` waits for that.

        For imports and `ray.init`, which installs handlers of its own on the way: one raises
        `SystemExit` in the middle, the other prints a stack trace and aborts three seconds later. So
        signals are blocked, in every thread that begins meanwhile as well, and one thread waits for
        them. A child would inherit that: Ray starts each of its processes with a `preexec_fn`, and
        then hooks like ours run in the child.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        over = threading.Event()
        os.register_at_fork(after_in_child=lambda: over.is_set() or signal.pthread_sigmask(signal.SIG_SETMASK, before))
        waiter = threading.Thread(target=self._end_process, args=[over], name="erllama-signals", daemon=True)
        waiter.start()
        try:
            yield
        finally:
            over.set()
            waiter.join()

    def _end_process(self, over: threading.Event) -> None:
        while not over.is_set():
            told = signal.sigtimedwait(self._numbers, _POLL_S)
            if told is not None:
                with suppress(psutil.Error):
                    for child in psutil.Process().children(recursive=True):
                        child.kill()
                os._exit(128 + told.si_signo)

    def install(self) -> None:
        """Again after whatever installs handlers of its own, as `ray.init` does."""
        for number in self._numbers:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def defer(self) -> None:
        """From here on signals only set events."""
        self._deferred = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
        if not self._deferred:
            raise KeyboardInterrupt
