"""Copies objects to one tier from the others: down to where they last, or up to where they are fast.

Copies down are owed: they wait while the tier is put aside, and `flush` waits for those that make an object survive this process. Copies up
(promotions) are a favour: dropped when many wait, when there is no room without evicting, and at the first failure. Objects are verified on
the way, so that damage does not spread. Copies
down wait as names, never as bytes, so a slow tier holds no memory; copies up bring the buffer that they were read into, up to a bound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cache_store.errors import CorruptBlock, StoreFull, TierError
from cache_store.format.block import BlockId
from cache_store.format.file import BlockEncoder, decode
from cache_store.in_flight import Pending
from cache_store.tiers.base import NoSpace
from cache_store.tiers.guarded import Loaded, Shelf
from cache_store.tiers.stack import Stockroom
from cache_store.write.worker import Worker

_PUT_ASIDE_S = 1.0  # how often an owed copy asks whether its tier is back


@dataclass(frozen=True, slots=True)
class Move:
    """`owed`: a copy down. `awaited`: `flush` waits for it. `loaded`: the object itself, verified; the mover frees it."""

    id: BlockId
    owed: bool = True
    awaited: bool = False
    loaded: Loaded | None = None


class Mover:
    """`announce(id, shelf)` is called on the mover's thread after an owed copy has arrived."""

    def __init__(
        self,
        stock: Stockroom,
        shelf: Shelf,
        pending: Pending,
        announce: Callable[[BlockId, Shelf], None],
        *,
        copy_queue: int,
        promote_bytes: int,
        attempts: int,
        retry_s: float,
    ) -> None:
        self._stock = stock
        self._shelf = shelf
        self._pending = pending
        self._announce = announce
        self._copy_queue = copy_queue
        self._promote_bytes = promote_bytes
        self._lock = threading.Lock()
        self._promoting_bytes = 0
        self._attempts = attempts
        self._retry_s = retry_s
        self._encoder = BlockEncoder(shelf.compression)
        self._worker: Worker[Move] = Worker(f"to-{shelf.label}", self._move, lambda move: self._end(move, "closed"))

    def submit(self, move: Move) -> None:
        if move.awaited:
            self._pending.opened(move.id)
        if move.owed:
            self._stock.owed.opened(move.id)
        if not self._worker.submit(move, max_jobs=self._copy_queue):
            self._end(move, "copy_queue_full")

    def promote(self, id: BlockId, loaded: Loaded) -> None:
        """Copy up what was just read, if it is worth it; frees `loaded` in any case, sooner or later."""
        if not self._admit(id, loaded.data.nbytes):
            loaded.free()
        elif not self._worker.submit(move := Move(id, owed=False, loaded=loaded), max_jobs=self._copy_queue):
            self._end(move, "closed")

    def _admit(self, id: BlockId, n_bytes: int) -> bool:
        if (
            not self._shelf.available
            or not self._stock.fits(self._shelf, n_bytes)
            or self._shelf.level in self._stock.catalogue.tiers_of(id)
        ):
            return False
        with self._lock:
            admitted = self._promoting_bytes + n_bytes <= self._promote_bytes
            self._promoting_bytes += n_bytes if admitted else 0
        return admitted

    def drain(self, timeout_s: float) -> bool:
        """Wait for the copies that wait, as long as the tier works; False when some are left."""
        return self._worker.drain(timeout_s, lambda: self._shelf.available)

    def stop(self, timeout_s: float) -> bool:
        return self._worker.stop(timeout_s)

    def _move(self, move: Move) -> None:
        failure = "copy_failed"
        try:
            failure = self._copy_with_retries(move)
            if not failure and move.owed:
                self._announce(move.id, self._shelf)
        finally:
            self._end(move, failure)

    def _end(self, move: Move, failure: str) -> None:
        """Settle a move; `failure` is "" when it arrived."""
        if failure:
            self._stock.tally.add("dropped" if move.owed else "unpromoted", failure)
        if move.owed:
            self._stock.owed.settled(move.id)
        if move.awaited:
            self._pending.settled(move.id)
        if move.loaded is not None:
            with self._lock:
                self._promoting_bytes -= move.loaded.data.nbytes
            move.loaded.free()

    def _copy_with_retries(self, move: Move) -> str:
        attempt = 0
        while attempt < self._attempts:
            if self._shelf.level in self._stock.catalogue.tiers_of(move.id):
                return ""
            if self._shelf.available:
                try:
                    return self._copy(move)
                except TierError:
                    attempt += 1
            if not move.owed or not self._worker.pause(self._retry_s * 2**attempt if self._shelf.available else _PUT_ASIDE_S):
                break
        return "copy_failed"

    def _copy(self, move: Move) -> str:
        if move.loaded is not None:
            return self._put(move, move.loaded.shelf, move.loaded) or ""
        for source in self._stock.holders(move.id):
            loaded = source.load(move.id.name)
            if loaded is None:
                self._stock.catalogue.remove(move.id, source.level)
                continue
            try:
                failure = self._put(move, source, loaded)
            finally:
                loaded.free()
            if failure is not None:
                return failure
        return "copy_gone"

    def _put(self, move: Move, source: Shelf, loaded: Loaded) -> str | None:
        """Why it could not be put ("" when it was); None when the source is damaged and another may serve."""
        try:
            block = decode(loaded.data, move.id)
        except CorruptBlock as error:
            self._stock.condemn_now(source, move.id, error.reason)
            return None
        data = loaded.data if source.compression == self._shelf.compression else self._encoder.encode(block)
        if not move.owed and not self._stock.fits(self._shelf, data.nbytes):
            return "no_room"
        try:
            self._stock.put(self._shelf, move.id, block.tokens, data)
        except (StoreFull, NoSpace):
            return "copy_full"
        return ""
