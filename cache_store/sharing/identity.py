"""Which tiers of different processes are one place: each holds a mark, an empty object `place/<16 hex>` that whoever finds none makes.

A URL does not tell: `file:///dev/shm/kv` is another place on every node and in every container, an NFS export the same one everywhere,
whatever path it is mounted at. Two that start at once may both make a mark; each lists after it made its own, so the later one sees both,
and two sets of marks that share one name the same place. A copied directory has the marks of its original: news from there are then wrong,
and cost misses. Where no mark can be made (read-only) the place stays unknown and news about it are ignored.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cache_store.tiers.guarded import Shelf

PREFIX = "place/"


class Places:
    """The marks of each shelf as of the last `settle`; any thread."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self._marks: list[frozenset[str]] = [frozenset() for _ in shelves]

    def marks(self, level: int) -> frozenset[str]:
        """None before the first `settle`."""
        return self._marks[level]

    def at(self, marks: frozenset[str]) -> int | None:
        """The level of the shelf that is the place with `marks`; None where there is none such."""
        return next((level for level, ours in enumerate(self._marks) if not ours.isdisjoint(marks)), None)

    def settle(self, shelf: Shelf) -> None:
        """Find the marks of a shelf, or make one. Background. Raises `TierError`."""
        found = _listed(shelf)
        if not found:
            shelf.publish_now(f"{PREFIX}{secrets.token_hex(8)}", memoryview(b""))
            found = _listed(shelf)
        self._marks[shelf.level] = found


def _listed(shelf: Shelf) -> frozenset[str]:
    return frozenset(stat.name.removeprefix(PREFIX) for stat in shelf.list_now(PREFIX))
