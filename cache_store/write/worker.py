"""One background thread that takes jobs from a queue, in order, until it is told to stop.

The thread is a daemon: a job that hangs in a file system holds only this thread. A job that raises
is logged and lost; who needs to know settles its own accounts in `finally`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("cache_store")

J = TypeVar("J")

_ASK_S = 0.25  # how often a drain asks whether it is still worthwhile


class Worker(Generic[J]):
    """Calls `do(job)` for each job; `abandon(job)` for those that are left when it stops."""

    def __init__(
        self, name: str, do: Callable[[J], None], abandon: Callable[[J], None], *, max_jobs: float = math.inf
    ) -> None:
        self._do = do
        self._abandon = abandon
        self._max_jobs = max_jobs
        self._jobs: deque[J] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name=f"cache-{name}", daemon=True)
        self._thread.start()

    def submit(self, job: J) -> bool:
        """False when stopping, or when `max_jobs` are waiting already."""
        with self._wake:
            if self._stopping or len(self._jobs) >= self._max_jobs:
                return False
            self._jobs.append(job)
            self._wake.notify_all()
            return True

    def pause(self, seconds: float) -> bool:
        """Called by a job: wait before trying again. False when the worker is to stop."""
        with self._wake:
            return not self._wake.wait_for(lambda: self._stopping, seconds)

    def drain(self, timeout_s: float, worthwhile: Callable[[], bool]) -> bool:
        """Wait until all is done; False on timeout, or once it is not `worthwhile` any more."""
        deadline_ns = deadline_in(timeout_s)
        with self._wake:
            while self._jobs or self._busy:
                left_s = seconds_left(deadline_ns)
                if not left_s or not worthwhile():
                    return False
                self._wake.wait(min(left_s, _ASK_S))
        return True

    def stop(self, timeout_s: float) -> bool:
        """Abandon what waits, wait for the job under way; False when it hangs. Idempotent."""
        with self._wake:
            self._stopping = True
            left = list(self._jobs)
            self._jobs.clear()
            self._wake.notify_all()
        for job in left:
            self._abandon(job)
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._do(job)
            except Exception:
                log.exception("job=%r failed", job)
            del job  # or its buffers live until the next one comes

    def _next(self) -> J | None:
        with self._wake:
            self._busy = False
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._jobs or self._stopping)
            self._busy = bool(self._jobs)
            return self._jobs.popleft() if self._jobs else None


def deadline_in(seconds: float) -> int:
    """So many seconds from now on the monotonic clock, in ns."""
    return time.monotonic_ns() + int(seconds * 1e9)


def seconds_left(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
