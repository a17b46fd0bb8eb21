"""All tiers and their index, and the only code that changes both: whatever puts, evicts or condemns
an object goes through here.

The index follows the tier: an object is added after it was published and removed after it was
deleted, so the index errs towards what is not there any more (a miss, nothing worse). Any thread;
nothing is done under a lock but counting. What is staged in memory (accepted, not yet published) is
in the index as a tier of its own, `staged`, behind the others. What changes on a tier is noted for
others (`DeltaLog`).

Every process that writes evicts by its own index. Where one process collects garbage for all, the
others leave it to that one (`leave_garbage`): until that promise runs out they evict beyond a slack
only, and no more than a write needs.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from cache_store.errors import CorruptBlock, Damage, StoreError, StoreFull, TierError
from cache_store.format.block import BlockId, Kind
from cache_store.format.file import decode
from cache_store.format.keys import ChainKey
from cache_store.in_flight import InFlight
from cache_store.index.columns import StoredObject
from cache_store.index.delta import DeltaLog
from cache_store.index.index import Index
from cache_store.tiers.base import NoSpace
from cache_store.tiers.guarded import GuardedTier

_EVICTION_BATCH = 1 / 64  # of a budget: a full tier evicts now and then, not once per object
# of a budget that another process keeps: more than is written between two collections, as a rule
_SLACK = 1 / 20
_MAX_GAPS = 65_536


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


class TierStack:
    """`in_flight` has the objects that `flush` waits for, `pending_copies` those that wait to be
    copied down. `clock` is monotonic, in ns. `before_evicting` is called, on a background thread,
    before objects of a tier are chosen to go: it finds out what is pinned there.
    """

    def __init__(
        self, tiers: Sequence[GuardedTier], index: Index, delta_log: DeltaLog, clock: Callable[[], int]
    ) -> None:
        self.tiers = tuple(tiers)
        self.index = index
        self._delta_log = delta_log
        self._clock = clock
        self._others_collect_until_ns = [clock()] * len(self.tiers)
        self.in_flight = InFlight()
        self.pending_copies = InFlight()
        self.tally = Tally()
        self.before_evicting: Callable[[GuardedTier], object] = lambda tier: None
        self.staged = len(self.tiers)
        # by the prefix that it leads to, the object that found no room; one writer at a time
        self._gaps: list[dict[ChainKey, BlockId]] = [{} for _ in self.tiers]

    def holders(self, id: BlockId) -> list[GuardedTier]:
        """Available tiers that have the object as far as the index knows, fastest first."""
        tiers = self.index.tiers_of(id)
        return [tier for tier in self.tiers if tier.index in tiers and tier.available]

    def put(self, tier: GuardedTier, id: BlockId, tokens: NDArray[np.uint32] | None, data: memoryview) -> None:
        """Publish an object, making room first. Background. Raises `StoreFull` or `TierError`.

        What continues an object that found no room finds none either: it would evict others and
        could not be reached. That ends when somebody else has stored such an object.
        """
        gaps = self._gaps[tier.index]
        if self._is_behind_gap(tier, id) or not self.make_room(tier, data.nbytes, id.parent):
            _note_gap(gaps, id)
            raise StoreFull(f"{tier.label}: no room for {data.nbytes} bytes")
        try:
            self._publish(tier, id, data)
        except NoSpace:
            if not self.evict(tier, max(data.nbytes, self._batch(tier)), "no_space"):
                _note_gap(gaps, id)
                raise
            self._publish(tier, id, data)
        self.index.add(id, tier.index, data.nbytes, tokens)
        self._delta_log.wrote(id, tier.index, data.nbytes)
        gaps.pop(id.key, None)

    def touch(self, ids: Collection[BlockId]) -> None:
        """This process used `ids`."""
        self.index.touch(ids)
        self._delta_log.used(ids)

    def _is_behind_gap(self, tier: GuardedTier, id: BlockId) -> bool:
        gap = self._gaps[tier.index].get(id.parent)
        return gap is not None and not self.index.leads_to_end_of(gap, tier.index)

    def _publish(self, tier: GuardedTier, id: BlockId, data: memoryview) -> None:
        if tier.local:
            tier.publish_now(id.name, data, lambda found: _verifies(found, id))
        # a PUT is whole or absent: what is there need not be read back to be believed
        elif tier.stat_now(id.name) is None:
            tier.publish_now(id.name, data)

    def make_room(self, tier: GuardedTier, n_bytes: int, spare: ChainKey | None = None) -> bool:
        """Evict until `n_bytes` more fit, but nothing that leads to `spare`. Background."""
        excess = self.index.bytes_in(tier.index) + n_bytes - self._budget(tier)
        if excess <= 0:
            return True
        if n_bytes > self._budget(tier):
            return False
        self.before_evicting(tier)
        wanted = max(excess, self._batch(tier))
        # A chain that is larger than its tier would eat its own beginning.
        freed = self._evict(
            tier, self.index.victims(tier.index, wanted, lambda v: v.id.key != spare and self.may_go(v)), "budget"
        )
        if freed < excess and not self._copies_soon(tier):
            freed += self._evict(
                tier, self.index.victims(tier.index, wanted - freed, lambda v: v.id.key != spare), "uncopied"
            )
        return freed >= excess

    def _copies_soon(self, tier: GuardedTier) -> bool:
        """Whether copies down may be waited for: a slow tier must not block the one above."""
        below = self.tiers[tier.index + 1 : tier.index + 2]
        return any(lower.local and lower.writable for lower in below)

    def fits(self, tier: GuardedTier, n_bytes: int) -> bool:
        """Whether there is room without evicting anything, by anyone."""
        return tier.max_bytes is None or self.index.bytes_in(tier.index) + n_bytes <= tier.max_bytes

    def may_go(self, victim: StoredObject) -> bool:
        """Whether nobody waits for it to be copied down."""
        return victim.id not in self.pending_copies

    def leave_garbage(self, tier: GuardedTier, for_s: float) -> None:
        """For `for_s` from now another process keeps this tier to its budget; 0 takes that back."""
        self._others_collect_until_ns[tier.index] = self._clock() + int(for_s * 1e9)

    def evict(self, tier: GuardedTier, n_bytes: int, cause: str, *, only_if_lower: bool = False) -> int:
        """Delete at least `n_bytes`, or what may go; the bytes that went. Background."""
        self.before_evicting(tier)
        below = range(tier.index + 1, self.staged)
        may_go = (lambda victim: any(index in below for index in victim.tier_indices)) if only_if_lower else None
        return self._evict(tier, self.index.victims(tier.index, n_bytes, may_go), cause)

    def _evict(self, tier: GuardedTier, victims: Sequence[StoredObject], cause: str) -> int:
        freed = 0
        for victim in victims:
            try:
                self.discard(tier, victim.id, cause)
            except TierError:
                break
            freed += victim.n_bytes
        return freed

    def discard(self, tier: GuardedTier, id: BlockId, cause: str) -> bool:
        """Delete and forget; False when it had been deleted. Background. Raises `TierError`."""
        was_there = tier.delete_now(id.name)
        self.index.remove(id, tier.index)
        if was_there:
            self.tally.add("evicted", cause)
            self._delta_log.removed(id, tier.index)
        return was_there

    def condemn(self, tier: GuardedTier, id: BlockId, damage: Damage, deadline_ns: int | None = None) -> None:
        """A corrupt object: count it, forget it, delete it. Foreground; background without a deadline."""
        self.tally.add("corrupt", damage)
        self.index.remove(id, tier.index)
        self._delta_log.removed(id, tier.index)
        try:
            if deadline_ns is None:
                tier.delete_now(id.name)
            else:
                tier.delete(id.name, deadline_ns)
        except StoreError:
            self.tally.add("undeleted", tier.label)

    def _others_collect(self, tier: GuardedTier) -> bool:
        return self._clock() < self._others_collect_until_ns[tier.index]

    def _budget(self, tier: GuardedTier) -> int:
        if tier.max_bytes is None:
            return 1 << 62
        return tier.max_bytes + (int(tier.max_bytes * _SLACK) if self._others_collect(tier) else 0)

    def _batch(self, tier: GuardedTier) -> int:
        if tier.max_bytes is None or self._others_collect(tier):
            return 0
        return int(tier.max_bytes * _EVICTION_BATCH)


def _note_gap(gaps: dict[ChainKey, BlockId], id: BlockId) -> None:
    if id.kind is Kind.ROWS:
        if len(gaps) >= _MAX_GAPS:
            gaps.clear()
        gaps[id.key] = id


def _verifies(data: memoryview, id: BlockId) -> bool:
    try:
        decode(data, id)
    except CorruptBlock:
        return False
    return True
