"""Single objects by name, without an index: for processes that look small things up and store nothing, such as an HTTP front.

Nothing is listed and nothing runs in the background. Any thread. Failures of a file system are misses.
"""

from __future__ import annotations

import time

from cache_store.config import StoreConfig
from cache_store.errors import CorruptBlock, StoreError
from cache_store.format.block import Block, BlockId
from cache_store.format.file import decode
from cache_store.tiers.guarded import Shelf, open_shelves
from cache_store.write.staging import copied


class ObjectReader:
    """Reads from the tiers of `config`. Raises `TierError` for a tier that can never work."""

    def __init__(self, config: StoreConfig) -> None:
        self._shelves = open_shelves(config)

    def get(self, id: BlockId, deadline_s: float) -> Block | None:
        """A copy of the object from the fastest tier that has it and can be asked; None when none has it in time."""
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        for shelf in self._shelves:
            if not shelf.available:
                continue
            try:
                block = self._read(shelf, id, deadline_ns)
            except StoreError:  # counted by the shelf
                continue
            if block is not None:
                return block
        return None

    def close(self) -> None:
        """Let go of the tiers. Idempotent."""
        shelves, self._shelves = self._shelves, []
        for shelf in shelves:
            shelf.close()

    @staticmethod
    def _read(shelf: Shelf, id: BlockId, deadline_ns: int) -> Block | None:
        loaded = shelf.wait(shelf.start_read(id.name), deadline_ns)
        if loaded is None:
            return None
        try:
            return copied(decode(loaded.data, id))
        except CorruptBlock:  # whoever keeps an index removes it
            return None
        finally:
            loaded.free()
