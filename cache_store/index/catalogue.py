"""The index behind a lock: what any thread may ask and tell. Every call is short and does no I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId
from cache_store.format.keys import ChainKey
from cache_store.index.index import Index, IndexRow, Path


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Where an object is, fastest first, and its size there."""

    id: BlockId
    tiers: tuple[int, ...]
    n_bytes: int


class Catalogue:
    """`on_use` hears what this process uses (`touch`), outside the lock."""

    def __init__(self, n_tiers: int, unix_s: Callable[[], float], on_use: Callable[[Collection[BlockId]], None]) -> None:
        self._on_use = on_use
        self._lock = threading.Lock()
        self._index = Index(n_tiers, unix_s)
        self._objects = [0] * n_tiers

    def __repr__(self) -> str:
        with self._lock:
            return repr(self._index)

    def add(self, id: BlockId, tier_index: int, n_bytes: int, tokens: NDArray[np.uint32] | None = None) -> bool:
        """Whether that was new."""
        with self._lock:
            is_new = tier_index not in self._index.tiers_of(id)
            self._index.add(id, tier_index, n_bytes, tokens)
            self._objects[tier_index] += is_new
        return is_new

    def restore(self, entries: Iterable[IndexRow], tier_index: int) -> None:
        for entry in entries:
            with self._lock:
                is_new = tier_index not in self._index.tiers_of(entry.id)
                self._index.restore(entry, tier_index)
                self._objects[tier_index] += is_new

    def learn(self, id: BlockId, tokens: NDArray[np.uint32]) -> None:
        with self._lock:
            self._index.learn(id, tokens)

    def remove(self, id: BlockId, tier_index: int) -> bool:
        """Whether it was known to be there."""
        with self._lock:
            was_there = tier_index in self._index.tiers_of(id)
            self._objects[tier_index] -= was_there
            self._index.remove(id, tier_index)
        return was_there

    def proves(self, id: BlockId, tokens: NDArray[np.uint32]) -> bool:
        """Whether the name says that these are the tokens of `id`. False where the index knows too little to tell."""
        with self._lock:
            return self._index.proves(id, tokens)

    def tokens_of(self, id: BlockId) -> bytes | None:
        """Big-endian uint32; None where they are not known."""
        with self._lock:
            return self._index.tokens_of(id)

    def has(self, id: BlockId) -> bool:
        with self._lock:
            return self._index.has(id)

    def tiers_of(self, id: BlockId) -> tuple[int, ...]:
        with self._lock:
            return self._index.tiers_of(id)

    def known(self, ids: Iterable[BlockId]) -> list[StoredObject]:
        with self._lock:
            return [StoredObject(id, tiers, self._index.n_bytes(id)) for id in ids if (tiers := self._index.tiers_of(id))]

    def bytes_in(self, tier_index: int) -> int:
        with self._lock:
            return self._index.bytes_in(tier_index)

    def objects_in(self, tier_index: int) -> int:
        return self._objects[tier_index]

    def longest_prefix(self, root: ChainKey, tokens: NDArray[np.uint32]) -> Path:
        with self._lock:
            return self._index.longest_prefix(root, tokens)

    def unknown_beyond(self, root: ChainKey, tokens: NDArray[np.uint32], limit: int) -> list[BlockId]:
        with self._lock:
            return self._index.unknown_beyond(root, tokens, limit)

    def node_at(self, root: ChainKey, tokens: NDArray[np.uint32], upto: int) -> int:
        with self._lock:
            return self._index.node_at(root, tokens, upto)

    def leads_to_end_of(self, id: BlockId, tier_index: int) -> bool:
        """Whether a tier has a ROWS object, this or another, that ends where `id` does."""
        with self._lock:
            return self._index.leads_to_end_of(id, tier_index)

    def touch(self, ids: Collection[BlockId]) -> None:
        """This process used `ids`."""
        with self._lock:
            self._index.touch(ids)
        self._on_use(ids)

    def note_uses(self, id: BlockId, n_uses: int) -> None:
        """Another process used `id`."""
        with self._lock:
            self._index.touch((id,), n_uses)

    def pin(self, ids: Iterable[BlockId]) -> None:
        with self._lock:
            self._index.pin(ids)

    def unpin(self, ids: Iterable[BlockId]) -> None:
        """Raises `ValueError` for what is not pinned."""
        with self._lock:
            self._index.unpin(ids)

    def victims(self, tier_index: int, n_bytes: int, may_go: Callable[[StoredObject], bool] = lambda known: True) -> list[StoredObject]:
        """Whom to delete, in this order, to free `n_bytes`: only whom `may_go` lets go. `n_bytes` of each is its size in `tier_index`."""
        spared: list[BlockId] = []
        with self._lock:
            while True:
                found = self._victims(tier_index, n_bytes)
                refused = [known.id for known in found if not may_go(known)]
                if not refused:
                    break
                self._index.lease(refused)  # so that the next call looks past them, and takes nothing that they hang on
                spared += refused
            self._index.release(spared)
        return found

    def _victims(self, tier_index: int, n_bytes: int) -> list[StoredObject]:
        return [
            StoredObject(id, self._index.tiers_of(id), self._index.n_bytes(id, tier_index))
            for id in self._index.victims(tier_index, n_bytes)
        ]

    def entries(self, tier_index: int) -> Iterator[IndexRow]:
        """Everything in `tier_index`: each object as it is when its turn comes."""
        with self._lock:
            return self._index.entries(tier_index)

    def check_integrity(self) -> None:
        with self._lock:
            self._index.check_integrity()
            for tier_index, n in enumerate(self._objects):
                assert n == sum(1 for _ in self._index.entries(tier_index)), "objects of a tier"
