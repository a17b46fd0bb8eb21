"""Who may run: the waiting sequences, in the order of `fairness`, and the free sequence ids. Pure
bookkeeping; engine thread only.

Long prompts never hold all ids: one is left for short ones, which would else wait for as long as a
long one is computed and its reply written. What counts is what has to be computed of a prompt.

Invariant: ids in `free` and ids of running sequences together are exactly 0 .. n_parallel - 1.

Which free id a sequence gets is the caller's choice: ids hold KV beyond a sequence's end
(`cache.live`). Gaps between running ids are closed (`close_gap`): with one KV stream per sequence
llama.cpp computes together only sequences whose ids follow each other, so ids {0, 2, 5} cost three
passes over the weights where {1, 2, 3} cost one.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from erllama.engine.fairness import Claim, FairOrder
from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence

_MAX_CONSIDERED = 1024  # of the waiting ones, the oldest: each admission looks at all of these


class Admission:
    """Waiting sequences in order of arrival, running ones in order of admission.

    A sequence is long if more than `long_prompt` of its tokens have to be computed; 0: none is. What an
    admission costs its tenant are these tokens, and a slice, `unit`, for the id.
    """

    def __init__(self, n_parallel: int, unit: int = 256, long_prompt: int = 0) -> None:
        self.n_parallel = n_parallel
        self._unit = unit
        self._long_prompt = long_prompt
        self._order = FairOrder(unit)
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
        """The waiting sequence whose turn it is, if an id is free for it."""
        candidates = self._candidates()
        return candidates[self._order.pick(_claims(candidates))] if candidates else None

    def start(self, sequence: Sequence, seq_id: int) -> None:
        """Give `next` one of the `free` ids. The caller moves its state."""
        candidates = self._candidates()
        claims, at = _claims(candidates), candidates.index(sequence)
        assert at == self._order.pick(claims), repr(sequence)
        self._free.remove(seq_id)
        self._order.charge(claims, at, _n_missing(sequence) + self._unit)
        self._waiting.remove(sequence)
        sequence.seq_id = seq_id
        self._running.append(sequence)

    def _candidates(self) -> list[Sequence]:
        """Those that may have a free id."""
        if not self._free or not self._waiting:
            return []
        oldest = list(islice(self._waiting, _MAX_CONSIDERED))
        n_long = sum(map(self._is_long, self._running))
        if n_long < max(1, self.n_parallel - 1):
            return oldest
        return [sequence for sequence in oldest if not self._is_long(sequence)]

    def _is_long(self, sequence: Sequence) -> bool:
        return 0 < self._long_prompt < _n_missing(sequence)

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


def _claims(sequences: list[Sequence]) -> list[Claim]:
    return [Claim(s.request.tenant, s.priority, _n_missing(s), s.submitted_ns) for s in sequences]


def _n_missing(sequence: Sequence) -> int:
    return 0 if sequence.request.restore_only else sequence.n_missing
