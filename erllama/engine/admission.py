"""Who may run: a FIFO of waiting sequences and the free sequence ids. Pure bookkeeping; engine
thread only.

Invariant: ids in `free` and ids of running sequences together are exactly 0 .. n_parallel - 1.

Which free id a sequence gets is the caller's choice: ids hold KV beyond a sequence's end
(`cache.live`). Gaps between running ids are closed (`close_gap`): with one KV stream per sequence
llama.cpp computes together only sequences whose ids follow each other, so ids {0, 2, 5} cost three
passes over the weights where {1, 2, 3} cost one.
"""

from __future__ import annotations

from collections import deque

from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence


class Admission:
    """Waiting sequences in order of arrival, running ones in order of admission."""

    def __init__(self, n_parallel: int) -> None:
        self.n_parallel = n_parallel
        self._free = set(range(n_parallel))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def free(self) -> frozenset[int]:
        return frozenset(self._free)

    @property
    def n_free(self) -> int:
        return len(self._free)

    def enqueue(self, sequence: Sequence) -> None:
        """Append to the queue."""
        assert sequence.state is State.QUEUED, repr(sequence)
        self._waiting.append(sequence)

    @property
    def next(self) -> Sequence | None:
        """The sequence that has waited longest, if an id is free for it."""
        return self._waiting[0] if self._free and self._waiting else None

    def start(self, sequence: Sequence, seq_id: int) -> None:
        """Give `next` one of the `free` ids. The caller moves its state."""
        assert sequence is self.next, repr(sequence)
        self._free.remove(seq_id)
        self._waiting.popleft()
        sequence.seq_id = seq_id
        self._running.append(sequence)

    def release(self, sequence: Sequence) -> int | None:
        """Forget `sequence`; returns the id it held (its KV is the caller's to drop), None if it
        held none. Idempotent.
        """
        if sequence.seq_id is None:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            return None
        seq_id, sequence.seq_id = sequence.seq_id, None
        self._running.remove(sequence)
        self._free.add(seq_id)
        return seq_id

    def close_gap(self) -> tuple[Sequence, int] | None:
        """Give the running sequence with the highest id a free one between the others; returns it
        and its old id, None without a gap.

        The caller exchanges the KV of the two ids.
        """
        running = {s.id for s in self._running}
        if not running or max(running) - min(running) < len(running):
            return None
        highest = max(self._running, key=lambda s: s.id)
        old = highest.id
        new = min(i for i in self._free if i > min(running))
        self._free.remove(new)
        self._free.add(old)
        highest.seq_id = new
        return highest, old

    def check_integrity(self) -> None:
        """Assert the invariant of this file."""
        held = [s.seq_id for s in self._running]
        assert sorted([*self._free, *[i for i in held if i is not None]]) == list(range(self.n_parallel)), (
            self._free,
            held,
        )
        assert all(s.seq_id is None for s in self._waiting)
