"""What a listing of a tier has not named yet: in the end, what is not there any more. Pure, not
thread-safe.

A byte per object of the index: names of all would be half a gigabyte for a million.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cache_store.index.radix import Graph


class Unnamed:
    """The objects that a tier held when its listing began, without those `discard`ed since. Of what
    came later nothing is concluded; so whoever takes an object out of the tier discards it, too: its
    number may become another object's.
    """

    def __init__(self, graph: Graph, tier_index: int) -> None:
        self._marks = bytearray((np.frombuffer(graph.sizes[tier_index], np.uint32) != 0).tobytes())

    def discard(self, item: int) -> None:
        if item < len(self._marks):
            self._marks[item] = 0

    def has(self, item: int) -> bool:
        return self._marks[item] != 0

    def items(self) -> Iterator[int]:
        """Those that are left, ascending; may be discarded meanwhile."""
        item = self._marks.find(1)
        while item >= 0:
            yield item
            item = self._marks.find(1, item + 1)
