"""Finds the longest stored prefix of a prompt: by the index, then by looking where the index ends.

The index may not know what other processes wrote. So where its way ends the tiers are asked,
fastest first, and what they answer is added and walked on from, until nobody knows more or the
deadline passes:

    the next full block     by its exact name (a full block's name follows from the prompt alone),
                            then those after it
    whatever else hangs     one listing by prefix: tails, ENDs, blocks that share their first tokens
                            only
    tokens not yet known    of blocks that a listing named: their heads are read, for a hit to the
                            token
    somebody else's claim   on the next full block: waited for, within the caller's bound

One round walks the index once. An object store is asked only where a whole block could be won: the
question alone takes tens of milliseconds, on every turn of a chat. Roots are not listed once the
tiers have been (at start): everything hangs on them, and the first block has an exact name. What is
staged in memory is in the index like everything else and read from there: nobody waits for a write
of our own.

Any thread; never raises for what a file system does.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from cache_store.errors import CorruptBlock, Damage, StoreError
from cache_store.format.block import BlockId
from cache_store.format.file import PEEK_BYTES, peek_tokens
from cache_store.format.keys import BLOCK_TOKENS, TokenChain
from cache_store.index.index import StoredObject
from cache_store.index.walk import Hop, Path
from cache_store.records import Plan
from cache_store.sharing.claims import Claims
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack
from cache_store.write.worker import deadline_in

_POLL_S = 0.02  # how often a claimed block is looked for: a hundredth of the prefill that it stands for
_HEADS = 8  # heads read per lookup: more branches than that at one point are rare, and the next lookup goes on
_STATS_AHEAD = 16


@dataclass(slots=True)
class _Lookup:
    """One lookup under way. `probed`: (tier index, length of prefix) that need no second look."""

    chain: TokenChain
    need_end: bool
    deadline_ns: int
    wait_until_ns: int
    path: Path
    probed: set[tuple[int, int]] = field(default_factory=set)
    peeked: set[BlockId] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether all of the prompt is stored, and its END."""
        n, ends = len(self.chain), self.path.ends
        return self.path.n_tokens == n and bool(ends) and ends[-1].start == n

    @property
    def next_block(self) -> int:
        """The block boundary at or before the end of what whole objects cover."""
        return self.path.n_whole // BLOCK_TOKENS * BLOCK_TOKENS

    def full_blocks(self, start: int, limit: int) -> list[BlockId]:
        """The ids of up to `limit` full blocks of the prompt from the block boundary `start` on."""
        stops = range(start + BLOCK_TOKENS, len(self.chain) + 1, BLOCK_TOKENS)[:limit]
        return [BlockId.of_rows(self.chain, stop - BLOCK_TOKENS, stop) for stop in stops]

    @property
    def in_time(self) -> bool:
        return time.monotonic_ns() < self.deadline_ns


