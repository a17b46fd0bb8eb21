"""One tier as the store uses it: behind a deadline, a circuit breaker and a stopwatch.

*Foreground* calls take a deadline and run on the tier's `DeadlinePool`: their callers must not
hang. *Background* calls run on the caller's thread, which belongs to the store and may hang with
the tier. Both raise nothing but `TierError` (`StoreClosed` after close).

Publishing has a circuit of its own: a bucket that answers and takes nothing is read, not written.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cache_store.config import StoreConfig, TierConfig
from cache_store.errors import TierError
from cache_store.format.file import Compression
from cache_store.records import TierStats
from cache_store.tiers.bandwidth import Bandwidth
from cache_store.tiers.base import NoSpace, Placer, ReadBuffer, Stat, Tier
from cache_store.tiers.deadline_pool import THREADS, Call, DeadlinePool
from cache_store.tiers.open import open_tier

T = TypeVar("T")

VOLATILE_LABELS = frozenset({"ram_file", "memory"})  # gone with the machine, or with the process
_KEPT_BUFFERS = 6  # two readers, two hops ahead
# local or not: latency in s, bytes per s, overlap; page cache and a plain object store
_GUESSES = {True: (0.0002, 2e9, 1.0), False: (0.05, 100e6, 0.25)}
_PATIENCE_NS = 50_000_000  # a caller who waited for less than this says nothing about the tier

THRESHOLD = 3  # one failure is noise; three in a row is a file system that is gone
FIRST_S = 1.0
LONGEST_S = 60.0  # a tier that comes back is used again within a minute


class Breaker:
    """When to leave a failing tier alone. Pure; the caller locks and brings the time.

    Calls go through until `THRESHOLD` failures in a row; then everyone skips the tier for
    `FIRST_S`. After that time calls go through again: the next failure opens the circuit for twice
    as long (up to `LONGEST_S`), the next success closes it.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open_s = 0.0
        self._until_ns = 0

    def allows(self, now_ns: int) -> bool:
        return now_ns >= self._until_ns

    def succeeded(self) -> None:
        self._failures, self._open_s, self._until_ns = 0, 0.0, 0

    def failed(self, now_ns: int) -> None:
        self._failures += 1
        if self._failures >= THRESHOLD:
            self._open_s = min(LONGEST_S, 2 * self._open_s or FIRST_S)
            self._until_ns = now_ns + int(self._open_s * 1e9)


@dataclass(slots=True)
class Loaded:
    """An object in one of the tier's buffers. Its owner calls `free` exactly once; `data` is not
    valid afterwards.
    """

    tier: GuardedTier
    data: memoryview
    buffer: ReadBuffer
    seconds: float  # that reading it took

    def free(self) -> None:
        self.data = memoryview(b"")
        self.tier.give_back(self.buffer)


