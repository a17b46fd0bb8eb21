"""Objects of one restore on their way, several at once, in the order in which they are used.

How many: on a tier of this machine as many as keep two cores busy, since more cost each other's
cache lines; on object stores `reads_in_flight`, since each of them waits for the network most of
the time. All restores of a store together hold at most `read_ahead_bytes`, and each the one object
that it waits for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from cache_store.format.block import BlockId
from cache_store.index.walk import Hop
from cache_store.read.fetch import Fetch
from cache_store.tiers.stack import TierStack

LOCAL_READS = 3
_UNKNOWN_BYTES = 1 << 22  # of an object that the index has just lost: it will hardly be read


class ByteBudget:
    """Bytes in flight, of everybody who shares it. Any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.used_bytes = 0

    def take(self, n_bytes: int, *, must: bool) -> bool:
        """Whether there is room. `must`: it is taken even where there is none."""
        with self._lock:
            fits = must or self.used_bytes + n_bytes <= self._max_bytes
            self.used_bytes += n_bytes if fits else 0
            return fits

    def give(self, n_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= n_bytes


class ReadAhead:
    """`start` begins to fetch an object. One thread. `close` frees what is under way; idempotent."""

    def __init__(
        self,
        hops: Sequence[Hop],
        stack: TierStack,
        start: Callable[[Hop], Fetch],
        budget: ByteBudget,
        reads_in_flight: int,
    ) -> None:
        self._start = start
        self._budget = budget
        self._left = deque(zip(hops, _costs(hops, stack, reads_in_flight), strict=True))
        self._ahead: deque[tuple[Fetch, int]] = deque()

    def next(self) -> Fetch:
        """The object of the next hop; the one before it is freed."""
        if self._ahead:
            self._free_first()
        if not self._ahead:
            self._begin(must=True)
        while self._left and len(self._ahead) < self._left[0][1][1] and self._begin(must=False):
            pass
        return self._ahead[0][0]

    def close(self) -> None:
        while self._ahead:
            self._free_first()

    def _begin(self, *, must: bool) -> bool:
        hop, (n_bytes, _) = self._left[0]
        if not self._budget.take(n_bytes, must=must):
            return False
        try:
            self._ahead.append((self._start(hop), n_bytes))
        except BaseException:
            self._budget.give(n_bytes)
            raise
        self._left.popleft()
        return True

    def _free_first(self) -> None:
        fetch, n_bytes = self._ahead.popleft()
        self._budget.give(n_bytes)
        fetch.free()


def _costs(hops: Sequence[Hop], stack: TierStack, reads_in_flight: int) -> list[tuple[int, int]]:
    """Of each object its bytes, and how many may be in flight when it is read."""
    found: dict[BlockId, tuple[int, int]] = {}
    for stored in stack.index.stored(hop.id for hop in hops):
        is_near = any(index == stack.staged or stack.tiers[index].local for index in stored.tier_indices)
        found[stored.id] = (stored.n_bytes, LOCAL_READS if is_near else reads_in_flight)
    return [found.get(hop.id, (_UNKNOWN_BYTES, 1)) for hop in hops]
