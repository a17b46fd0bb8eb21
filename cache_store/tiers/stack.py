"""The shelves, the index of what lies on them, and the only code that changes both: all that puts, evicts or condemns goes through here.

The index follows the shelf: an object is added after it was published and removed after it was deleted, so the index errs towards what is
not there any more (a miss, nothing worse). Any thread; nothing is done under a lock but counting. What is staged in memory (accepted, not
yet published) is in the index as a tier of its own, `staged`, behind the shelves. What changes on a shelf goes into the news for others.

Everyone who writes evicts by its own index. Where one process collects for all (`collected_elsewhere`), the others leave it to that one:
they evict beyond a slack only, and no more than a write needs, until that promise runs out.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cache_store.errors import CorruptBlock, Damage, StoreError, StoreFull, TierError
from cache_store.format.block import BlockId, Kind
from cache_store.format.file import decode
from cache_store.format.keys import ChainKey
from cache_store.in_flight import Pending
from cache_store.index.catalogue import Catalogue, Known
from cache_store.index.delta import NewsLog
from cache_store.tiers.base import NoSpace
from cache_store.tiers.guarded import Shelf

_EVICTION_BATCH = 1 / 64  # of a budget: a full tier evicts now and then, not once per object
_SLACK = 1 / 20  # of a budget that another process keeps: more than is written between two collections, as a rule
_MAX_HOLES = 65_536


class Tally:
    """Counts by cause, any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}

    def add(self, family: str, cause: str, n: int = 1) -> None:
        with self._lock:
            self._counts.setdefault(family, Counter())[cause] += n

    def of(self, family: str) -> dict[str, int]:
        with self._lock:
            return dict(self._counts.get(family, {}))

    def total(self, family: str) -> int:
        return sum(self.of(family).values())