class GuardedTier:
    """`index` counts from 0, the fastest tier; `compression` is of the objects written to it."""

    def __init__(
        self, index: int, tier: Tier, label: str, compression: Compression | None = None, n_threads: int = THREADS
    ) -> None:
        self.index = index
        self._inner = tier
        self.label = label
        self.compression = compression
        self.url, self.local, self.max_bytes = tier.url, tier.local, tier.max_bytes
        self.persistent = tier.label not in VOLATILE_LABELS
        self.speed = Bandwidth(*_GUESSES[tier.local])
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()  # breakers, counts, buffers
        self._breaker = Breaker()  # of all that is not a publish
        self._publish_breaker = Breaker()
        self._pool = DeadlinePool(label, n_threads)
        self._buffers: list[ReadBuffer] = []

    def __repr__(self) -> str:
        state = "in use" if self.writable else "not written to" if self.available else "circuit open"
        return f"<GuardedTier {self.index} {self.label} {state}>"

    @property
    def available(self) -> bool:
        """False while the circuit is open: after failures the tier is left alone for a while."""
        return self._breaker.allows(time.monotonic_ns())

    @property
    def writable(self) -> bool:
        """False also while publishes alone are left out: each one failed, whatever else worked."""
        return self.available and self._publish_breaker.allows(time.monotonic_ns())

    def count(self, what: str, n: int = 1) -> None:
        with self._lock:
            self.counts[what] += n

    # --- foreground -------------------------------------------------------------------------------

    def start_read(self, name: str, head_bytes: int | None = None) -> Call[Loaded | None]:
        """Begin to read an object, or its head; None when there is none."""
        return self._pool.call(lambda: self.load(name, head_bytes), _free)

    def start(self, function: Callable[[], T], on_waste: Callable[[T], None] | None = None) -> Call[T]:
        """Begin any background call; `on_waste` gets a result that nobody waits for any more."""
        return self._pool.call(function, on_waste)

    def wait(self, call: Call[T], deadline_ns: int) -> T:
        """The result of a call of ours. A tier that lets callers wait in vain counts as failing."""
        return self._wait(call, deadline_ns, self._breaker)

    def _wait(self, call: Call[T], deadline_ns: int, breaker: Breaker) -> T:
        began_ns = time.monotonic_ns()
        try:
            return call.wait(deadline_ns)
        except TierError as error:
            if isinstance(error.__cause__, TimeoutError) and time.monotonic_ns() - began_ns >= _PATIENCE_NS:
                self._failed(breaker)
            raise

    def stat(self, name: str, deadline_ns: int) -> Stat | None:
        return self.wait(self._pool.call(lambda: self.stat_now(name)), deadline_ns)

    def listing(self, prefix: str, deadline_ns: int) -> list[Stat]:
        return self.wait(self._pool.call(lambda: self.list_now(prefix)), deadline_ns)

    def stats_until_missing(self, names: Sequence[str], deadline_ns: int) -> list[Stat]:
        """Stats of `names` up to the first that is not there; asked in parallel."""
        calls = [self._pool.call(partial(self.stat_now, name)) for name in names]
        found: list[Stat] = []
        try:
            for call in calls:
                stat = self.wait(call, deadline_ns)
                if stat is None:
                    break
                found.append(stat)
        finally:
            for call in calls:
                call.drop()
        return found

    def delete(self, name: str, deadline_ns: int) -> bool:
        return self.wait(self._pool.call(lambda: self.delete_now(name)), deadline_ns)

    def run(self, function: Callable[[], T], deadline_ns: int) -> T:
        """Any background call, as a foreground call."""
        return self.wait(self._pool.call(function), deadline_ns)

    def publish(self, name: str, data: memoryview, deadline_ns: int) -> None:
        """`data` must not be reused: the call may outlive its caller's patience."""
        self._wait(self._pool.call(lambda: self.publish_now(name, data)), deadline_ns, self._publish_breaker)

    # --- background -------------------------------------------------------------------------------

    def load(self, name: str, head_bytes: int | None = None, placer: Placer | None = None) -> Loaded | None:
        """What `placer` took is missing in the result."""
        buffer = self._take_buffer()
        began_ns = time.monotonic_ns()
        try:
            with self._judged(self._breaker):
                data = self._inner.read(name, buffer, head_bytes, placer)
        except BaseException:
            self.give_back(buffer)
            raise
        if data is None:
            self.give_back(buffer)
            return None
        n_bytes = data.nbytes + (0 if placer is None else sum(map(len, placer.memory)))
        seconds = (time.monotonic_ns() - began_ns) / 1e9
        self.speed.observe(n_bytes, seconds)
        self.count("read_bytes", n_bytes)
        return Loaded(self, data, buffer, seconds)

    def publish_now(self, name: str, data: memoryview, verify: Callable[[memoryview], bool] | None = None) -> None:
        """Nothing is written where an object is already that `verify` accepts."""
        if verify is not None and self._holds(name, verify):
            return
        with self._judged(self._publish_breaker):
            self._inner.publish(name, data)
        self.count("written_bytes", data.nbytes)

    def _holds(self, name: str, verify: Callable[[memoryview], bool]) -> bool:
        """There is an object and it verifies. One that cannot be read does not: a bad sector under
        a good name must not keep its content out of the tier for good.
        """

        def verified() -> bool:
            found = self._inner.read(name, ReadBuffer())
            return found is not None and verify(found)

        try:
            return self._guarded(verified)
        except TierError:
            return False

    def stat_now(self, name: str) -> Stat | None:
        return self._guarded(lambda: self._inner.stat(name))

    def delete_now(self, name: str) -> bool:
        return self._guarded(lambda: self._inner.delete(name))

    def list_now(self, prefix: str = "") -> list[Stat]:
        return self._guarded(lambda: list(self._inner.list(prefix)))

    def sweep_now(self, older_than_s: float) -> int:
        return self._guarded(lambda: self._inner.sweep(older_than_s))

    def give_back(self, buffer: ReadBuffer) -> None:
        with self._lock:
            if len(self._buffers) < _KEPT_BUFFERS:
                self._buffers.append(buffer)

    def close(self) -> None:
        self._pool.close()
        self._inner.close()

    def stats(self, n_bytes: int, objects: int) -> TierStats:
        return TierStats(
            label=self.label,
            n_bytes=n_bytes,
            objects=objects,
            max_bytes=self.max_bytes,
            read_bytes=self.counts["read_bytes"],
            written_bytes=self.counts["written_bytes"],
            read_bytes_per_s=self.speed.bytes_per_s,
            read_latency_s=self.speed.latency_s,
            hits=self.counts["hits"],
            errors=self.counts["errors"],
            available=self.writable,
        )

    def _take_buffer(self) -> ReadBuffer:
        with self._lock:
            return self._buffers.pop() if self._buffers else ReadBuffer()

    def _guarded(self, function: Callable[[], T]) -> T:
        with self._judged(self._breaker):
            return function()

    @contextmanager
    def _judged(self, breaker: Breaker) -> Iterator[None]:
        """Tell `breaker` how it went. Whatever a driver raises leaves as `TierError`."""
        try:
            yield
        except NoSpace:
            raise  # a full file system works; making room is the caller's business
        except Exception as error:
            self._failed(breaker)
            if isinstance(error, TierError):
                raise
            raise TierError(f"{self.label}: {error!r}") from error
        with self._lock:
            breaker.succeeded()

    def _failed(self, breaker: Breaker) -> None:
        with self._lock:
            self.counts["errors"] += 1
            breaker.failed(time.monotonic_ns())


def _free(loaded: Loaded | None) -> None:
    if loaded is not None:
        loaded.free()


def open_tiers(config: StoreConfig, open: Callable[[TierConfig], Tier] = open_tier) -> list[GuardedTier]:
    """The tiers of `config`. A label that occurs twice gets a number. Raises `TierError` for a tier
    that can never work.
    """
    seen: Counter[str] = Counter()
    guarded: list[GuardedTier] = []
    with ExitStack() as on_failure:
        for index, spec in enumerate(config.tiers):
            tier = open(spec)
            seen[tier.label] += 1
            label = tier.label if seen[tier.label] == 1 else f"{tier.label}{seen[tier.label]}"
            n_threads = THREADS if tier.local else max(THREADS, config.reads_in_flight)
            guarded.append(GuardedTier(index, tier, label, spec.compression, n_threads))
            on_failure.callback(guarded[-1].close)
        on_failure.pop_all()
    return guarded
