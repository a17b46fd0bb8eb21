"""What this process wrote, removed and used since somebody last asked. Bounded: the oldest go first. Any thread; calls are short.

Of several changes of one object in one tier the last one counts. Nobody has to ask: a log that is never taken stays at its bound, a few MB.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from cache_store.block import BlockId

MAX_OBJECTS = 4096  # per tier, and of those that were used: 4 GB of chat blocks; with their tokens 4.5 MB of news


@dataclass(slots=True)
class Changes:
    """Per tier the objects that were written (their bytes) or removed (None), oldest first; the hits of what was used."""

    tiers: tuple[dict[BlockId, int | None], ...]
    used: dict[BlockId, int] = field(default_factory=dict)
    incomplete: bool = False


class NewsLog:
    def __init__(self, n_tiers: int, max_objects: int = MAX_OBJECTS) -> None:
        self._n_tiers = n_tiers
        self._max_objects = max_objects
        self._lock = threading.Lock()
        self._changes = self._no_changes()

    def wrote(self, id: BlockId, tier: int, n_bytes: int) -> None:
        self._note(id, tier, n_bytes)

    def removed(self, id: BlockId, tier: int) -> None:
        self._note(id, tier, None)

    def used(self, ids: Iterable[BlockId]) -> None:
        """Uses that do not fit are forgotten without a word: they are opinions, not facts."""
        with self._lock:
            used = self._changes.used
            for id in ids:
                used[id] = used.pop(id, 0) + 1
                if len(used) > self._max_objects:
                    del used[next(iter(used))]

    def take(self) -> Changes:
        """Everything since the last `take`."""
        with self._lock:
            changes, self._changes = self._changes, self._no_changes()
        return changes

    def _note(self, id: BlockId, tier: int, n_bytes: int | None) -> None:
        with self._lock:
            changes = self._changes.tiers[tier]
            changes.pop(id, None)
            changes[id] = n_bytes
            if len(changes) > self._max_objects:
                del changes[next(iter(changes))]
                self._changes.incomplete = True

    def _no_changes(self) -> Changes:
        return Changes(tuple({} for _ in range(self._n_tiers)))
