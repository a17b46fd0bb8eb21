"""Threads that make the blocking calls of one tier, and verify what they read, so that a caller's
deadline holds when a file system hangs.

A call that outlives its caller's deadline is *abandoned*: it goes on, holds its thread, and its
result is thrown away. Once every thread of a pool has been held by abandoned calls for a second,
the tier counts as hung and new calls are refused at once. Threads are daemons: a hung file system
must not keep the process from ending. Reading ahead uses the same threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cache_store.errors import StoreClosed, StoreError, TierError

T = TypeVar("T")

THREADS = 4  # two readers reading two hops ahead; also how many calls may hang before a tier counts as hung

# a call may be abandoned because its result was not needed after all; only one that stays hangs
_HUNG_NS = 1_000_000_000


class Call(Generic[T]):
    """One call under way. `on_waste` gets the result if nobody waits for it any more."""

    def __init__(self, function: Callable[[], T], on_waste: Callable[[T], None] | None) -> None:
        self._function = function
        self._on_waste = on_waste
        self._lock = threading.Lock()
        # held until there is a result: waiting for a lock costs a fifth of waiting for a condition
        self._done = threading.Lock()
        self._done.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._finished = False
        self.abandoned = False
        self.began_ns = 0

    def run(self) -> None:
        result, error = None, None
        try:
            result = self._function()
        except BaseException as caught:
            error = caught
        with self._lock:
            self._result, self._error, self._finished = result, error, True
            wasted = self.abandoned and error is None
        self._done.release()
        if wasted:
            self._waste()

    def wait(self, deadline_ns: int) -> T:
        """The result. Raises what the call raised; `TierError` after `deadline_ns` (monotonic)."""
        if self._done.acquire(timeout=max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)):
            self._done.release()
        with self._lock:
            if not self._finished:
                self.abandoned = True
                raise TierError("no answer before the deadline") from TimeoutError()
        if self._error is None:
            return self._result  # type: ignore[return-value]
        if isinstance(self._error, StoreError):
            raise self._error
        raise TierError(str(self._error)) from self._error

    def drop(self) -> None:
        """The caller no longer wants the result."""
        with self._lock:
            if self.abandoned:
                return
            self.abandoned = True
            wasted = self._finished and self._error is None
        if wasted:
            self._waste()

    def _waste(self) -> None:
        if self._on_waste is not None:
            self._on_waste(self._result)  # type: ignore[arg-type]


class DeadlinePool:
    def __init__(self, name: str, n_threads: int = THREADS) -> None:
        self._name = name
        self._n_threads = n_threads
        self._wake = threading.Condition()
        self._waiting: deque[Call[Any]] = deque()
        self._running: set[Call[Any]] = set()
        self._threads = 0
        self._closed = False

    def call(self, function: Callable[[], T], on_waste: Callable[[T], None] | None = None) -> Call[T]:
        """Start `function` on a thread of the pool. Raises `TierError` if all threads hang,
        `StoreClosed` after `close`.
        """
        call = Call(function, on_waste)
        with self._wake:
            if self._closed:
                raise StoreClosed(self._name)
            if self._hung():
                raise TierError(f"{self._name}: every call hangs")
            self._waiting.append(call)
            start = self._threads < self._n_threads and self._threads - len(self._running) < len(self._waiting)
            self._threads += start
            self._wake.notify()
        if start:
            threading.Thread(target=self._work, name=f"cache-{self._name}", daemon=True).start()
        return call

    def close(self) -> None:
        """Idle threads end; a hung call ends its thread whenever it returns."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _hung(self) -> bool:
        if len(self._running) < self._n_threads:
            return False
        long_ago_ns = time.monotonic_ns() - _HUNG_NS
        return all(call.abandoned and call.began_ns < long_ago_ns for call in self._running)

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            with self._wake:
                self._running.discard(call)
            del call  # or what it read lives until the next one comes

    def _next(self) -> Call[Any] | None:
        with self._wake:
            while True:
                while self._waiting:
                    call = self._waiting.popleft()
                    if not call.abandoned:
                        call.began_ns = time.monotonic_ns()
                        self._running.add(call)
                        return call
                if self._closed:
                    self._threads -= 1
                    return None
                self._wake.wait()
