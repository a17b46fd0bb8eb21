"""Memory of a caller that rows are read into, and who still writes there.

Threads of tiers write while the restore is under way. A call that hangs may go on writing after the
restore has ended, whenever its file system answers: then the memory must never be used again, and
its owner is told so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from cache_store.format.block import BlockId
from cache_store.format.rows_decoder import Lend


class Destination(Protocol):
    """Where the rows of one restore go. `memory` is called on threads of tiers, several at once, the
    others on the reader's.
    """

    def memory(
        self, start: int, n_tokens: int, columns: Sequence[str], row_bytes: Sequence[int]
    ) -> Sequence[memoryview] | None:
        """Writable memory for the rows of each column, contiguous; None where such rows do not fit: they
        are then handed to `consume`, which says why. Must not raise.
        """

    def received(self, start: int, n_tokens: int) -> None:
        """The rows of these tokens are in `memory`, proven, and belong to the prefix."""

    def abandon(self) -> None:
        """Somebody may write into `memory` that was lent, at any later time: move what was received, and
        never use the old memory again.
        """


class Lending:
    """Lends a destination's memory until `end`. `decoding` bounds how many threads of the process
    decompress or copy at once: they take cores from whoever decodes.
    """

    def __init__(self, destination: Destination, decoding: AbstractContextManager[object]) -> None:
        self.destination = destination
        self.decoding = decoding
        self._changed = threading.Condition()
        self._n_writing = 0
        self._ended = False

    def loan(self, id: BlockId) -> Loan:
        return Loan(self, partial(self.destination.memory, id.start, id.n_tokens))

    def end(self, deadline_ns: int) -> None:
        """Lend no more, and wait for those who write. Who has not ended by then may never: the
        destination is told.
        """
        with self._changed:
            self._ended = True
            left_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
            if not self._changed.wait_for(lambda: not self._n_writing, left_s):
                self.destination.abandon()

    def lend(self, take: Callable[[], Sequence[memoryview] | None], *, is_out: bool) -> Sequence[memoryview] | None:
        """What `take` gives, None after the end: no thread may come by memory that an abandoned
        destination has moved to. `is_out`: the borrower counts as writing already.
        """
        with self._changed:
            memory = None if self._ended else take()
            self._n_writing += memory is not None and not is_out
            return memory

    def end_writing(self) -> None:
        with self._changed:
            self._n_writing -= 1
            if self._ended:
                self._changed.notify_all()


class Loan:
    """The memory for one object. One thread. `close` says that it writes no more; idempotent."""

    def __init__(self, lending: Lending, memory: Lend) -> None:
        self._lending = lending
        self._memory = memory
        self._is_out = False

    def lend(self, columns: Sequence[str], row_bytes: Sequence[int]) -> Sequence[memoryview] | None:
        lent = self._lending.lend(partial(self._memory, columns, row_bytes), is_out=self._is_out)
        self._is_out = self._is_out or lent is not None
        return lent

    def close(self) -> None:
        if self._is_out:
            self._is_out = False
            self._lending.end_writing()
