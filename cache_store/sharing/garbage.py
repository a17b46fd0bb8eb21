"""Collects garbage in one tier for all processes that share it: lists it, then deletes what is
worth least, down to a share of the budget.

Whoever calls it makes sure that no other process does so meanwhile; two at once harm nothing but
each other's choice. Leaves go first, as everywhere (`index/eviction.py`): an object is deleted
after all that hangs on it, and when a deletion fails nothing above it follows. So a chain never has
a gap, wherever a collection ends. Objects that are pinned here, or wait here to be copied down,
stay. What another process continues at the very moment in which its end goes is out of reach, and
worth nothing until that is saved again.

What dead writers left behind and objects of an older format go first; they count for no budget.

Deletions run side by side, since an object store takes tens of milliseconds for each, on daemon
threads of their own: the caller is back at its deadline whatever the file system does, and what is
still under way then settles its own accounts. All collections of a tier share these threads, so one
that hangs for days does not take a few more each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from cache_store.errors import StoreError
from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey
from cache_store.index.index import StoredObject
from cache_store.records import GarbageReport
from cache_store.sharing.maintenance import TEMP_AGE_S, Maintenance
from cache_store.tiers.deadline_pool import DeadlinePool
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

T = TypeVar("T")

_AT_ONCE = 8  # deletions: ten objects a second become eighty, and a disk does not mind
_CHOSEN = 256  # victims chosen at a time: the index is locked meanwhile, and hits and deltas change the choice

Prefix = tuple[ChainKey, int]  # its key and its length


def garbage_pool(tier: GuardedTier) -> DeadlinePool:
    """The threads that collect the garbage of a tier; idle ones end when it is closed."""
    return DeadlinePool(f"garbage-{tier.label}", _AT_ONCE)


class GarbageCollection:
    """One run over one tier. `listing_age_s`: a listing that the index has had is good enough when
    it is no older.
    """

    def __init__(
        self,
        stack: TierStack,
        maintenance: Maintenance,
        tier: GuardedTier,
        pool: DeadlinePool,
        target_share: float,
        listing_age_s: float,
        deadline_ns: int,
    ) -> None:
        self._stack = stack
        self._maintenance = maintenance
        self._tier = tier
        self._listing_age_s = listing_age_s
        self._deadline_ns = deadline_ns
        self._target = None if tier.max_bytes is None else int(tier.max_bytes * target_share)
        self._pool = pool
        self._swept = self._evicted = self._evicted_bytes = 0

    def run(self) -> GarbageReport:
        began_ns = time.monotonic_ns()
        failure = ""
        try:
            self._swept = self._call(lambda: self._tier.sweep_now(TEMP_AGE_S))
            if self._maintenance.listing_age_s(self._tier) > self._listing_age_s:
                self._call(lambda: self._maintenance.list_again(self._tier))
            self._sweep_outdated()
            while victims := self._choose():
                self._delete(victims)
        except StoreError as error:
            failure = str(error)
        return self._report(began_ns, failure)

    def _sweep_outdated(self) -> None:
        calls = [self._pool.call(lambda: self._maintenance.sweep_outdated(self._tier)) for _ in range(_AT_ONCE)]
        for call in calls:
            self._swept += call.wait(self._deadline_ns)

    def _report(self, began_ns: int, failure: str) -> GarbageReport:
        return GarbageReport(
            tier=self._tier.label,
            n_bytes=self._stack.index.bytes_in(self._tier.index),
            target_bytes=self._target,
            evicted=self._evicted,
            evicted_bytes=self._evicted_bytes,
            swept=self._swept,
            seconds=(time.monotonic_ns() - began_ns) / 1e9,
            is_done=not failure and self._excess() <= 0,
            failure=failure,
        )

    def _excess(self) -> int:
        return 0 if self._target is None else self._stack.index.bytes_in(self._tier.index) - self._target

    def _choose(self) -> list[StoredObject]:
        """The next few to go, in an order in which nothing is deleted before what hangs on it."""
        excess, tier_index = self._excess(), self._tier.index
        if excess <= 0:
            return []
        mean_bytes = self._stack.index.bytes_in(tier_index) // max(1, self._stack.index.objects_in(tier_index))
        return self._stack.index.victims(tier_index, min(excess, max(1, mean_bytes) * _CHOSEN), self._stack.may_go)

    def _delete(self, victims: Sequence[StoredObject]) -> None:
        """Wave by wave: in one wave nothing hangs on anything else. Raises `StoreError` when one
        could not be deleted.
        """
        wave: list[StoredObject] = []
        hung_on: set[Prefix] = set()
        for victim in victims:
            if len(wave) == _AT_ONCE or _end(victim.id) in hung_on:
                self._delete_together(wave)
                wave, hung_on = [], set()
            wave.append(victim)
            hung_on.add(_beginning(victim.id))
        self._delete_together(wave)

    def _delete_together(self, wave: Sequence[StoredObject]) -> None:
        calls = [self._pool.call(partial(self._stack.discard, self._tier, victim.id, "garbage")) for victim in wave]
        failures: list[StoreError] = []
        for victim, call in zip(wave, calls, strict=True):
            try:
                was_there = call.wait(self._deadline_ns)
            except StoreError as error:
                failures.append(error)
                continue
            self._evicted += was_there
            self._evicted_bytes += victim.n_bytes if was_there else 0
        if failures:
            raise failures[0]

    def _call(self, function: Callable[[], T]) -> T:
        return self._pool.call(function).wait(self._deadline_ns)


def _beginning(id: BlockId) -> Prefix:
    """What an object hangs on."""
    return (id.key, id.start) if id.kind is Kind.END else (id.parent, id.start)


def _end(id: BlockId) -> Prefix | None:
    """What others may hang on."""
    return (id.key, id.start + id.n_tokens) if id.kind is Kind.ROWS else None
