"""Which stored prefixes are worth most: what a process that has just started should have ready.
Decides on the index; reads tokens only.

A prefix is worth, per token, the hits that its objects have had, each halved every six hours
(`frecency`). The choice is greedy: each next one brings most for tokens that none before it has, so
a system prompt that a hundred conversations begin with counts once, and the second choice is
another prompt rather than another of those conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush, nlargest

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey
from cache_store.index import frecency
from cache_store.index.columns import IndexRow
from cache_store.records import CachedPrefix
from cache_store.sharing.pin import Pin
from cache_store.tiers.stack import TierStack

Prefix = tuple[ChainKey, int]  # its key and its length


class Hottest:
    """The prefixes of one root, once. `learn(id)` may read an object's tokens into the index."""

    def __init__(self, stack: TierStack, root: ChainKey, learn: Callable[[BlockId], object]) -> None:
        self._stack = stack
        self._learn = learn
        self._worth: dict[BlockId, float] = {}
        self._into: dict[Prefix, BlockId] = {}  # the best way into each node that the root leads to
        self._leaves = self._walk(root, _edges_of(stack, root))

    def take(self, limit: int) -> list[NDArray[np.uint32]]:
        """The tokens of at most `limit`, most valuable first, none the beginning of another. Those
        whose tokens nobody has are left out.
        """
        heap = [(-value, *leaf) for leaf, value in self._leaves.items()]
        heapify(heap)
        chosen: list[bytes] = []
        covered: set[BlockId] = set()
        while heap and len(chosen) < limit:
            _, key, depth = heappop(heap)
            way = self._way((key, depth))
            value = sum(self._worth[id] for id in way if id not in covered)
            if heap and -value > heap[0][0]:  # others have covered some of it: it waits for its turn
                heappush(heap, (-value, key, depth))
                continue
            tokens = self._tokens(way)
            if tokens is not None and _extends(chosen, tokens):
                covered.update(way)
        return [np.frombuffer(tokens, ">u4").astype(np.uint32) for tokens in chosen]

    def _walk(self, root: ChainKey, edges: dict[BlockId, IndexRow]) -> dict[Prefix, float]:
        """Leaves and the value of the whole way to each."""
        now_s = max((row.last_used_s for row in edges.values()), default=0.0)
        values: dict[Prefix, float] = {(root, 0): 0.0}
        inner: set[Prefix] = set()
        # whatever leads into a node begins before it, and so before what goes on from it
        for id in sorted(edges, key=lambda id: id.start):
            row, node, above = edges[id], _end(id), values.get(_beginning(id))
            if above is None:
                continue  # out of reach
            inner.add(_beginning(id))
            worth = id.n_tokens * frecency.worth(frecency.score_of(1 + row.hits, row.last_used_s), now_s)
            self._worth[id] = worth
            if above + worth > values.get(node, -1.0):
                values[node], self._into[node] = above + worth, id
        return {node: value for node, value in values.items() if node not in inner and node in self._into}

    def _way(self, node: Prefix) -> list[BlockId]:
        way: list[BlockId] = []
        while (id := self._into.get(node)) is not None:
            way.append(id)
            node = _beginning(id)
        return way[::-1]

    def _tokens(self, way: list[BlockId]) -> bytes | None:
        parts: list[bytes] = []
        for id in way:
            if self._stack.index.tokens_of(id) is None:
                self._learn(id)
            tokens = self._stack.index.tokens_of(id)
            if tokens is None:
                return None
            parts.append(tokens)
        return b"".join(parts)


def _extends(chosen: list[bytes], tokens: bytes) -> bool:
    """Add `tokens` to `chosen`, or in the place of what they continue; False when they are the
    beginning of one of them. (A block may have been cut twice: then one leaf is the beginning of
    another.)
    """
    if any(other.startswith(tokens) for other in chosen):
        return False
    beginnings = [i for i, other in enumerate(chosen) if tokens.startswith(other)]
    if beginnings:
        chosen[beginnings[0]] = tokens
    else:
        chosen.append(tokens)
    return True


