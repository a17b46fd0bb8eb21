"""Who may run: a FIFO of waiting sequences and the free sequence ids. Pure bookkeeping; engine thread only.

Invariant: ids in `free` and ids of running sequences together are exactly 0 .. n_parallel - 1.

Low ids are preferred and holes are filled (`fill_hole`): with one KV stream per sequence llama.cpp computes together only sequences whose
ids follow each other, so ids {0, 2, 5} cost three passes over the weights where {0, 1, 2} cost one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from erllama.machine import State
from erllama.sequence import Sequence


class Admission:
    """Waiting sequences in order of arrival, running ones in order of admission."""

    def __init__(self, n_parallel: int) -> None:
        self._n_parallel = n_parallel
        self._free = list(range(n_parallel))  # a heap: the lowest id first
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def n_free(self) -> int:
        return len(self._free)

    def enqueue(self, sequence: Sequence) -> None:
        """Append to the queue."""
        assert sequence.state is State.QUEUED, repr(sequence)
        self._waiting.append(sequence)

    def admit(self) -> Iterator[Sequence]:
        """Give free ids to waiting sequences, oldest first, until either runs out. The caller moves their state."""
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            sequence.seq_id = heapq.heappop(self._free)
            self._running.append(sequence)
            yield sequence

    def release(self, sequence: Sequence) -> int | None:
        """Forget `sequence`; returns the id it held (its KV is the caller's to drop), None if it held none. Idempotent."""
        if sequence.seq_id is None:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            return None
        seq_id, sequence.seq_id = sequence.seq_id, None
        self._running.remove(sequence)
        heapq.heappush(self._free, seq_id)
        return seq_id

    def fill_hole(self) -> tuple[Sequence, int] | None:
        """Give the running sequence with the highest id the lowest free one below it; returns it and its old id.

        None when there is no hole, or while others wait: they will fill it for nothing. The caller moves the KV.
        """
        if self._waiting or not self._free or not self._running:
            return None
        highest = max(self._running, key=_id)
        old = _id(highest)
        if self._free[0] > old:
            return None
        highest.seq_id = heapq.heappushpop(self._free, old)
        return highest, old

    def check_integrity(self) -> None:
        """Assert the invariant of this file."""
        held = [s.seq_id for s in self._running]
        assert sorted([*self._free, *[i for i in held if i is not None]]) == list(range(self._n_parallel)), (self._free, held)
        assert all(s.seq_id is None for s in self._waiting)


def _id(sequence: Sequence) -> int:
    assert sequence.seq_id is not None
    return sequence.seq_id
