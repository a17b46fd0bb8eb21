"""Which tiers of different processes are one: each holds an id, the empty object `tier-id/<16
hex>`, made by the first to find none.

A URL does not tell: `file:///dev/shm/kv` is another tier on every node and in every container, an
NFS export the same one everywhere, whatever path it is mounted at. Two processes that start at once
may both make an id. Each lists after it made its own, so the later one sees both, and two sets of
ids that share one name the same tier. A copied directory has the ids of its original: deltas from
there are then wrong, and cost misses. Where no id can be made (read-only) the tier stays unknown,
and deltas about it are ignored.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cache_store.tiers.guarded import GuardedTier

PREFIX = "tier-id/"


class TierIdentity:
    """The ids of each tier as of the last `settle`; any thread."""

    def __init__(self, tiers: Sequence[GuardedTier]) -> None:
        self._ids: list[frozenset[str]] = [frozenset() for _ in tiers]

    def ids(self, tier_index: int) -> frozenset[str]:
        """Empty before the first `settle`."""
        return self._ids[tier_index]

    def tier_index(self, ids: frozenset[str]) -> int | None:
        """Which of our tiers has one of `ids`; None where none has."""
        return next((index for index, ours in enumerate(self._ids) if not ours.isdisjoint(ids)), None)

    def settle(self, tier: GuardedTier) -> None:
        """Find the ids of a tier, or make one. Background. Raises `TierError`."""
        found = _listed(tier)
        if not found:
            tier.publish_now(f"{PREFIX}{secrets.token_hex(8)}", memoryview(b""))
            found = _listed(tier)
        self._ids[tier.index] = found


def _listed(tier: GuardedTier) -> frozenset[str]:
    return frozenset(stat.name.removeprefix(PREFIX) for stat in tier.list_now(PREFIX))
