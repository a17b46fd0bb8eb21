"""Ends a call that takes longer than its budget.

The engine thread arms it around each decode; one thread of the engine loop runs `watch`. Arming
costs two uncontended locks and wakes nobody: a call armed while the watcher sleeps cannot be due
before the watcher, who sleeps for one budget at most, wakes by itself. Times are `monotonic_ns`,
budgets are in seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MAX_SLEEP_NS = 3600 * 10**9  # a thread cannot sleep for centuries, and budgets may be that long


class Watchdog:
    """`abort` is called on the watcher's thread, under a lock: it must be quick and touch nothing
    of ours. A budget of 0 never ends a call.

    It is called again after another budget, should the first one have been lost. Once a call has
    left `armed`, it is not called any more.
    """

    def __init__(
        self, budget_s: float, abort: Callable[[], None], *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.budget_s = budget_s
        self._budget_ns = int(budget_s * 1e9)
        self._abort = abort
        self._clock = clock
        self._lock = threading.Lock()
        self._due_ns: int | None = None
        self._closing = threading.Event()

    @contextmanager
    def armed(self) -> Iterator[None]:
        """The block has `budget_s` seconds from now. One at a time."""
        if not self._budget_ns:
            yield
            return
        with self._lock:
            assert self._due_ns is None, "armed twice"
            self._due_ns = self._clock() + self._budget_ns
        try:
            yield
        finally:
            with self._lock:
                self._due_ns = None

    def watch(self) -> None:
        """Abort what is overdue, until `close`."""
        while self._budget_ns and not self._closing.wait(min(self.check(), _MAX_SLEEP_NS) / 1e9):
            pass

    def check(self) -> int:
        """Abort the call if it is overdue; the nanoseconds after which to look again."""
        with self._lock:
            now = self._clock()
            if self._due_ns is None:
                return self._budget_ns
            if now >= self._due_ns:
                self._due_ns = now + self._budget_ns
                self._abort()
            return self._due_ns - now

    def cut_short(self) -> None:
        """Abort the call that is going on, whatever is left of its budget. Any thread."""
        with self._lock:
            if self._due_ns is not None:
                self._abort()

    def close(self) -> None:
        """End `watch`. Idempotent."""
        self._closing.set()
