"""Saves in the background: accepted blocks go from staging memory to the first tier that takes
them.

    accept (caller's thread)    copy into staging memory; from here on the object counts as present
                                and is served from that memory
    write (writer's thread)     encode, make room, publish, index; a failure is tried again after a
                                pause, then the next tier takes it
    announce                    `announce` tells who copies down

A tier whose circuit is open is skipped, so that a dead first tier costs nothing but speed. What no
tier takes is dropped and counted; nobody waits for that. Every accepted object is settled in
the stack's `in_flight` exactly once, and its staging memory released exactly once.
"""

from __future__ import annotations

import logging
import threading

from cache_store.config import StoreConfig
from cache_store.errors import StoreFull, TierError
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.file import BlockEncoder, Compression
from cache_store.tiers.base import NoSpace
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack
from cache_store.write.copier import Announce
from cache_store.write.staging import Staged, StagingPool
from cache_store.write.worker import Worker

log = logging.getLogger("cache_store")


class Writer:
    """`announce(id, tier)` is called on the writer's thread after a publish."""

    def __init__(self, stack: TierStack, announce: Announce, config: StoreConfig) -> None:
        self._stack = stack
        self._announce = announce
        self._config = config
        self._pool = StagingPool(config.queue_bytes)
        self._lock = threading.Lock()
        self._staged: dict[BlockId, Staged] = {}
        self._encoders: dict[Compression | None, BlockEncoder] = {}  # writer's thread
        self._worker: Worker[Staged] = Worker("writer", self._write, lambda staged: self._drop(staged, "closed"))

    @property
    def queue_bytes(self) -> int:
        return self._pool.used_bytes

    def accept(self, block: Block, wait_s: float = 0.0) -> str | None:
        """Take a block over, copied; else the reason why not. One that is stored or under way
        already is taken without work.
        """
        if block.id.kind is Kind.ROWS and len(block.tokens) != block.id.n_tokens:
            raise ValueError(f"{len(block.tokens)} tokens in a block of {block.id.n_tokens}")
        if self._stack.index.has(block.id):
            return None
        staged = self._pool.copy(block, wait_s)
        if staged is None:
            return "queue_full"
        with self._lock:
            if block.id in self._staged:  # another thread was faster
                staged.release()
                return None
            self._staged[block.id] = staged
        self._stack.in_flight.opened(block.id)
        self._stack.index.add(block.id, self._stack.staged, staged.block.payload_bytes, staged.block.tokens)
        if self._worker.submit(staged):
            return None
        self._forget(staged)
        return "closed"

    def borrow(self, id: BlockId) -> Staged | None:
        """The staged object, held for the caller, who releases it."""
        with self._lock:
            staged = self._staged.get(id)
        return staged if staged is not None and staged.hold() else None

    def stop(self, timeout_s: float) -> bool:
        return self._worker.stop(timeout_s)

    def _write(self, staged: Staged) -> None:
        try:
            self._write_somewhere(staged.block)
        except ValueError:
            self._stack.tally.add("dropped", "invalid")
            log.exception("save refused: name=%s", staged.block.id.name)
        finally:
            self._forget(staged)

    def _write_somewhere(self, block: Block) -> None:
        failure = "no_tier"
        for tier in self._stack.tiers:
            if tier.writable:
                failure = self._write_to(tier, block)
                if not failure:
                    self._stack.tally.add("saved", block.reason)
                    self._announce(block.id, tier)
                    return
        self._stack.tally.add("dropped", failure)

    def _write_to(self, tier: GuardedTier, block: Block) -> str:
        """Why it could not be written; "" when it was."""
        for attempt in range(self._config.write_attempts):
            if attempt and not (self._worker.pause(self._config.retry_s * 2 ** (attempt - 1)) and tier.writable):
                break
            try:
                self._stack.put(tier, block.id, block.tokens, self._encoder(tier.compression).encode(block))
            except (StoreFull, NoSpace):
                return "full"
            except TierError:
                continue
            return ""
        return "error"

    def _encoder(self, compression: Compression | None) -> BlockEncoder:
        return self._encoders.setdefault(compression, BlockEncoder(compression))

    def _drop(self, staged: Staged, cause: str) -> None:
        self._stack.tally.add("dropped", cause)
        self._forget(staged)

    def _forget(self, staged: Staged) -> None:
        id = staged.block.id
        with self._lock:
            self._staged.pop(id, None)
        self._stack.index.remove(id, self._stack.staged)
        self._stack.in_flight.settled(id)
        staged.release()
