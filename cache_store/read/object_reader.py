"""Single objects by name, without an index: for processes that look small things up and store
nothing, such as an HTTP front.

Nothing is listed and nothing runs in the background. Any thread. Failures of a file system are
misses.
"""

from __future__ import annotations

import time

from cache_store.config import StoreConfig
from cache_store.errors import CorruptBlock, StoreError
from cache_store.format.block import Block, BlockId
from cache_store.format.file import decode
from cache_store.tiers.guarded import GuardedTier, open_tiers
from cache_store.write.staging import copied


class ObjectReader:
    """Reads from the tiers of `config`. Raises `TierError` for a tier that can never work."""

    def __init__(self, config: StoreConfig) -> None:
        self._tiers = open_tiers(config)

    def get(self, id: BlockId, deadline_s: float) -> Block | None:
        """A copy of the object from the fastest tier that has it and can be asked; None when none
        has it in time.
        """
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        for tier in self._tiers:
            if not tier.available:
                continue
            try:
                block = self._read(tier, id, deadline_ns)
            except StoreError:  # counted by the tier
                continue
            if block is not None:
                return block
        return None

    def close(self) -> None:
        """Let go of the tiers. Idempotent."""
        tiers, self._tiers = self._tiers, []
        for tier in tiers:
            tier.close()

    @staticmethod
    def _read(tier: GuardedTier, id: BlockId, deadline_ns: int) -> Block | None:
        loaded = tier.wait(tier.start_read(id.name), deadline_ns)
        if loaded is None:
            return None
        try:
            return copied(decode(loaded.data, id))
        except CorruptBlock:  # whoever keeps an index removes it
            return None
        finally:
            loaded.free()