_Into = dict[Prefix, IndexRow]  # the way into each prefix

_ORDERS: dict[str, Callable[[IndexRow, _Into], float]] = {
    "recent": lambda leaf, into: leaf.last_used_s,
    "hits": lambda leaf, into: leaf.hits,
    "bytes": lambda leaf, into: sum(row.n_bytes for row in _back(leaf, into)),
    "tokens": lambda leaf, into: _end(leaf.id)[1],
}
ORDERS = tuple(_ORDERS)
_HEAD_TOKENS = 48  # of a prefix, for people to know it by
_HEAD_BYTES = 4 * _HEAD_TOKENS


def leaf_prefixes(
    stack: TierStack, root: ChainKey | None, limit: int, order: str = "recent", pins: Iterable[Pin] = ()
) -> tuple[CachedPrefix, ...]:
    """At most `limit`, those that come first in one of `ORDERS`; `root` None: of all roots. `n_bytes`
    counts the whole way, in its fastest tiers.
    """
    edges = _edges_of(stack, root)
    inner = {_beginning(id) for id in edges}
    leaves = [row for id, row in edges.items() if _end(id) not in inner]
    into = {_end(id): row for id, row in edges.items()}
    chosen = nlargest(limit, leaves, key=lambda row: _ORDERS[order](row, into))
    names = _names_by_object(pins)
    return tuple(_prefix(stack, row, into, names) for row in chosen)


def prefix_of(stack: TierStack, key: ChainKey, pins: Iterable[Pin] = ()) -> CachedPrefix | None:
    """One stored prefix, also one that something longer continues; None when it is not stored whole."""
    rows = [row for id in stack.index.way_to(key) if id.kind is Kind.ROWS and (row := stack.index.row(id))]
    if not rows or rows[-1].id.key != key:
        return None
    return _prefix(stack, rows[-1], {_end(row.id): row for row in rows}, _names_by_object(pins))


def _names_by_object(pins: Iterable[Pin]) -> dict[BlockId, list[str]]:
    names: dict[BlockId, list[str]] = {}
    for pin in pins:
        for id in pin.rows:
            names.setdefault(id, []).append(pin.name)
    return names


def _edges_of(stack: TierStack, root: ChainKey | None) -> dict[BlockId, IndexRow]:
    """The ROWS objects of a root (None: of all), as they are in their fastest tiers."""
    found: dict[BlockId, IndexRow] = {}
    for tier in range(stack.staged + 1):
        for row in stack.index.rows(tier):
            if row.id.kind is Kind.ROWS and root in (None, row.id.root):
                found.setdefault(row.id, row)
    return found


def _back(leaf: IndexRow, into: _Into) -> Iterator[IndexRow]:
    """The way to `leaf`, from there on to its root."""
    row: IndexRow | None = leaf
    while row is not None:
        yield row
        row = into.get(_beginning(row.id))


def _prefix(stack: TierStack, leaf: IndexRow, into: _Into, names: dict[BlockId, list[str]]) -> CachedPrefix:
    way = list(_back(leaf, into))
    head = (way[-1].tokens or b"")[:_HEAD_BYTES] if way[-1].id.start == 0 else b""
    key, n_tokens = _end(leaf.id)
    labels = tuple(stack.tiers[tier].label for tier in stack.index.tiers_of(leaf.id) if tier < stack.staged)
    return CachedPrefix(
        leaf.id.root,
        key,
        n_tokens,
        labels,
        sum(row.n_bytes for row in way),
        leaf.hits,
        leaf.last_used_s,
        tuple(np.frombuffer(head, ">u4").tolist()),
        tuple(names.get(leaf.id, ())),
    )


def _beginning(id: BlockId) -> Prefix:
    return id.parent, id.start


def _end(id: BlockId) -> Prefix:
    return id.key, id.start + id.n_tokens
