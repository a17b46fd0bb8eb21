"""Reads what a plan names, in order, verified, several objects ahead of its consumer.

What a file system does shortens the prefix and is counted; it never raises. Rows come in order of
position, so what was consumed is a valid prefix wherever it stops. The END comes first: for models
that need it, it decides how far reading the rows makes sense. With a destination rows are read to
where they are wanted, on the threads of the tier; what does not fit there, or is in staging memory,
is handed to `consume`.

Any thread; `consume` and all of a destination but its `memory` run on the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from cache_store.format.block import Block, BlockId
from cache_store.index.walk import Hop
from cache_store.read.destination import Destination, Lending
from cache_store.read.fetch import Fetch
from cache_store.read.read_ahead import LOCAL_READS, ByteBudget, ReadAhead
from cache_store.records import Fetched, Plan
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack
from cache_store.write.copier import TierCopier
from cache_store.write.staging import copied
from cache_store.write.writer import Writer

Consume = Callable[[Block, int], None]


@dataclass(slots=True)
class _Read:
    """One read under way."""

    plan: Plan
    consume: Consume
    deadline_ns: int
    lending: Lending | None = None
    n_tokens: int = 0
    slowest: int = -1  # index of the slowest tier used; -1 for none
    row_reads: dict[int, list[float]] = field(default_factory=dict)  # by tier index the seconds of each
    used: list[BlockId] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reader:
    """`promoter` copies what a slower tier gave up to the fastest; None where there is one tier."""

    stack: TierStack
    writer: Writer
    promoter: TierCopier | None
    budget: ByteBudget
    reads_in_flight: int
    decoding: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(LOCAL_READS))

    def read(self, plan: Plan, consume: Consume, deadline_ns: int, destination: Destination | None = None) -> Fetched:
        began_ns = time.monotonic_ns()
        read = _Read(plan, consume, deadline_ns, None if destination is None else Lending(destination, self.decoding))
        try:
            end = self._read_to_an_end(read) if plan.need_end else self._read_all(read)
        finally:
            if read.lending is not None:
                read.lending.end(deadline_ns)
        self.stack.touch(read.used)
        self.stack.tally.add("tokens", "hit", read.n_tokens)
        return Fetched(
            n_tokens=read.n_tokens,
            logits=None if end is None else end.logits,
            checkpoint=None if end is None else end.checkpoint,
            seconds=(time.monotonic_ns() - began_ns) / 1e9,
            tier=self.stack.tiers[read.slowest].label if read.slowest >= 0 else "",
        )

    def get(self, id: BlockId, deadline_ns: int) -> Block | None:
        """A copy of one object, looked for in every tier by its name."""
        known = self.stack.holders(id)
        others = [tier for tier in self.stack.tiers if tier.available and tier not in known]
        fetch = Fetch(self.stack, self.writer, id, known + others)
        try:
            block = fetch.result(deadline_ns)
            return None if block is None else copied(block)
        finally:
            fetch.free()

    def _read_all(self, read: _Read) -> Block | None:
        """Rows, and the END if it is where they stop."""
        end = self._first_of(read, read.plan.ends)
        self._read_rows(read, read.plan.n_tokens)
        return end if end is not None and end.id.start == read.n_tokens else None

    def _read_to_an_end(self, read: _Read) -> Block | None:
        """Rows up to an END, the longest that can be had with all of them."""
        end = self._first_of(read, read.plan.ends)
        if end is not None:
            self._read_rows(read, end.id.start)
            if read.n_tokens < end.id.start:
                end = self._first_of(read, [id for id in read.plan.ends if id.start <= read.n_tokens])
        read.n_tokens = 0 if end is None else end.id.start
        return end

    def _first_of(self, read: _Read, ends: Iterable[BlockId]) -> Block | None:
        """A copy of the first END that can be had."""
        for id in ends:
            fetch = Fetch(self.stack, self.writer, id)
            try:
                block = fetch.result(read.deadline_ns)
                if block is not None:
                    end = copied(block)
                    self._use(read, fetch)
                    return end
            finally:
                fetch.free()
        return None

    def _read_rows(self, read: _Read, n_tokens: int) -> None:
        hops = [hop for hop in read.plan.hops if hop.id.start < n_tokens]

        def start(hop: Hop) -> Fetch:
            is_whole = hop.n_use == hop.id.n_tokens and hop.id.start + hop.n_use <= n_tokens
            return Fetch(self.stack, self.writer, hop.id, None, read.lending if is_whole else None, self._promotes)

        began_ns = time.monotonic_ns()
        with closing(ReadAhead(hops, self.stack, start, self.budget, self.reads_in_flight)) as ahead:
            for i, hop in enumerate(hops):
                if not self._consume(read, ahead.next(), min(hop.n_use, n_tokens - hop.id.start)):
                    if not self.stack.index.has(hop.id):
                        self._disown([later.id for later in hops[i + 1 :]])
                    return
        self._learn_overlap(read, (time.monotonic_ns() - began_ns) / 1e9)

    def _learn_overlap(self, read: _Read, wall_s: float) -> None:
        """From a series of reads of one tier."""
        if len(read.row_reads) == 1:
            ((index, seconds),) = read.row_reads.items()
            if len(seconds) > 1:
                self.stack.tiers[index].speed.observe_series(wall_s, sum(seconds))

    def _disown(self, ids: list[BlockId]) -> None:
        """What lies beyond a gap is not counted on any more: the next save hands all of it over
        again, and what is still good is adopted.

        Otherwise a chain whose files were lost or damaged would heal by one object per restore.
        """
        for id in ids:
            for tier_index in self.stack.index.tiers_of(id):
                if tier_index != self.stack.staged:
                    self.stack.index.remove(id, tier_index)

    def _consume(self, read: _Read, fetch: Fetch, n_use: int) -> bool:
        """False when this is where the prefix ends."""
        block = fetch.result(read.deadline_ns)
        if block is None:
            return False
        wanted = read.plan.chain.ids[fetch.id.start : fetch.id.start + n_use]
        if not np.array_equal(block.tokens[:n_use], wanted):
            # The index was told something else, by a snapshot that lies.
            self.stack.index.learn(fetch.id, block.tokens)
            self.stack.tally.add("mismatched", "tokens")
            return False
        if fetch.placed and read.lending is not None:
            read.lending.destination.received(fetch.id.start, n_use)
        else:
            read.consume(block, n_use)
        if fetch.tier is not None:
            read.row_reads.setdefault(fetch.tier.index, []).append(fetch.seconds)
        read.n_tokens = fetch.id.start + n_use
        self._use(read, fetch)
        return True

    def _use(self, read: _Read, fetch: Fetch) -> None:
        read.used.append(fetch.id)
        if fetch.tier is None:
            return
        fetch.tier.count("hits")
        read.slowest = max(read.slowest, fetch.tier.index)
        if self._promotes(fetch.tier) and self.promoter is not None and (loaded := fetch.take_loaded()) is not None:
            self.promoter.promote(fetch.id, loaded)

    def _promotes(self, tier: GuardedTier) -> bool:
        return self.promoter is not None and tier.index > 0