class Stockroom:
    """`owed` has the objects that wait to be copied down. `clock` is monotonic, in ns."""

    def __init__(self, shelves: Sequence[Shelf], catalogue: Catalogue, news_log: NewsLog, clock: Callable[[], int]) -> None:
        self.shelves = tuple(shelves)
        self.catalogue = catalogue
        self._news_log = news_log
        self._clock = clock
        self._collected_until_ns = [clock()] * len(self.shelves)
        self.owed = Pending()
        self.tally = Tally()
        self.staged = len(self.shelves)
        # by the prefix that it leads to, the object that found no room; one writer at a time
        self._holes: list[dict[ChainKey, BlockId]] = [{} for _ in self.shelves]

    def holders(self, id: BlockId) -> list[Shelf]:
        """Shelves that have the object as far as the index knows, fastest first, those put aside left out."""
        tiers = self.catalogue.tiers_of(id)
        return [shelf for shelf in self.shelves if shelf.level in tiers and shelf.available]

    def put(self, shelf: Shelf, id: BlockId, tokens: NDArray[np.uint32] | None, data: memoryview) -> None:
        """Publish an object, making room first. Background. Raises `StoreFull` or `TierError`.

        What continues an object that found no room finds none either: it would evict others and could not be reached. That ends
        when somebody else has stored such an object.
        """
        holes = self._holes[shelf.level]
        if self._is_behind_hole(shelf, id) or not self.make_room(shelf, data.nbytes, id.parent):
            self._note_hole(holes, id)
            raise StoreFull(f"{shelf.label}: no room for {data.nbytes} bytes")
        try:
            self._publish(shelf, id, data)
        except NoSpace:
            if not self.evict(shelf, max(data.nbytes, self._batch(shelf)), "no_space"):
                self._note_hole(holes, id)
                raise
            self._publish(shelf, id, data)
        self.catalogue.add(id, shelf.level, data.nbytes, tokens)
        self._news_log.wrote(id, shelf.level, data.nbytes)
        holes.pop(id.key, None)

    def _is_behind_hole(self, shelf: Shelf, id: BlockId) -> bool:
        hole = self._holes[shelf.level].get(id.parent)
        return hole is not None and not self.catalogue.leads_to_end_of(hole, shelf.level)

    @staticmethod
    def _note_hole(holes: dict[ChainKey, BlockId], id: BlockId) -> None:
        if id.kind is Kind.ROWS:
            if len(holes) >= _MAX_HOLES:
                holes.clear()
            holes[id.key] = id

    def _publish(self, shelf: Shelf, id: BlockId, data: memoryview) -> None:
        if shelf.tier.local:
            shelf.publish_now(id.name, data, lambda found: verifies(found, id))
        elif shelf.stat_now(id.name) is None:  # a PUT is whole or absent: what is there need not be read back to be believed
            shelf.publish_now(id.name, data)

    def make_room(self, shelf: Shelf, n_bytes: int, spare: ChainKey | None = None) -> bool:
        """Evict until `n_bytes` more fit the budget, but nothing that the prefix `spare` is reached by. Background."""
        excess = self.catalogue.bytes_in(shelf.level) + n_bytes - self._budget(shelf)
        if excess <= 0:
            return True
        if n_bytes > self._budget(shelf):
            return False
        wanted = max(excess, self._batch(shelf))
        # A chain that is larger than its tier would eat its own beginning.
        freed = self._evict(shelf, self.catalogue.victims(shelf.level, wanted, lambda v: v.id.key != spare and self.may_go(v)), "budget")
        if freed < excess and not self._copies_soon(shelf):
            freed += self._evict(shelf, self.catalogue.victims(shelf.level, wanted - freed, lambda v: v.id.key != spare), "uncopied")
        return freed >= excess

    def _copies_soon(self, shelf: Shelf) -> bool:
        """Whether what waits to be copied down may be waited for: a slow tier below must not block the one above."""
        below = self.shelves[shelf.level + 1 : shelf.level + 2]
        return any(lower.tier.local and lower.available for lower in below)

    def fits(self, shelf: Shelf, n_bytes: int) -> bool:
        """Whether there is room without evicting anything, by anyone."""
        return shelf.tier.max_bytes is None or self.catalogue.bytes_in(shelf.level) + n_bytes <= shelf.tier.max_bytes

    def may_go(self, known: Known) -> bool:
        """Whether nobody waits for it to be copied down."""
        return known.id not in self.owed

    def collected_elsewhere(self, shelf: Shelf, for_s: float) -> None:
        """For `for_s` from now another process keeps the budget of this shelf; 0 takes that back."""
        self._collected_until_ns[shelf.level] = self._clock() + int(for_s * 1e9)

    def evict(self, shelf: Shelf, n_bytes: int, cause: str, *, only_if_lower: bool = False) -> int:
        """Delete at least `n_bytes` from a shelf, or what may go; the bytes that went. Background."""
        below = range(shelf.level + 1, self.staged)
        may_go = (lambda known: any(tier in below for tier in known.tiers)) if only_if_lower else (lambda known: True)
        return self._evict(shelf, self.catalogue.victims(shelf.level, n_bytes, may_go), cause)

    def _evict(self, shelf: Shelf, victims: Sequence[Known], cause: str) -> int:
        freed = 0
        for victim in victims:
            try:
                self.discard(shelf, victim.id, cause)
            except TierError:
                break
            freed += victim.n_bytes
        return freed

    def discard(self, shelf: Shelf, id: BlockId, cause: str) -> bool:
        """Delete an object and forget it; False when somebody else had deleted it. Background. Raises `TierError`."""
        was_there = shelf.delete_now(id.name)
        self.catalogue.remove(id, shelf.level)
        if was_there:
            self.tally.add("evicted", cause)
            self._news_log.removed(id, shelf.level)
        return was_there

    def condemn(self, shelf: Shelf, id: BlockId, damage: Damage, deadline_ns: int) -> None:
        """A corrupt object: count it, forget it, delete it. Foreground."""
        self._forget_damaged(shelf, id, damage)
        try:
            shelf.delete(id.name, deadline_ns)
        except StoreError:
            self.tally.add("undeleted", shelf.label)

    def condemn_now(self, shelf: Shelf, id: BlockId, damage: Damage) -> None:
        """Like `condemn`. Background."""
        self._forget_damaged(shelf, id, damage)
        try:
            shelf.delete_now(id.name)
        except TierError:
            self.tally.add("undeleted", shelf.label)

    def _forget_damaged(self, shelf: Shelf, id: BlockId, damage: Damage) -> None:
        self.tally.add("corrupt", damage)
        self.catalogue.remove(id, shelf.level)
        self._news_log.removed(id, shelf.level)

    def _is_collected(self, shelf: Shelf) -> bool:
        return self._clock() < self._collected_until_ns[shelf.level]

    def _budget(self, shelf: Shelf) -> int:
        if shelf.tier.max_bytes is None:
            return 1 << 62
        return shelf.tier.max_bytes + (int(shelf.tier.max_bytes * _SLACK) if self._is_collected(shelf) else 0)

    def _batch(self, shelf: Shelf) -> int:
        if shelf.tier.max_bytes is None or self._is_collected(shelf):
            return 0
        return int(shelf.tier.max_bytes * _EVICTION_BATCH)


def verifies(data: memoryview, id: BlockId) -> bool:
    try:
        decode(data, id)
    except CorruptBlock:
        return False
    return True
