"""Sampled replies that this process knows: an LRU bounded by bytes, and a store behind it.

What the store does not have is remembered for a short while, so that a long history which was never
recorded does not cost a store look-up per reply and turn. Look-ups in the store share one time
budget per prompt; when it is spent, the rest of the prompt does without.

Thread-safe. Decides under a lock, reads the store outside of it: two threads may then fetch the
same object, which harms nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cache_store.errors import StoreError
from cache_store.format.block import Block, BlockId, Kind
from erllama.chat.transcript import Find

log = logging.getLogger(__name__)

Fetch = Callable[[BlockId, float], Block | None]
"""`Store.get`: the object if it is found within so many seconds."""

ENTRY_BYTES = 600  # an id and its place in the mapping, beside 4 bytes per token
MAX_ABSENT = 4096


class TranscriptBook:
    """`fetch` None: nothing is known but what this process recorded. `clock` is monotonic, in
    nanoseconds.
    """

    def __init__(
        self,
        fetch: Fetch | None = None,
        *,
        max_bytes: int = 64 * 2**20,
        lookup_ms: float = 250.0,
        absent_s: float = 10.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`lookup_ms` bounds the time of all store look-ups of one prompt; `absent_s` is how long a
        miss counts.
        """
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._lookup_ns = int(lookup_ms * 1e6)
        self._absent_ns = int(absent_s * 1e9)
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[BlockId, NDArray[np.uint32]] = OrderedDict()
        self._absent: OrderedDict[BlockId, int] = OrderedDict()  # until when, in order of insertion
        self._n_bytes = 0

    def __repr__(self) -> str:
        return f"<TranscriptBook {len(self._known)} replies, {self._n_bytes} of {self._max_bytes} bytes>"

    @property
    def has_store(self) -> bool:
        """Whether a look-up may wait."""
        return self._fetch is not None

    def record(self, block: Block) -> None:
        """Remember a transcript. One that would need the whole budget for itself is not."""
        if block.id.kind is not Kind.REPLAY:
            raise ValueError(f"not a transcript: {block.id.name}")
        ids = np.array(block.tokens, dtype=np.uint32)  # a copy: the block may view a buffer that is used again
        if _cost(ids) > self._max_bytes:
            return
        with self._lock:
            self._absent.pop(block.id, None)
            self._forget(block.id)
            self._known[block.id] = ids
            self._n_bytes += _cost(ids)
            while self._n_bytes > self._max_bytes:
                self._forget(next(iter(self._known)))

    def finder(self) -> Find:
        """The look-up for one prompt, with a time budget of its own. One thread."""
        left_ns = self._lookup_ns

        def find(id: BlockId) -> list[int] | None:
            nonlocal left_ns
            known, ask = self._recall(id)
            if known is not None or not ask or left_ns <= 0:
                return known
            started = self._clock()
            block = self._ask(id, left_ns)
            spent = self._clock() - started
            if block is None and spent < left_ns:  # else it may just have been too slow
                self._note_absent(id)
            left_ns -= spent
            return None if block is None else block.tokens.tolist()

        return find

    def check_integrity(self) -> None:
        """Assert the invariants: bytes add up and stay below the budget; nothing is both known and
        absent.
        """
        with self._lock:
            assert self._n_bytes == sum(map(_cost, self._known.values())) <= self._max_bytes
            assert len(self._absent) <= MAX_ABSENT
            assert not self._known.keys() & self._absent.keys()

    def _recall(self, id: BlockId) -> tuple[list[int] | None, bool]:
        """The ids if they are known here; if not, whether the store is worth asking."""
        with self._lock:
            ids = self._known.get(id)
            if ids is not None:
                self._known.move_to_end(id)
                return ids.tolist(), False
            return None, self._fetch is not None and self._absent.get(id, 0) <= self._clock()

    def _ask(self, id: BlockId, left_ns: int) -> Block | None:
        assert self._fetch is not None
        try:
            block = self._fetch(id, left_ns / 1e9)
        except StoreError as error:
            log.warning("transcript look-up failed: name=%s error=%s", id.name, error)
            return None
        if block is None or block.id != id:
            return None
        self.record(block)
        return block

    def _note_absent(self, id: BlockId) -> None:
        with self._lock:
            if id in self._known:  # recorded while we asked
                return
            self._absent.pop(id, None)
            self._absent[id] = self._clock() + self._absent_ns
            if len(self._absent) > MAX_ABSENT:
                self._absent.popitem(last=False)

    def _forget(self, id: BlockId) -> None:
        ids = self._known.pop(id, None)
        if ids is not None:
            self._n_bytes -= _cost(ids)


def _cost(ids: NDArray[np.uint32]) -> int:
    return ENTRY_BYTES + ids.nbytes
