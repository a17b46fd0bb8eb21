"""The objects that go on from one node, where they are many: found by fingerprint and by length.
Pure, not thread-safe.

A list would have to be walked: at the end of a system prompt 10 000 conversations go on. Here each
is a number of 64 bits, fingerprint (`hot_tokens.py`) above number, in an array that is sorted but
for what came lately. What has gone, or has another fingerprint now, stays until the two are merged;
`is_current` tells.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain, takewhile

import numpy as np
from numpy.typing import NDArray

_MIN_RECENT = 128
_NUMBER_BITS = 32
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1

Entries = NDArray[np.uint64]


class Crowd:
    """`lengths` has bit n set where an object of n tokens has ever been among them."""

    __slots__ = ("_is_current", "_recent", "_sorted", "lengths", "n")

    def __init__(self, is_current: Callable[[Entries], NDArray[np.bool_]]) -> None:
        self._is_current = is_current
        self._sorted, self._recent = array("Q"), array("Q")
        self.lengths = self.n = 0

    def add(self, number: int, fingerprint: int, n_tokens: int) -> None:
        self.n += 1
        self.lengths |= 1 << n_tokens
        self.note(number, fingerprint)

    def note(self, number: int, fingerprint: int) -> None:
        """An object of the crowd has this fingerprint now."""
        self._recent.append(fingerprint << _NUMBER_BITS | number)
        if len(self._recent) > max(_MIN_RECENT, len(self._sorted) // 8):
            self._merge()

    def remove(self) -> None:
        """One is not current any more."""
        self.n -= 1
        if len(self._sorted) > 2 * self.n + 2 * _MIN_RECENT:
            self._merge()

    def of_lengths(self, longest: int) -> Iterator[int]:
        """The lengths that occur, up to `longest`, ascending."""
        lengths = self.lengths & ((2 << longest) - 1)
        while lengths:
            lowest = lengths & -lengths
            yield lowest.bit_length() - 1
            lengths ^= lowest

    def between(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """(fingerprint, number) of what has a fingerprint from `low` on and below `high`; some may not
        be current, and come twice.
        """
        first, end = low << _NUMBER_BITS, high << _NUMBER_BITS
        at = bisect_left(self._sorted, first)
        older = takewhile(lambda entry: entry < end, map(self._sorted.__getitem__, range(at, len(self._sorted))))
        recent = np.frombuffer(self._recent, np.uint64) if self._recent else np.empty(0, np.uint64)
        newer = recent[(recent >= np.uint64(first)) & (recent < np.uint64(min(end, (1 << 64) - 1)))].tolist()
        del recent
        return (divmod(entry, 1 << _NUMBER_BITS) for entry in chain(newer, older))

    def numbers(self) -> set[int]:
        """All that are current."""
        self._merge()
        return {entry & _NUMBER_MASK for entry in self._sorted}

    def _merge(self) -> None:
        entries = np.unique(np.frombuffer(self._sorted.tobytes() + self._recent.tobytes(), np.uint64))
        self._sorted, self._recent = array("Q"), array("Q")
        self._sorted.frombytes(entries[self._is_current(entries)].tobytes())