@dataclass(frozen=True, slots=True)
class PrefixSearch:
    """`loaded` is set once every tier has been listed; `closing` ends waits."""

    stack: TierStack
    claims: Claims
    loaded: threading.Event
    closing: threading.Event
    min_probe_tokens: int

    def lookup(self, chain: TokenChain, *, need_end: bool, share_wait_s: float, deadline_ns: int) -> Plan:
        self.stack.tally.add("tokens", "looked_up", len(chain))
        wait_until_ns = deadline_in(share_wait_s)
        lookup = _Lookup(chain, need_end, deadline_ns, wait_until_ns, self.stack.index.longest_prefix(chain))
        if len(chain) >= self.min_probe_tokens:
            while not lookup.is_complete and self._goes_on(lookup):
                pass
        return self._plan_to_an_end(lookup) if need_end else self._plan(lookup)

    # --- exploring --------------------------------------------------------------------------------

    def _goes_on(self, lookup: _Lookup) -> bool:
        """One round of asking, then the way anew; True when the next round may find more. What
        another thread has listed in the meantime is nothing new to the round, but longer for it.
        """
        before = lookup.path
        found = lookup.in_time and (self._probe(lookup) or self._peek(lookup))
        found = found or self._wait_for_claimed(lookup)
        lookup.path = self.stack.index.longest_prefix(lookup.chain)
        return found or lookup.path.reaches_beyond(before)

    def _probe(self, lookup: _Lookup) -> bool:
        """Ask the tiers what continues the known way; True when one of them named something new."""
        n_unknown = len(lookup.chain) - lookup.path.n_tokens
        for tier in self.stack.tiers:
            if not tier.local and n_unknown < BLOCK_TOKENS and not lookup.need_end:
                continue  # asking an object store takes longer than computing what it could spare
            for start in sorted({lookup.next_block, lookup.path.n_whole}):
                if (tier.index, start) not in lookup.probed and tier.available and lookup.in_time:
                    lookup.probed.add((tier.index, start))
                    if self._probe_tier(lookup, tier, start):
                        return True
        return False

    def _probe_tier(self, lookup: _Lookup, tier: GuardedTier, start: int) -> bool:
        try:
            if start % BLOCK_TOKENS == 0 and not lookup.need_end and self._follow(lookup, tier, start):
                return True
            if start == 0 and self.loaded.is_set():
                return lookup.need_end and self._follow(lookup, tier, start, limit=1)
            return self._list_children(lookup, tier, start)
        except StoreError:
            return False

    def _follow(self, lookup: _Lookup, tier: GuardedTier, start: int, limit: int = 1 << 20) -> bool:
        """Add the full blocks of the prompt from `start` on that this tier has without a gap."""
        n_found = 0
        while n_found < limit and (ids := lookup.full_blocks(start, min(limit, 1 if n_found == 0 else _STATS_AHEAD))):
            self.stack.tally.add("probes", tier.label, len(ids))
            found = tier.stats_until_missing([id.name for id in ids], lookup.deadline_ns)
            for id, stat in zip(ids, found, strict=False):
                self.stack.index.add(id, tier.index, stat.n_bytes)
            n_found += len(found)
            start += BLOCK_TOKENS * len(ids)
            if len(found) < len(ids):
                break
        return n_found > 0

    def _list_children(self, lookup: _Lookup, tier: GuardedTier, start: int) -> bool:
        self.stack.tally.add("probes", tier.label)
        is_new = False
        prefix = BlockId.children_prefix(lookup.chain.root, lookup.chain.key_at(start))
        for stat in tier.listing(prefix, lookup.deadline_ns):
            id = BlockId.parse(stat.name)
            if id is not None:
                is_new = is_new or not self.stack.index.has(id)
                self.stack.index.add(id, tier.index, stat.n_bytes)
        return is_new

    # --- tokens of blocks that are known by name only ---------------------------------------------

    def _peek(self, lookup: _Lookup) -> bool:
        """Read the tokens of blocks that might share more; True when some were learnt."""
        wanted = [id for id in lookup.path.unknown if id not in lookup.peeked][: max(0, _HEADS - len(lookup.peeked))]
        lookup.peeked.update(wanted)
        return sum(self.learn(id, lookup.deadline_ns) for id in wanted if lookup.in_time) > 0

    def learn(self, id: BlockId, deadline_ns: int) -> bool:
        """Read the tokens of a ROWS object into the index, from whichever tier has it in time."""
        for tier in self.stack.holders(id):
            for n_bytes in (PEEK_BYTES, None):
                try:
                    if self._learn_from(tier, id, n_bytes, deadline_ns):
                        return True
                except CorruptBlock as error:
                    if n_bytes is None or error.reason is not Damage.SHORT:
                        self.stack.condemn(tier, id, error.reason, deadline_ns)
                        break
                except StoreError:
                    break
        return False

    def _learn_from(self, tier: GuardedTier, id: BlockId, n_bytes: int | None, deadline_ns: int) -> bool:
        loaded = tier.wait(tier.start_read(id.name, n_bytes), deadline_ns)
        if loaded is None:
            self.stack.index.remove(id, tier.index)
            return False
        try:
            self.stack.index.learn(id, peek_tokens(loaded.data, id))
        finally:
            loaded.free()
        return True

    # --- claims -----------------------------------------------------------------------------------

    def _wait_for_claimed(self, lookup: _Lookup) -> bool:
        """Wait for the next full block if someone says that they compute it; True when it came."""
        ids = lookup.full_blocks(lookup.next_block, 1)
        if not ids or time.monotonic_ns() >= lookup.wait_until_ns:
            return False
        while time.monotonic_ns() < lookup.wait_until_ns:
            left_s = self.claims.claimed(ids[0].key, _soon_ns())
            if left_s <= 0:
                break
            if self.closing.wait(min(_POLL_S, left_s)):
                return False
            if self._appeared(lookup, ids[0]):
                lookup.deadline_ns = max(lookup.deadline_ns, _soon_ns())  # the wait was granted on top
                return True
        return self._appeared(lookup, ids[0])

    def _appeared(self, lookup: _Lookup, id: BlockId) -> bool:
        for tier in self.stack.tiers:
            if tier.local and tier.available:
                with suppress(StoreError):
                    stat = tier.stat(id.name, _soon_ns())
                    if stat is not None:
                        self.stack.index.add(id, tier.index, stat.n_bytes)
                        lookup.probed.clear()
                        return True
        return self.stack.index.has(id)

    # --- planning ---------------------------------------------------------------------------------

    def _plan(self, lookup: _Lookup) -> Plan:
        path, n_tokens, hops = lookup.path, lookup.path.n_tokens, lookup.path.hops
        readable = {found.id for found in self.stack.index.stored(hop.id for hop in hops) if self._readable_in(found)}
        for i, hop in enumerate(hops):
            if hop.id not in readable:
                n_tokens, hops = hop.id.start, hops[:i]
                break
        is_whole = n_tokens == len(lookup.chain) > 0
        ends = path.ends[-1:] if is_whole and path.ends and path.ends[-1].start == n_tokens else ()
        return self._priced(lookup, n_tokens, hops, ends)

    def _plan_to_an_end(self, lookup: _Lookup) -> Plan:
        """The longest prefix with an END: its rows are those of its own shortest way."""
        ends = lookup.path.ends[::-1]
        n_tokens = ends[0].start if ends else 0
        return self._priced(lookup, n_tokens, lookup.path.hops_to(n_tokens), ends)

    def _priced(self, lookup: _Lookup, n_tokens: int, hops: tuple[Hop, ...], ends: tuple[BlockId, ...]) -> Plan:
        """A plan with what reading it costs, each object from the fastest tier that can be read."""
        sizes: dict[int, list[int]] = {}
        for found in self.stack.index.stored([*(hop.id for hop in hops), *ends[:1]]):
            readable = self._readable_in(found)
            if readable and self.stack.staged not in readable:
                sizes.setdefault(readable[0], []).append(found.n_bytes)
        seconds = sum(self.stack.tiers[index].speed.series_s(those) for index, those in sizes.items())
        n_known, branch = lookup.path.n_tokens, self.stack.index.branch(lookup.path)
        return Plan(lookup.chain, n_tokens, hops, ends, seconds, lookup.need_end, n_known, branch)

    def _readable_in(self, found: StoredObject) -> list[int]:
        """The memory, and the tiers whose circuit is closed."""
        staged, tiers = self.stack.staged, self.stack.tiers
        return [index for index in found.tier_indices if index == staged or tiers[index].available]


def _soon_ns() -> int:
    return time.monotonic_ns() + 1_000_000_000
