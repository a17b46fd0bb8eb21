"""Who may leave a tier, worst first: the objects that nothing in this tier hangs on. Decides only;
pure, not thread-safe.

An edge is a leaf in a tier when no object in it hangs on the edge's end, or when the tier has
another way there from the beginning of the block. ENDs and objects off every path always are.
Taking leaves only, a chain never has a gap in a tier, whatever is interrupted.

Only the worst leaves are queued, in a heap: those below a bound, which the last scan of all objects
set so that it found a share of them. A scan is a few passes over columns; it comes when the heap is
empty, so each object that goes pays for about one over `_SHARE` of them, and a tier that evicts
nothing pays nothing. Below the bound the heap is repaired lazily. Scores only grow, so an entry is
never above its object's place: one that is popped with an old score goes back with the new one. An
object that may not go when it is popped leaves the heap, and returns with the event that lets it
go: the last object that hung on it was removed, another way was completed, it was unpinned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import BLOCK_TOKENS
from cache_store.index.nodes import NONE
from cache_store.index.radix import END, ROWS, Graph

_MIN_QUEUED = 1024
_SHARE = 64  # one of so many objects is queued by a scan
_SCANNED = 1 << 18  # objects at a time: what they need for the moment is a few MB

_Queued = tuple[float, int]  # score and number: of two equal scores the lower number goes first
_NOBODY: _Queued = (-math.inf, -1)
_EVERYBODY: _Queued = (math.inf, NONE)


class EvictionQueue:
    """The leaves of one tier. `is_pinned` tells the objects that must stay for now, `pinned` their
    numbers.
    """

    def __init__(
        self, graph: Graph, tier_index: int, is_pinned: Callable[[int], bool], pinned: Callable[[], Iterable[int]]
    ) -> None:
        self._graph, self._tier_index = graph, tier_index
        self._is_pinned, self._pinned = is_pinned, pinned
        self._now = _Round(graph, tier_index)  # nothing is taken
        self._heap: list[_Queued] = []
        self._scores: dict[int, float] = {}  # of what is queued, as it was queued; other entries are void
        self._below = _NOBODY  # every leaf that sorts before it is queued
        self._sweep_at = _MIN_QUEUED

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: int) -> None:
        """Queue `item` if it may go. Call it when that may have become so; too often is no harm."""
        entry = (self._graph.score[item], item)
        if entry < self._below and item not in self._scores and self.may_go(item):
            self._queue(entry)

    def push_new(self, item: int) -> None:
        """The same for what has just come to this tier, and for what may go because an edge has
        made another way complete.
        """
        if self._below == _NOBODY:
            return
        self.push(item)
        if self._graph.kind[item] == ROWS:
            for node in _block_from(self._graph, self._graph.child[item]):
                if self._graph.has_ways(node):
                    self.push_all(self._graph.into(node))

    def push_all(self, items: Iterable[int]) -> None:
        for item in items:
            self.push(item)

    def forget(self, item: int) -> None:
        """It has left the tier: its number may become another object's."""
        self._scores.pop(item, None)

    def reset(self) -> None:
        """Forget what is queued: many objects came at once, and the next scan finds the worst."""
        self._heap, self._scores, self._below = [], {}, _NOBODY

    def may_go(self, item: int) -> bool:
        """Whether nobody needs it in this tier."""
        return self._graph.is_in(item, self._tier_index) and self._now.is_leaf(item) and not self._is_pinned(item)

    def victims(self, n_bytes: int, allows: Callable[[int], bool] | None = None) -> list[int]:
        """Enough to free `n_bytes`, or all that may go. They stay queued: the caller who wants them
        gone removes them.
        """
        taking, popped, exposed = _Round(self._graph, self._tier_index), dict[int, None](), list[_Queued]()
        while taking.n_bytes < n_bytes:
            self._fill(popped)
            heap = exposed if exposed and (not self._heap or exposed[0] < self._heap[0]) else self._heap
            if not heap:
                break
            item = heappop(heap)[1]
            if heap is self._heap:
                del self._scores[item]
                popped[item] = None
            may_go = taking.is_leaf(item) and self._graph.is_in(item, self._tier_index) and not self._is_pinned(item)
            if may_go and (allows is None or allows(item)):
                for edge in taking.take(item):
                    heappush(exposed, (self._graph.score[edge], edge))
        self._put_back(popped)
        return list(taking.taken)

    def check_integrity(self, here: Collection[int]) -> None:
        """Raise AssertionError where the queue and `here`, all objects of the tier, disagree."""
        valid = [entry for entry in self._heap if self._scores.get(entry[1]) == entry[0]]
        assert {item for _, item in valid} == set(self._scores), "queued, but not in the heap"
        assert set(self._scores) <= set(here), "queued, but not there"
        scores = self._graph.score
        assert all(score <= scores[item] for score, item in valid), "queued behind its place"
        missing = (item for item in here if item not in self._scores and (scores[item], item) < self._below)
        assert not any(self.may_go(item) for item in missing), "a leaf is not queued"

    def _queue(self, entry: _Queued) -> None:
        self._scores[entry[1]] = entry[0]
        heappush(self._heap, entry)
        if len(self._heap) >= self._sweep_at:
            self._sweep()

    def _fill(self, popped: Collection[int]) -> None:
        """Have the worst leaf that has not been `popped` at the top of the heap, if there is any."""
        while True:
            while self._heap:
                score, item = self._heap[0]
                now = (self._graph.score[item], item)
                if self._scores.get(item) == score and score == now[0]:
                    return
                heappop(self._heap)
                if self._scores.get(item) == score:
                    del self._scores[item]
                    if now < self._below:
                        self._queue(now)
            if self._below == _EVERYBODY:
                return
            self._scan(popped)

    def _put_back(self, popped: Collection[int]) -> None:
        if len(popped) > 2 * self._n_wanted():
            self.reset()
        else:
            self.push_all(popped)

    def _n_wanted(self) -> int:
        return max(_MIN_QUEUED, self._graph.n_objects // _SHARE)

    def _scan(self, popped: Collection[int]) -> None:
        """Queue the worst leaves but those that were `popped` and the pinned ones, and set the bound."""
        n_wanted = self._n_wanted()
        passed = np.fromiter({*popped, *self._pinned()}, np.int64)
        items, scores = np.empty(0, np.int64), np.empty(0)
        self._below = _EVERYBODY
        for start in range(0, len(self._graph.kind), _SCANNED):
            found = self._leaves(start, start + _SCANNED)
            found = found[~np.isin(found, passed)] if len(passed) else found
            items = np.concatenate([items, found])
            scores = np.concatenate([scores, self._scores_of(found)])
            if len(items) > 2 * n_wanted:
                items, scores = self._worst(items, scores, n_wanted)
        if len(items) > n_wanted:
            items, scores = self._worst(items, scores, n_wanted)
        self._heap = list(zip(scores.tolist(), items.tolist(), strict=True))
        heapify(self._heap)
        self._scores = {item: score for score, item in self._heap}
        self._sweep_at = max(2 * _MIN_QUEUED, 2 * len(self._heap))

    def _worst(
        self, items: NDArray[np.int64], scores: NDArray[np.float64], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The `n` worst, and everything else is above the bound from now on."""
        order = np.lexsort((items, scores)) if len(items) < 1 << 16 else _nearly_lowest(items, scores, n)
        items, scores = items[order[:n]], scores[order[:n]]
        self._below = min(self._below, (float(scores[-1]), int(items[-1]) + 1))
        return items, scores

    def _scores_of(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.frombuffer(self._graph.score)[items]

    def _leaves(self, start: int, stop: int) -> NDArray[np.int64]:
        """The leaves among the objects of these numbers, ascending."""
        graph, tier_index = self._graph, self._tier_index
        here = np.flatnonzero(np.frombuffer(graph.sizes[tier_index], np.uint32)[start:stop]) + start
        child = np.frombuffer(graph.child, np.uint32)[here]
        is_inner = np.frombuffer(graph.kind, np.uint8)[here] == ROWS
        is_inner &= np.frombuffer(graph.nodes.hanging[tier_index], np.uint32)[child] > 0
        others = self._inner(here[is_inner])
        return np.union1d(here[~is_inner], others) if others else here[~is_inner]

    def _inner(self, items: NDArray[np.int64]) -> list[int]:
        """Those that are leaves although something hangs on their end: there is another way."""
        graph = self._graph
        into = np.frombuffer(graph.nodes.into, np.uint32)[np.frombuffer(graph.child, np.uint32)[items]]
        several = items[np.frombuffer(graph.next_into, np.uint32)[into] != NONE].tolist()
        return [item for item in several if self._now.is_leaf(item)]

    def _sweep(self) -> None:
        """Drop what is no leaf any more: each new block of a conversation buries the last one."""
        entries, self._heap = self._heap, []
        for score, item in entries:
            if self._scores.get(item) == score:
                if self.may_go(item):
                    self._heap.append((score, item))
                else:
                    del self._scores[item]
        heapify(self._heap)
        self._sweep_at = max(2 * _MIN_QUEUED, 2 * len(self._heap))


def _nearly_lowest(items: NDArray[np.int64], scores: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Where the `n` lowest are, in order: a sort of these alone."""
    limit = np.partition(scores, n - 1)[n - 1]
    low = np.flatnonzero(scores <= limit)
    return low[np.lexsort((items[low], scores[low]))]


def only_for(graph: Graph, items: Iterable[int], tier_index: int, is_pinned: Callable[[int], bool]) -> list[int]:
    """Those of the objects of a prefix, from its end on, that nothing else in a tier hangs on and
    nobody has pinned.
    """
    hanging = graph.nodes.hanging[tier_index]
    chosen, at_node = list[int](), list[int]()  # at_node: what has been met of what hangs on the next edge
    for item in items:
        is_here = graph.is_in(item, tier_index)
        if is_here and is_pinned(item):
            break
        if graph.kind[item] == ROWS:
            if hanging[graph.child[item]] > len(at_node):
                break
            chosen += [other for other in at_node if graph.kind[other] == END] + [item] * is_here
            at_node = []
        at_node += [item] * is_here
    return chosen


class _Round:
    """A tier as it would be without what has been taken."""

    __slots__ = ("_graph", "_tier_index", "_unhung", "n_bytes", "taken")

    def __init__(self, graph: Graph, tier_index: int) -> None:
        self._graph, self._tier_index = graph, tier_index
        self._unhung: dict[int, int] = {}
        self.taken: dict[int, None] = {}
        self.n_bytes = 0

    def is_leaf(self, item: int) -> bool:
        if item in self.taken:
            return False
        graph = self._graph
        if graph.kind[item] != ROWS or self._n_hanging(graph.child[item]) == 0:
            return True
        # What has been taken further up was a leaf itself: it disconnects nothing.
        return any(
            edge != item
            and edge not in self.taken
            and graph.is_in(edge, self._tier_index)
            and _is_connected(graph, edge, self._tier_index)
            for edge in graph.into(graph.child[item])
        )

    def take(self, item: int) -> list[int]:
        """The edges that nothing hangs on any more when `item` is gone."""
        self.taken[item] = None
        self.n_bytes += self._graph.bytes_in(item, self._tier_index)
        node = self._graph.hangs_on(item)
        if node == NONE:
            return []
        self._unhung[node] = self._unhung.get(node, 0) + 1
        return list(self._graph.into(node)) if self._n_hanging(node) == 0 else []

    def _n_hanging(self, node: int) -> int:
        return self._graph.nodes.hanging[self._tier_index][node] - self._unhung.get(node, 0)


def _is_connected(graph: Graph, edge: int, tier_index: int) -> bool:
    """Whether `tier_index` leads to `edge` from the beginning of its block."""

    def before(node: int) -> set[int]:
        return {graph.parent[into] for into in graph.into(node) if graph.is_in(into, tier_index)}

    return any(graph.nodes.depth[node] % BLOCK_TOKENS == 0 for node in _within_block(graph, graph.parent[edge], before))


def _block_from(graph: Graph, node: int) -> Iterator[int]:
    """`node` and, up to the end of its block, the nodes it leads to."""
    return _within_block(graph, node, lambda node: {graph.child[edge] for edge in graph.children(node)})


def _within_block(graph: Graph, node: int, next_to: Callable[[int], set[int]]) -> Iterator[int]:
    todo, seen = [node], {node}
    while todo:
        node = todo.pop()
        yield node
        if graph.nodes.depth[node] % BLOCK_TOKENS:
            following = next_to(node) - seen
            seen |= following
            todo += following
