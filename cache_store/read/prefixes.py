"""Which stored prefixes are worth most: what a process that has just started should have ready.
Decides on the index; reads tokens only.

A prefix is worth, per token, the hits that its objects have had, each halved every six hours
(`frecency`). The choice is greedy: each next one brings most for tokens that none before it has, so
a system prompt that a hundred conversations begin with counts once, and the second choice is
another prompt rather than another of those conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, nlargest

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey
from cache_store.index import frecency
from cache_store.index.index import IndexRow
from cache_store.records import CachedPrefix
from cache_store.tiers.stack import TierStack

Prefix = tuple[ChainKey, int]  # its key and its length


class Hottest:
    """The prefixes of one root, once. `learn(id)` reads the tokens of an object into the index, or
    returns False.
    """

    def __init__(self, stack: TierStack, root: ChainKey, learn: Callable[[BlockId], bool]) -> None:
        self._stack = stack
        self._learn = learn
        self._worth: dict[BlockId, float] = {}
        self._into: dict[Prefix, BlockId] = {}  # the best way into each node that the root leads to
        self._leaves = self._walk(root, edges_of(stack, root))

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
        now_s = max((entry.last_used_s for entry in edges.values()), default=0.0)
        values: dict[Prefix, float] = {(root, 0): 0.0}
        inner: set[Prefix] = set()
        # whatever leads into a node begins before it, and so before what goes on from it
        for id in sorted(edges, key=lambda id: id.start):
            entry, node = edges[id], (id.key, id.start + id.n_tokens)
            above = values.get((id.parent, id.start))
            if above is None:
                continue  # out of reach
            inner.add((id.parent, id.start))
            worth = id.n_tokens * frecency.worth(frecency.score_of(1 + entry.hits, entry.last_used_s), now_s)
            self._worth[id] = worth
            if above + worth > values.get(node, -1.0):
                values[node], self._into[node] = above + worth, id
        return {node: value for node, value in values.items() if node not in inner and node in self._into}

    def _way(self, node: Prefix) -> list[BlockId]:
        way: list[BlockId] = []
        while (id := self._into.get(node)) is not None:
            way.append(id)
            node = (id.parent, id.start)
        return way[::-1]

    def _tokens(self, way: list[BlockId]) -> bytes | None:
        parts: list[bytes] = []
        for id in way:
            tokens = self._stack.index.tokens_of(id)
            if tokens is None and self._learn(id):
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


def leaf_prefixes(stack: TierStack, root: ChainKey | None, limit: int) -> tuple[CachedPrefix, ...]:
    """At most `limit`, most recently used first; `root` None: of all roots. `n_bytes` counts the
    whole way, in its fastest tiers.
    """
    edges = edges_of(stack, root)
    parents = {(id.parent, id.start) for id in edges}
    leaves = [entry for id, entry in edges.items() if (id.key, id.start + id.n_tokens) not in parents]
    into = {(id.key, id.start + id.n_tokens): entry for id, entry in edges.items()}
    chosen = nlargest(limit, leaves, key=lambda entry: entry.last_used_s)
    return tuple(_prefix(stack, entry, into) for entry in chosen)


def edges_of(stack: TierStack, root: ChainKey | None) -> dict[BlockId, IndexRow]:
    """The ROWS objects of a root (None: of all), as they are in their fastest tiers."""
    found: dict[BlockId, IndexRow] = {}
    for tier in range(stack.staged + 1):
        for entry in stack.index.rows(tier):
            if entry.id.kind is Kind.ROWS and root in (None, entry.id.root):
                found.setdefault(entry.id, entry)
    return found


def _prefix(stack: TierStack, leaf: IndexRow, into: dict[tuple[ChainKey, int], IndexRow]) -> CachedPrefix:
    id, n_bytes, step = leaf.id, 0, leaf
    while True:
        n_bytes += step.n_bytes
        above = into.get((step.id.parent, step.id.start))
        if above is None:
            break
        step = above
    labels = tuple(stack.tiers[tier].label for tier in stack.index.tiers_of(id) if tier < stack.staged)
    return CachedPrefix(id.root, id.key, id.start + id.n_tokens, labels, n_bytes, leaf.hits)
