"""Who may run: a FIFO of waiting sequences and the free sequence ids. Pure bookkeeping; engine thread only.

Invariant: ids in `free` and ids of running sequences together are exactly 0 .. n_parallel - 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from erllama.machine import State
from erllama.sequence import Sequence


class Admission:
    """Waiting sequences in order of arrival, running ones in order of admission."""

    def __init__(self, n_parallel: int) -> None:
        self._n_parallel = n_parallel
        self._free = list(range(n_parallel - 1, -1, -1))  # popped from the end: the lowest id first
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
            sequence.seq_id = self._free.pop()
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
        self._free.append(seq_id)
        return seq_id

    def check_integrity(self) -> None:
        """Assert the invariant of this file."""
        held = [s.seq_id for s in self._running]
        assert sorted([*self._free, *[i for i in held if i is not None]]) == list(range(self._n_parallel)), (self._free, held)
        assert all(s.seq_id is None for s in self._waiting)
