"""Tells other processes what this one did, and applies what they tell to the own index. Any thread;
no I/O.

A delta is a hint like a listing: it says where an object was a moment ago. A wrong one costs what a
stale listing costs: a reader finds nothing, corrects the index and computes. Tokens are taken over
where the object's name proves them, else read when they are needed: wrong ones would hide an object
for good. What a delta says of a tier that this process does not have is skipped: another node's
RAM, for example. What one process removes and another writes at the same moment may be applied in
the wrong order: the next listing tells.

Hits that others had count like our own, so every process has nearly the cluster's opinion of what
is worth keeping.

Which tiers of different processes are one, their ids tell: the empty objects `tier-id/<16 hex>` in
each, made by the first to find none. A URL does not tell: `file:///dev/shm/kv` is another tier on
every node and in every container, an NFS export the same one everywhere, whatever path it is
mounted at. Two processes that start at once may both make an id. Each lists after it made its own,
so the later one sees both, and two sets of ids that share one name the same tier. A copied
directory has the ids of its original: deltas from there are then wrong, and cost misses. Where no
id can be made (read-only) the tier stays unknown, and deltas about it are ignored.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import ChainKey
from cache_store.index.columns import is_plausible
from cache_store.index.delta import BadDelta, Changes, DeltaLog, IndexDelta, Record, TierDelta, pack
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

log = logging.getLogger("cache_store")

_MAX_USES = 1 << 16  # hits on one object between two deltas: a larger number is a mistake of the teller's
_TIER_IDS = "tier-id/"


class Gossip:
    def __init__(self, stack: TierStack, delta_log: DeltaLog, owner: str) -> None:
        self._stack = stack
        self._log = delta_log
        self._owner = owner
        self._ids: list[frozenset[str]] = [frozenset() for _ in stack.tiers]  # as of the last `recognise`

    def recognise(self, tier: GuardedTier) -> None:
        """Find the ids of a tier, or make one. Background. Raises `TierError`."""
        if not (ids := _ids_in(tier)):
            tier.publish_now(f"{_TIER_IDS}{secrets.token_hex(8)}", memoryview(b""))
            ids = _ids_in(tier)
        self._ids[tier.index] = ids

    def take(self) -> IndexDelta:
        """What happened here since the last call."""
        changes = self._log.take()
        roots: dict[ChainKey, int] = {}
        tiers = tuple(self._delta_of(tier, changes, roots) for tier in self._stack.tiers)
        used = pack((Record(id, n_uses) for id, n_uses in changes.used.items()), roots)
        return IndexDelta(self._owner, tiers, bytes.fromhex("".join(roots)), used, changes.incomplete)

    def apply(self, deltas: Iterable[IndexDelta]) -> int:
        """Take over what others tell; how many objects came or went. A delta that makes no sense is
        counted and ends where it does not.
        """
        n_changed = 0
        for delta in deltas:
            if delta.owner == self._owner:
                continue
            try:
                n_changed += sum(self._apply_tier(delta, tier) for tier in delta.tiers)
                for record in delta.unpacked(delta.used):
                    self._stack.index.touch([record.id], max(1, min(record.number, _MAX_USES)))
            except BadDelta as error:
                self._stack.tally.add("corrupt", "delta")
                log.warning("owner=%s delta ignored: %s", delta.owner, error)
        return n_changed

    def _delta_of(self, tier: GuardedTier, changes: Changes, roots: dict[ChainKey, int]) -> TierDelta:
        changed = changes.tiers[tier.index].items()
        tokens_of = self._stack.index.tokens_of
        written = pack((Record(id, size, tokens_of(id)) for id, size in changed if size is not None), roots)
        removed = pack((Record(id) for id, size in changed if size is None), roots)
        return TierDelta(tier.label, tier.url, tier.local, self._ids[tier.index], tier.max_bytes, written, removed)

    def _apply_tier(self, delta: IndexDelta, tier: TierDelta) -> int:
        tier_index = next((index for index, ours in enumerate(self._ids) if not ours.isdisjoint(tier.ids)), None)
        if tier_index is None:
            return 0
        n_changed = 0
        for record in delta.unpacked(tier.written):
            if not is_plausible(record.id, record.number, record.tokens):
                raise BadDelta(f"no object of ours: {record.id.name}")
            n_changed += self._stack.index.add(record.id, tier_index, record.number, self._proven_tokens(record))
        for record in delta.unpacked(tier.removed):
            n_changed += self._stack.index.remove(record.id, tier_index)
        return n_changed

    def _proven_tokens(self, record: Record) -> NDArray[np.uint32] | None:
        if record.tokens is None:
            return None
        tokens = np.frombuffer(record.tokens, ">u4")
        return tokens if self._stack.index.proves(record.id, tokens) else None


def _ids_in(tier: GuardedTier) -> frozenset[str]:
    return frozenset(stat.name.removeprefix(_TIER_IDS) for stat in tier.list_now(_TIER_IDS))
