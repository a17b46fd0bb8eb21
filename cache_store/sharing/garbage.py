"""Collects garbage in one tier for all processes that share it: lists it, then deletes what is
worth least, down to a share of the budget.

Whoever calls it makes sure that no other process does so meanwhile; two at once harm nothing but
each other's choice. Leaves go first, as everywhere (`index/eviction.py`): an object is deleted
after all that hangs on it, and when a deletion fails nothing above it follows. So a chain never has
a gap, wherever a collection ends. Objects that somebody has pinned, or that wait here to be copied
down, stay. What another process continues at the very moment in which its end goes is out of reach, and
worth nothing until that is saved again.

What dead writers left behind and objects of an older format go first; they count for no budget.

Deletions run side by side, since an object store takes tens of milliseconds for each, on daemon
threads of their own: the caller is back at its deadline whatever the file system does, and what is
still under way then settles its own accounts. All collections of a tier share these threads, so one
that hangs for days does not take a few more each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cache_store.errors import StoreError
from cache_store.format.block import Kind
from cache_store.format.keys import ChainKey
from cache_store.index.columns import StoredObject
from cache_store.records import GarbageReport
from cache_store.sharing.maintenance import TEMP_AGE_S, Maintenance
from cache_store.tiers.deadline_pool import DeadlinePool
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

_AT_ONCE = 8  # deletions: ten objects a second become eighty, and a disk does not mind
_CHOSEN = 256  # victims chosen at a time: the index is locked meanwhile, and hits and deltas change the choice


def garbage_pool(tier: GuardedTier) -> DeadlinePool:
    """The threads that collect the garbage of a tier; idle ones end when it is closed."""
    return DeadlinePool(f"garbage-{tier.label}", _AT_ONCE)


@dataclass(slots=True)
class GarbageCollection:
    """One run over one tier. `listing_age_s`: a listing that the index has had is good enough when
    it is no older.
    """

    stack: TierStack
    maintenance: Maintenance
    tier: GuardedTier
    pool: DeadlinePool
    target_share: float
    listing_age_s: float
    deadline_ns: int
    swept: int = 0
    evicted: int = 0
    evicted_bytes: int = 0

    def run(self) -> GarbageReport:
        failure = ""
        try:
            self.swept = self.pool.call(lambda: self.tier.sweep_now(TEMP_AGE_S)).wait(self.deadline_ns)
            if self.maintenance.listing_age_s(self.tier) > self.listing_age_s:
                self.pool.call(lambda: self.maintenance.list_again(self.tier)).wait(self.deadline_ns)
            self._sweep_outdated()
            while victims := self._choose():
                self._delete(victims)
        except StoreError as error:
            failure = str(error)
        return self._report(failure)

    def _sweep_outdated(self) -> None:
        calls = [self.pool.call(lambda: self.maintenance.sweep_outdated(self.tier)) for _ in range(_AT_ONCE)]
        for call in calls:
            self.swept += call.wait(self.deadline_ns)

    def _report(self, failure: str) -> GarbageReport:
        return GarbageReport(
            n_bytes=self.stack.index.bytes_in(self.tier.index),
            target_bytes=self._target,
            evicted=self.evicted,
            evicted_bytes=self.evicted_bytes,
            swept=self.swept,
            is_done=not failure and self._excess() <= 0,
            failure=failure,
        )

    @property
    def _target(self) -> int | None:
        return None if self.tier.max_bytes is None else int(self.tier.max_bytes * self.target_share)

    def _excess(self) -> int:
        return 0 if self._target is None else self.stack.index.bytes_in(self.tier.index) - self._target

    def _choose(self) -> list[StoredObject]:
        """The next few to go, in an order in which nothing is deleted before what hangs on it."""
        excess, tier_index = self._excess(), self.tier.index
        if excess <= 0:
            return []
        mean_bytes = self.stack.index.bytes_in(tier_index) // max(1, self.stack.index.objects_in(tier_index))
        self.pool.call(lambda: self.stack.before_evicting(self.tier)).wait(self.deadline_ns)
        return self.stack.index.victims(tier_index, min(excess, max(1, mean_bytes) * _CHOSEN), self.stack.may_go)

    def _delete(self, victims: Sequence[StoredObject]) -> None:
        """Wave by wave: in one wave nothing hangs on anything else. Raises `StoreError` when one
        could not be deleted.
        """
        wave: list[StoredObject] = []
        hung_on: set[tuple[ChainKey, int]] = set()  # prefixes: their keys and lengths
        for victim in victims:
            id = victim.id
            is_hung_on = id.kind is Kind.ROWS and (id.key, id.start + id.n_tokens) in hung_on
            if is_hung_on or len(wave) == _AT_ONCE:
                self._delete_together(wave)
                wave, hung_on = [], set()
            wave.append(victim)
            hung_on.add((id.parent, id.start))
        self._delete_together(wave)

    def _delete_together(self, wave: Sequence[StoredObject]) -> None:
        calls = [self.pool.call(partial(self.stack.discard, self.tier, victim.id, "garbage")) for victim in wave]
        failures: list[StoreError] = []
        for victim, call in zip(wave, calls, strict=True):
            try:
                was_there = call.wait(self.deadline_ns)
            except StoreError as error:
                failures.append(error)
                continue
            self.evicted += was_there
            self.evicted_bytes += victim.n_bytes if was_there else 0
        if failures:
            raise failures[0]
