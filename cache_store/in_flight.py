"""What has been accepted and is not yet where it will survive this process: what `flush` waits for.
Any thread.
"""

from __future__ import annotations

import threading
from collections import Counter

from cache_store.format.block import BlockId


class InFlight:
    """Counts, per object, the accepted pieces of work that are still under way."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: Counter[BlockId] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, id: BlockId) -> bool:
        return id in self._open

    def opened(self, id: BlockId) -> None:
        with self._changed:
            self._open[id] += 1

    def settled(self, id: BlockId) -> None:
        """One piece of work for `id` has ended, well or not."""
        with self._changed:
            assert self._open[id] > 0
            self._open[id] -= 1
            if not self._open[id]:
                del self._open[id]
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all that is open now has been settled; False when `timeout_s` was not
        enough.
        """
        with self._changed:
            waited_for = set(self._open)
            return self._changed.wait_for(lambda: waited_for.isdisjoint(self._open), timeout_s)
