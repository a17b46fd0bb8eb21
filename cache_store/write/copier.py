"""Copies objects to one tier from the others: down to where they last, or up to where they are
fast.

A copy down is pending until it has arrived: it waits while the tier's circuit is open, and `flush`
waits for those that make an object survive this process. A copy up (a promotion) is best effort: it
is dropped when many wait, when there is no room without evicting, and at the first failure. Objects
are verified on the way, so that damage does not spread. Copies down wait as names, never as bytes,
so a slow tier holds no memory; copies up bring the buffer that they were read into, up to a bound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cache_store.config import StoreConfig
from cache_store.errors import CorruptBlock, StoreFull, TierError
from cache_store.format.block import BlockId
from cache_store.format.file import BlockEncoder, decode
from cache_store.tiers.base import NoSpace
from cache_store.tiers.guarded import GuardedTier, Loaded
from cache_store.tiers.stack import TierStack
from cache_store.write.worker import Worker

Announce = Callable[[BlockId, GuardedTier], None]

_OPEN_CIRCUIT_S = 1.0  # how often a pending copy asks whether its tier is back


@dataclass(frozen=True, slots=True)
class Copy:
    """`best_effort`: dropped at the first obstacle. `awaited`: `flush` waits for it. `loaded`: the
    object, which the copier frees.
    """

    id: BlockId
    best_effort: bool = False
    awaited: bool = False
    loaded: Loaded | None = None


class TierCopier:
    """`announce(id, tier)` is called on the copier's thread after a pending copy has arrived."""

    def __init__(self, stack: TierStack, tier: GuardedTier, announce: Announce, config: StoreConfig) -> None:
        self._stack = stack
        self._tier = tier
        self._announce = announce
        self._config = config
        self._lock = threading.Lock()
        self._promoting_bytes = 0
        self._encoder = BlockEncoder(tier.compression)
        self._worker: Worker[Copy] = Worker(
            f"to-{tier.label}", self._run, lambda copy: self._end(copy, "closed"), max_jobs=config.copy_queue
        )

    def submit(self, copy: Copy) -> None:
        if copy.awaited:
            self._stack.in_flight.opened(copy.id)
        if not copy.best_effort:
            self._stack.pending_copies.opened(copy.id)
        if not self._worker.submit(copy):
            self._end(copy, "copy_queue_full")

    def promote(self, id: BlockId, loaded: Loaded) -> None:
        """Copy up what was just read, if it is worth it; frees `loaded` sooner or later."""
        if not self._admit(id, loaded.data.nbytes):
            loaded.free()
        elif not self._worker.submit(copy := Copy(id, best_effort=True, loaded=loaded)):
            self._end(copy, "closed")

    def _admit(self, id: BlockId, n_bytes: int) -> bool:
        if (
            not self._tier.writable
            or not self._stack.fits(self._tier, n_bytes)
            or self._tier.index in self._stack.index.tiers_of(id)
        ):
            return False
        with self._lock:
            admitted = self._promoting_bytes + n_bytes <= self._config.promote_bytes
            self._promoting_bytes += n_bytes if admitted else 0
        return admitted

    def drain(self, timeout_s: float) -> bool:
        """Wait for the copies that wait, as long as the tier works; False when some are left."""
        return self._worker.drain(timeout_s, lambda: self._tier.writable)

    def stop(self, timeout_s: float) -> bool:
        return self._worker.stop(timeout_s)

    def _run(self, copy: Copy) -> None:
        failure = "copy_failed"
        try:
            failure = self._copy_with_retries(copy)
            if not failure and not copy.best_effort:
                self._announce(copy.id, self._tier)
        finally:
            self._end(copy, failure)

    def _end(self, copy: Copy, failure: str) -> None:
        """Settle a copy; `failure` is "" when it arrived."""
        if failure:
            self._stack.tally.add("unpromoted" if copy.best_effort else "dropped", failure)
        if not copy.best_effort:
            self._stack.pending_copies.settled(copy.id)
        if copy.awaited:
            self._stack.in_flight.settled(copy.id)
        if copy.loaded is not None:
            with self._lock:
                self._promoting_bytes -= copy.loaded.data.nbytes
            copy.loaded.free()

    def _copy_with_retries(self, copy: Copy) -> str:
        attempt = 0
        while attempt < self._config.write_attempts:
            if self._tier.index in self._stack.index.tiers_of(copy.id):
                return ""
            if self._tier.writable:
                try:
                    return self._copy(copy)
                except TierError:
                    attempt += 1
            if copy.best_effort or not self._worker.pause(
                self._config.retry_s * 2**attempt if self._tier.writable else _OPEN_CIRCUIT_S
            ):
                break
        return "copy_failed"

    def _copy(self, copy: Copy) -> str:
        if copy.loaded is not None:
            return self._put(copy, copy.loaded.tier, copy.loaded) or ""
        for source in self._stack.holders(copy.id):
            loaded = source.load(copy.id.name)
            if loaded is None:
                self._stack.index.remove(copy.id, source.index)
                continue
            try:
                failure = self._put(copy, source, loaded)
            finally:
                loaded.free()
            if failure is not None:
                return failure
        return "copy_gone"

    def _put(self, copy: Copy, source: GuardedTier, loaded: Loaded) -> str | None:
        """Why it was not put ("" when it was); None for a damaged source."""
        try:
            block = decode(loaded.data, copy.id)
        except CorruptBlock as error:
            self._stack.condemn(source, copy.id, error.reason)
            return None
        data = loaded.data if source.compression == self._tier.compression else self._encoder.encode(block)
        if copy.best_effort and not self._stack.fits(self._tier, data.nbytes):
            return "no_room"
        try:
            self._stack.put(self._tier, copy.id, block.tokens, data)
        except (StoreFull, NoSpace):
            return "copy_full"
        return ""
