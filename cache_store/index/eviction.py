"""Who may leave a tier, worst first: a heap of the objects that nothing in this tier hangs on.
Decides only; pure, not thread-safe.

An edge is a leaf in a tier when no object in it hangs on the edge's end, or when the tier has
another way there from the beginning of the block. ENDs and loose objects always are. Taking leaves
only, a chain never has a gap in a tier, whatever is interrupted.

The heap is repaired lazily. Scores only grow, so an entry is never above its object's place: one
that is popped with an old score goes back with the new one. An object that may not go when it is
popped leaves the heap, and returns with the event that lets it go: the last object that hung on it
was removed, another way was completed, it was unpinned. Each object is in the heap at most once
(`Item.queued`), and the heap is swept when it has doubled, so both time and space are amortised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from cache_store.format.keys import BLOCK_TOKENS
from cache_store.index.radix import Edge, Item, Node, field

_MIN_SWEEP = 1024

_Queued = tuple[float, int, Item]


class EvictionQueue:
    """The leaves of one tier. `is_pinned` tells the objects that must stay for now."""

    def __init__(self, tier_index: int, is_pinned: Callable[[Item], bool]) -> None:
        self._tier_index, self._is_pinned = tier_index, is_pinned
        self._bit = 1 << tier_index  # of `Item.queued`
        self._now = _Round(tier_index)  # nothing is taken
        self._heap: list[_Queued] = []
        self._order = count()  # of two equal scores the one queued first goes first
        self._sweep_at = _MIN_SWEEP

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: Item) -> None:
        """Queue `item` if it may go. Call it when that may have become so; too often is no harm."""
        if item.queued & self._bit or not self.may_go(item):
            return
        item.queued |= self._bit
        heappush(self._heap, (item.score, next(self._order), item))
        if len(self._heap) >= self._sweep_at:
            self._sweep()

    def push_new(self, item: Item) -> None:
        """The same for what has just come to this tier, and for what may go because an edge has
        made another way complete.
        """
        self.push(item)
        if isinstance(item, Edge):
            for node in _block_from(item.child):
                if len(node.into) > 1:
                    self.push_all(node.into)

    def push_all(self, items: Iterable[Item]) -> None:
        for item in items:
            self.push(item)

    def may_go(self, item: Item) -> bool:
        """Whether nobody needs it in this tier."""
        return item.is_in(self._tier_index) and self._now.is_leaf(item) and not self._is_pinned(item)

    def victims(self, n_bytes: int, allows: Callable[[Item], bool] | None = None) -> list[Item]:
        """Enough to free `n_bytes`, or all that may go. They stay queued: the caller who wants them
        gone removes them.
        """
        taking, popped, exposed = _Round(self._tier_index), [], list[_Queued]()
        while taking.n_bytes < n_bytes:
            heap = exposed if exposed and (not self._heap or exposed[0] < self._heap[0]) else self._heap
            if not heap:
                break
            score, order, item = heappop(heap)
            if heap is self._heap:
                if score < item.score and item.is_in(self._tier_index):
                    heappush(heap, (item.score, order, item))
                    continue
                item.queued &= ~self._bit
                popped.append(item)
            may_go = item.is_in(self._tier_index) and taking.is_leaf(item) and not self._is_pinned(item)
            if may_go and (allows is None or allows(item)):
                for edge in taking.take(item):
                    heappush(exposed, (edge.score, next(self._order), edge))
        self.push_all(popped)
        return list(taking.taken)

    def check_integrity(self, here: Collection[Item]) -> None:
        """Raise AssertionError where the queue and `here`, all objects of the tier, disagree."""
        queued, marked = [item for _, _, item in self._heap], {item for item in here if item.queued & self._bit}
        assert len(set(queued)) == len(queued), "an object is queued twice"
        assert all(item.queued & self._bit for item in queued), "queued, but not marked"
        assert marked == set(queued) & set(here), "marked, but not queued"
        assert all(item in marked for item in here if self.may_go(item)), "a leaf is not queued"

    def _sweep(self) -> None:
        """Drop what is no leaf any more: each new block of a conversation buries the last one."""
        entries, self._heap = self._heap, []
        for entry in entries:
            if self.may_go(entry[2]):
                self._heap.append(entry)
            else:
                entry[2].queued &= ~self._bit
        heapify(self._heap)
        self._sweep_at = max(_MIN_SWEEP, 2 * len(self._heap))


class _Round:
    """A tier as it would be without what has been taken."""

    __slots__ = ("_tier_index", "_unhung", "n_bytes", "taken")

    def __init__(self, tier_index: int) -> None:
        self._tier_index = tier_index
        self._unhung: dict[Node, int] = {}
        self.taken: dict[Item, None] = {}
        self.n_bytes = 0

    def is_leaf(self, item: Item) -> bool:
        if item in self.taken:
            return False
        if not isinstance(item, Edge) or self._n_hanging(item.child) == 0:
            return True
        # What has been taken further up was a leaf itself: it disconnects nothing.
        return any(
            edge is not item
            and edge not in self.taken
            and edge.is_in(self._tier_index)
            and _is_connected(edge, self._tier_index)
            for edge in item.child.into
        )

    def take(self, item: Item) -> list[Edge]:
        """The edges that nothing hangs on any more when `item` is gone."""
        self.taken[item] = None
        self.n_bytes += item.bytes_in(self._tier_index)
        node = item.hangs_on()
        if node is None:
            return []
        self._unhung[node] = self._unhung.get(node, 0) + 1
        return node.into if self._n_hanging(node) == 0 else []

    def _n_hanging(self, node: Node) -> int:
        return field(node.hanging, self._tier_index) - self._unhung.get(node, 0)


def _is_connected(edge: Edge, tier_index: int) -> bool:
    """Whether `tier_index` leads to `edge` from the beginning of its block."""
    before = _within_block(edge.parent, lambda node: {into.parent for into in node.into if into.is_in(tier_index)})
    return any(node.depth % BLOCK_TOKENS == 0 for node in before)


def _block_from(node: Node) -> Iterator[Node]:
    """`node` and, up to the end of its block, the nodes it leads to."""
    return _within_block(node, lambda node: {edge.child for edge in node.children()})


def _within_block(node: Node, next_to: Callable[[Node], set[Node]]) -> Iterator[Node]:
    todo, seen = [node], {node}
    while todo:
        node = todo.pop()
        yield node
        if node.depth % BLOCK_TOKENS:
            following = next_to(node) - seen
            seen |= following
            todo += following
