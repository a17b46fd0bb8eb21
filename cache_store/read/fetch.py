"""One object on its way from wherever it is: staging memory, or a tier, or the next tier when that
one fails.

The tier's thread reads and verifies; the rest belongs to the reader's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import NamedTuple

from cache_store.config import StoreConfig
from cache_store.errors import CorruptBlock, StoreError
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.file import decode
from cache_store.format.rows_decoder import RowsDecoder
from cache_store.read.destination import Lending
from cache_store.tiers.deadline_pool import Call
from cache_store.tiers.guarded import GuardedTier, Loaded, open_tiers
from cache_store.tiers.stack import TierStack
from cache_store.write.staging import Staged, copied
from cache_store.write.worker import deadline_in
from cache_store.write.writer import Writer


class Fetch:
    """`block` is valid from a `result` that is not None until `free`. `tier` is where it came from;
    None for staging memory. With `lending`, rows go to the memory that is lent where they can: they
    are `placed`, and not in the block. `keeps` tells of which tiers an object is wanted whole as well.

    The read starts when the fetch is made, so whoever makes several reads ahead. A tier that does
    not have what the index says is corrected in the index; what does not verify is condemned. Every
    fetch ends with `free`.
    """

    def __init__(
        self,
        stack: TierStack,
        writer: Writer,
        id: BlockId,
        holders: list[GuardedTier] | None = None,
        lending: Lending | None = None,
        keeps: Callable[[GuardedTier], bool] = lambda tier: False,
    ) -> None:
        self._stack = stack
        self._lending = lending
        self._keeps = keeps
        self.placed = False
        self.seconds = 0.0  # that the tier took
        self.id = id
        self.tier: GuardedTier | None = None
        self._staged: Staged | None = writer.borrow(id)
        self._loaded: Loaded | None = None
        self._call: Call[_Arrived | None] | None = None
        self._left = [] if self._staged is not None else (stack.holders(id) if holders is None else holders)
        self._start_next()

    def result(self, deadline_ns: int) -> Block | None:
        """The verified object; None when nobody has it in time."""
        if time.monotonic_ns() >= deadline_ns:
            return None
        if self._staged is not None:
            return self._staged.block
        while self._call is not None and self.tier is not None:
            block = self._take(self.tier, self._call, deadline_ns)
            if block is not None:
                return block
            if time.monotonic_ns() >= deadline_ns:  # the call that hangs may still write to the memory it was lent
                return None
            self._start_next()
        return None

    def take_loaded(self) -> Loaded | None:
        """Hand the buffer over to someone who frees it."""
        loaded, self._loaded = self._loaded, None
        return loaded

    def free(self) -> None:
        """Idempotent."""
        if self._call is not None:
            self._call.drop()
            self._call = None
        if self._loaded is not None:
            self._loaded.free()
            self._loaded = None
        if self._staged is not None:
            self._staged.release()
            self._staged = None

    def _start_next(self) -> None:
        self._call = self.tier = None
        while self._left and self._call is None:
            self.tier = self._left.pop(0)
            with suppress(StoreError):
                self._call = _started(self.tier, self.id, self._lending, keeps=self._keeps(self.tier))

    def _take(self, tier: GuardedTier, call: Call[_Arrived | None], deadline_ns: int) -> Block | None:
        try:
            arrived = tier.wait(call, deadline_ns)
        except CorruptBlock as error:
            self._call = None
            self._stack.condemn(tier, self.id, error.reason, deadline_ns)
            return None
        except StoreError:
            return None
        self._call = None
        if arrived is None:
            self._stack.index.remove(self.id, tier.index)
            return None
        self._loaded, self.placed, self.seconds = arrived.loaded, arrived.placed, arrived.loaded.seconds
        return arrived.block


class ObjectReader:
    """Single objects by name, without an index: for processes that look small things up and store
    nothing, such as an HTTP front. Nothing is listed and nothing runs in the background. Any
    thread. Failures of a file system are misses.
    """

    def __init__(self, config: StoreConfig) -> None:
        """Raises `TierError` for a tier of `config` that can never work."""
        self._tiers = open_tiers(config)

    def get(self, id: BlockId, deadline_s: float) -> Block | None:
        """A copy of the object from the fastest tier that has it and can be asked; None when none
        has it in time.
        """
        deadline_ns = deadline_in(deadline_s)
        for tier in self._tiers:
            if not tier.available:
                continue
            with suppress(StoreError):  # counted by the tier; what is damaged, whoever keeps an index removes
                arrived = tier.wait(_started(tier, id), deadline_ns)
                if arrived is None:
                    continue
                try:
                    return copied(arrived.block)
                finally:
                    arrived.loaded.free()
        return None

    def close(self) -> None:
        """Let go of the tiers. Idempotent."""
        tiers, self._tiers = self._tiers, []
        for tier in tiers:
            tier.close()


class _Arrived(NamedTuple):
    """An object that verified, and the buffer that it lies in; where `placed`, all but its rows."""

    block: Block
    loaded: Loaded
    placed: bool = False


def _started(
    tier: GuardedTier, id: BlockId, lending: Lending | None = None, *, keeps: bool = False
) -> Call[_Arrived | None]:
    if lending is None or id.kind is not Kind.ROWS:
        return tier.start(partial(_load, tier, id), _free)
    return tier.start(partial(_load_into, tier, id, lending, keeps), _free)


def _load(tier: GuardedTier, id: BlockId) -> _Arrived | None:
    """On the tier's thread: what was just read is in the cache of its core, so its digest costs
    half of what it would elsewhere.
    """
    loaded = tier.load(id.name)
    if loaded is None:
        return None
    try:
        return _Arrived(decode(loaded.data, id), loaded)
    except BaseException:
        loaded.free()
        raise


def _load_into(tier: GuardedTier, id: BlockId, lending: Lending, keeps: bool) -> _Arrived | None:
    """The same, with the rows in the memory that is lent. `keeps`: the object is wanted whole, too."""
    with closing(lending.loan(id)) as loan:
        decoder = RowsDecoder(id, loan.lend)
        loaded = tier.load(id.name, placer=None if keeps else decoder)
        if loaded is None:
            return None
        try:
            if decoder.memory:  # only the proof is left
                return _Arrived(decoder.block(loaded.data), loaded, True)
            with lending.decoding:
                return _Arrived(decoder.block(loaded.data), loaded, bool(decoder.memory))
        except BaseException:
            loaded.free()
            raise


def _free(arrived: _Arrived | None) -> None:
    if arrived is not None:
        arrived.loaded.free()
