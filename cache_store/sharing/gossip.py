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
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import Kind
from cache_store.format.keys import BLOCK_TOKENS
from cache_store.index.delta import BadDelta, Changes, DeltaLog, IndexDelta, Packer, Record, TierDelta
from cache_store.index.radix import MAX_FIELD
from cache_store.sharing.identity import TierIdentity
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

log = logging.getLogger("cache_store")

_MAX_USES = 1 << 16  # hits on one object between two deltas: a larger number is a mistake of the teller's


class Gossip:
    def __init__(self, stack: TierStack, delta_log: DeltaLog, identity: TierIdentity, owner: str) -> None:
        self._stack = stack
        self._log = delta_log
        self._identity = identity
        self._owner = owner

    def take(self) -> IndexDelta:
        """What happened here since the last call."""
        changes, packer = self._log.take(), Packer()
        tiers = tuple(self._delta_of(packer, tier, changes) for tier in self._stack.tiers)
        used = packer.pack(Record(id, n_uses) for id, n_uses in changes.used.items())
        return IndexDelta(self._owner, tiers, packer.roots, used, changes.incomplete)

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
                self._apply_uses(delta)
            except BadDelta as error:
                self._stack.tally.add("corrupt", "delta")
                log.warning("owner=%s delta ignored: %s", delta.owner, error)
        return n_changed

    def _delta_of(self, packer: Packer, tier: GuardedTier, changes: Changes) -> TierDelta:
        changed = changes.tiers[tier.index].items()
        tokens_of = self._stack.index.tokens_of
        written = packer.pack(Record(id, n_bytes, tokens_of(id)) for id, n_bytes in changed if n_bytes is not None)
        removed = packer.pack(Record(id) for id, n_bytes in changed if n_bytes is None)
        return TierDelta(
            tier.label, tier.url, tier.local, self._identity.ids(tier.index), tier.max_bytes, written, removed
        )

    def _apply_tier(self, delta: IndexDelta, tier: TierDelta) -> int:
        tier_index = self._identity.tier_index(tier.ids)
        if tier_index is None:
            return 0
        n_changed = 0
        for record in delta.unpacked(tier.written):
            if not _is_plausible(record):
                raise BadDelta(f"no object of ours: {record.id.name}")
            n_changed += self._stack.index.add(record.id, tier_index, record.number, self._proven_tokens(record))
        for record in delta.unpacked(tier.removed):
            n_changed += self._stack.index.remove(record.id, tier_index)
        return n_changed

    def _proven_tokens(self, record: Record) -> NDArray[np.uint32] | None:
        if record.tokens is None:
            return None
        tokens = np.frombuffer(record.tokens, ">u4").astype(np.uint32)
        return tokens if self._stack.index.proves(record.id, tokens) else None

    def _apply_uses(self, delta: IndexDelta) -> None:
        for record in delta.unpacked(delta.used):
            self._stack.index.touch([record.id], max(1, min(record.number, _MAX_USES)))


def _is_plausible(record: Record) -> bool:
    """Whether a listing could name it: what the index takes must be something that can be deleted
    again.
    """
    id = record.id
    fits = id.start % BLOCK_TOKENS + id.n_tokens <= BLOCK_TOKENS if id.kind is Kind.ROWS else id.n_tokens == 0
    return fits and record.number <= MAX_FIELD and (record.tokens is None or id.kind is Kind.ROWS)
