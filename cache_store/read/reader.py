"""Reads what a plan names, in order, verified, two objects ahead of its consumer.

What a file system does shortens the prefix and is counted; it never raises. Rows come in order of
position, so what was consumed is a valid prefix wherever it stops. The END comes first: for models
that need it, it decides how far reading the rows makes sense. Measured on page cache, blocks of 3
MB: of a block's time a half is the file system's copy, a fifth the digest, a fifth the interpreter,
the rest the hop to the tier's thread, which reading ahead hides as it hides, on object stores, most
of the latency. More than two ahead costs cache misses.

Any thread; `consume` runs on the caller's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from cache_store.format.block import Block, BlockId
from cache_store.index.walk import Hop
from cache_store.read.fetch import Fetch
from cache_store.records import Fetched, Plan
from cache_store.tiers.stack import TierStack
from cache_store.write.copier import TierCopier
from cache_store.write.staging import copied
from cache_store.write.writer import Writer

Consume = Callable[[Block, int], None]

READ_AHEAD = 2


class Reader:
    def __init__(self, stack: TierStack, writer: Writer, promoter: TierCopier | None) -> None:
        self._stack = stack
        self._writer = writer
        self._promoter = promoter

    def read(self, plan: Plan, consume: Consume, deadline_ns: int) -> Fetched:
        return _Reading(self._stack, self._writer, self._promoter, plan, deadline_ns).run(consume)

    def get(self, id: BlockId, deadline_ns: int) -> Block | None:
        """A copy of one object, looked for in every tier by its name."""
        known = self._stack.holders(id)
        others = [tier for tier in self._stack.tiers if tier.available and tier not in known]
        fetch = Fetch(self._stack, self._writer, id, known + others)
        try:
            block = fetch.result(deadline_ns)
            return None if block is None else copied(block)
        finally:
            fetch.free()


class _Reading:
    """The state of one read."""

    def __init__(
        self, stack: TierStack, writer: Writer, promoter: TierCopier | None, plan: Plan, deadline_ns: int
    ) -> None:
        self._stack = stack
        self._writer = writer
        self._promoter = promoter
        self._plan = plan
        self._deadline_ns = deadline_ns
        self._n_bytes = self._corrupt = self._n_tokens = 0
        self._slowest = -1
        self._used: list[BlockId] = []

    def run(self, consume: Consume) -> Fetched:
        began_ns = time.monotonic_ns()
        ends = [] if self._plan.end is None else [self._plan.end, *self._plan.other_ends]
        end = self._first_of(ends if self._plan.need_end else ends[:1])
        if end is not None or not self._plan.need_end:
            self._read_rows(self._plan.n_tokens if end is None else end.id.start, consume)
        if end is not None and self._plan.need_end and self._n_tokens < end.id.start:
            end = self._first_of([id for id in ends if id.start <= self._n_tokens])
        if self._plan.need_end:
            self._n_tokens = 0 if end is None else end.id.start
        elif end is not None and end.id.start != self._n_tokens:
            end = None
        self._stack.touch(self._used)
        self._stack.tally.add("tokens", "hit", self._n_tokens)
        return Fetched(
            n_tokens=self._n_tokens,
            logits=None if end is None else end.logits,
            checkpoint=None if end is None else end.checkpoint,
            n_bytes=self._n_bytes,
            seconds=(time.monotonic_ns() - began_ns) / 1e9,
            tier=self._stack.tiers[self._slowest].label if self._slowest >= 0 else "",
            corrupt=self._corrupt,
        )

    def _first_of(self, ends: list[BlockId]) -> Block | None:
        """A copy of the first END that can be had."""
        for id in ends:
            fetch = Fetch(self._stack, self._writer, id)
            try:
                block = self._result(fetch)
                if block is not None:
                    end = copied(block)
                    self._use(fetch)
                    return end
            finally:
                self._corrupt += fetch.corrupt
                fetch.free()
        return None

    def _read_rows(self, n_tokens: int, consume: Consume) -> None:
        ahead: deque[tuple[Hop, Fetch]] = deque()
        hops = deque(hop for hop in self._plan.hops if hop.id.start < n_tokens)
        try:
            while hops or ahead:
                while hops and len(ahead) <= READ_AHEAD:
                    ahead.append((hops[0], Fetch(self._stack, self._writer, hops.popleft().id)))
                hop, fetch = ahead[0]
                if not self._consume(fetch, min(hop.n_use, n_tokens - hop.id.start), consume):
                    if not self._stack.index.has(hop.id):
                        self._disown(
                            [later.id for later, _ in ahead if later is not hop] + [later.id for later in hops]
                        )
                    return
                ahead.popleft()
        finally:
            for _, fetch in ahead:
                fetch.free()

    def _disown(self, ids: list[BlockId]) -> None:
        """What lies beyond a gap is not counted on any more: the next save hands all of it over
        again, and what is still good is adopted.

        Otherwise a chain whose files were lost or damaged would heal by one object per restore.
        """
        for id in ids:
            for tier_index in self._stack.index.tiers_of(id):
                if tier_index != self._stack.staged:
                    self._stack.index.remove(id, tier_index)

    def _consume(self, fetch: Fetch, n_use: int, consume: Consume) -> bool:
        """False when this is where the prefix ends."""
        try:
            block = self._result(fetch)
            if block is None:
                return False
            wanted = self._plan.chain.ids[fetch.id.start : fetch.id.start + n_use]
            if not np.array_equal(block.tokens[:n_use], wanted):
                # the index was told something else, by a snapshot that lies
                self._stack.index.learn(fetch.id, block.tokens)
                self._stack.tally.add("mismatched", "tokens")
                return False
            consume(block, n_use)
            self._n_tokens = fetch.id.start + n_use
            self._use(fetch)
            return True
        finally:
            self._corrupt += fetch.corrupt
            fetch.free()

    def _result(self, fetch: Fetch) -> Block | None:
        return fetch.result(self._deadline_ns) if time.monotonic_ns() < self._deadline_ns else None

    def _use(self, fetch: Fetch) -> None:
        self._used.append(fetch.id)
        self._n_bytes += fetch.n_bytes
        if fetch.tier is None:
            return
        fetch.tier.count("hits")
        self._slowest = max(self._slowest, fetch.tier.index)
        if self._promoter is not None and fetch.tier.index > 0 and (loaded := fetch.take_loaded()) is not None:
            self._promoter.promote(fetch.id, loaded)
