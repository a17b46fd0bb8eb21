"""One file's bytes into its partial: parallel ranges, retries, and one stream where a server knows
no ranges.

What is whole stays whatever happens: a pull that is cancelled or cut off goes on from there. Only
content that changed, or a server that ignored ranges, makes it begin anew; the first of these once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from erllama.hub.config import HubConfig
from erllama.hub.errors import PullCancelled, PullFailed
from erllama.hub.partial import Partial
from erllama.hub.sources.client import shown
from erllama.hub.sources.origin import ContentChanged, Origin, RangesIgnored, Transient, paced

TICK_S = 0.2  # between two looks at the progress and the cancellation


class Download:
    """One run. `run` is a generator in the caller's thread, the bytes move in threads that it joins
    before it ends, however it ends.
    """

    def __init__(self, origin: Origin, partial: Partial, config: HubConfig, cancel: threading.Event) -> None:
        self._origin = origin
        self._partial = partial
        self._config = config
        self._cancel = cancel
        self._stop = threading.Event()
        self._pending: deque[tuple[int, int]] = deque()

    def run(self) -> Iterator[None]:
        """Yields every now and then, until the partial is whole.

        Raises `PullCancelled`, `PullFailed` and its like, OSError of the disk.
        """
        if self._partial.validator is not None:
            self._origin.validator = self._partial.validator
        for last in (False, True):
            try:
                yield from self._fetch()
                self._origin.check_unchanged()
                return
            except ContentChanged as change:
                self._start_anew()
                if last:
                    where = shown(self._origin.file.url)
                    raise PullFailed(f"{where}: changes while it is fetched: {change}") from change

    def _fetch(self) -> Iterator[None]:
        try:
            self._pending = deque(self._partial.missing(self._config.chunk_bytes))
            n = min(self._config.connections, len(self._pending))
            yield from self._in_threads([self._ranges] * n)
        except RangesIgnored:
            self._start_anew()
            yield from self._in_threads([self._stream])

    def _start_anew(self) -> None:
        self._partial.reset()
        self._origin.validator = None

    def _in_threads(self, jobs: list[Callable[[], None]]) -> Iterator[None]:
        if not jobs:
            return
        self._stop.clear()
        with ThreadPoolExecutor(len(jobs), thread_name_prefix="erllama-pull") as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                running = set(futures)
                while running:
                    done, running = wait(running, TICK_S, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    if self._cancel.is_set():
                        raise PullCancelled("the pull was cancelled; the next one goes on from here")
                    yield
            except (ContentChanged, RangesIgnored):
                self._stop.set()
                raise
            except BaseException:
                self._stop.set()
                self._origin.abort()
                raise

    def _ranges(self) -> None:
        while not self._stop.is_set():
            try:
                start, end = self._pending.popleft()
            except IndexError:
                return
            self._range(start, end)

    def _range(self, start: int, end: int) -> None:
        for attempt in range(self._config.attempts):
            written = start
            try:
                for data in self._watched(self._origin.read(start, end)):
                    self._partial.write(written, data)
                    written += len(data)
                failure = None
            except Transient as error:
                failure = error
            finally:
                self._record(start, written)
            start = written
            if start == end or self._stop.is_set():
                return
            if failure is not None:
                self._pause(attempt, failure)

    def _stream(self) -> None:
        for attempt in range(self._config.attempts):
            recorded = written = 0
            try:
                for data in self._watched(self._origin.whole()):
                    self._partial.write(written, data)
                    written += len(data)
                    if written - recorded >= self._config.chunk_bytes:
                        self._record(recorded, written)
                        recorded = written
                self._record(recorded, written)
            except Transient as failure:
                self._partial.reset()
                self._pause(attempt, failure)
                continue
            return

    def _record(self, start: int, end: int) -> None:
        if start < end:
            self._partial.validator = self._origin.validator
            self._partial.record(start, end)

    def _watched(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The blocks until the run stops, as fast as they have to come."""
        for data in paced(blocks, self._config):
            if self._stop.is_set():
                return
            yield data

    def _pause(self, attempt: int, failure: Transient) -> None:
        """Wait before the next attempt; raises `PullFailed` when there is none."""
        if attempt + 1 >= self._config.attempts:
            where = shown(self._origin.file.url)
            raise PullFailed(f"{where}: {failure} ({self._config.attempts} attempts)") from failure
        pause_s = max(self._config.backoff_s * 2**attempt, failure.retry_after_s)
        self._stop.wait(min(pause_s, self._config.max_backoff_s))
