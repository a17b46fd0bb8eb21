"""The way of a prompt through the index: every node that its tokens lead to, and the edge that
shares most with what follows.

Edges with known tokens are followed by comparing tokens, the others by hash: the prompt's key at
the edge's end, once for each length that occurs among the unknown edges of a node. Lengths are
taken in ascending order, so when a node is reached all ways to it are known, and the one with the
fewest edges (the fewest reads) stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter

from cache_store.format.block import BlockId
from cache_store.format.keys import BLOCK_TOKENS, TokenChain
from cache_store.index.radix import TOKEN_BYTES, Edge, Graph, Node

MAX_UNKNOWN = 16  # ROWS objects that a path names for its reader to look into
MAX_BRANCH = 1024  # tokens of a stored prefix behind the point where a prompt leaves it
_MAX_LOOKED_AT = 64  # edges of one node: there may be ten thousand


@dataclass(frozen=True, slots=True)
class Hop:
    """The first `n_use` tokens of a ROWS object: all that it has but in the last hop of a path."""

    id: BlockId
    n_use: int


class Path:
    """The stored part of a prompt at the moment of the walk. Immutable, and read without the
    index's lock: names do not change.

    n_tokens    the length of the longest common prefix with what is stored, to the token
    n_whole     the length of the longest prefix that whole ROWS objects cover: where a save goes on
    ends        the END objects of prefixes up to there that some whole edges lead to, ascending by
                length
    unknown     up to MAX_UNKNOWN ROWS objects that might make it longer: who reads and `learn`s
                their tokens may ask again
    """

    __slots__ = ("_part", "_reached", "ends", "n_tokens", "n_whole", "unknown")

    def __init__(self, graph: Graph, chain: TokenChain) -> None:
        """The caller holds the lock of whoever owns `graph`."""
        # per length the node, the last edge of the shortest way to it (None at the root), and that
        # way's number of edges
        self._reached: dict[int, tuple[Node, Edge | None, int]] = {}
        self._part: Edge | None = None  # it shares its first tokens with the prompt, and goes further than every node
        self.n_tokens = self._walk(graph, chain)
        self.n_whole = max(self._reached, default=0)
        ends = (self._reached[depth][0].end for depth in sorted(self._reached))
        self.ends = tuple(end.id for end in ends if end is not None)
        self.unknown = tuple(edge.id for edge in islice(self._unknown_beyond(len(chain)), MAX_UNKNOWN))

    def __repr__(self) -> str:
        return f"<Path of {self.n_tokens} tokens, {self.n_whole} in whole objects, {len(self.ends)} ends>"

    def reaches_beyond(self, before: Path) -> bool:
        """Whether an earlier walk of the same prompt knew less."""
        mine = (self.n_tokens, self.n_whole, len(self.ends))
        return mine > (before.n_tokens, before.n_whole, len(before.ends)) or self.unknown != before.unknown

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The fewest objects that hold the prefix, in order."""
        if self._part is None:
            return self.hops_to(self.n_whole)
        depth = self._part.parent.depth
        return (*self.hops_to(depth), Hop(self._part.id, self.n_tokens - depth))

    def hops_to(self, n: int) -> tuple[Hop, ...]:
        """The same for the first `n` tokens, at which some whole objects end."""
        edges: list[Edge] = []
        while n > 0:
            edge = self._reached[n][1]
            assert edge is not None
            edges.append(edge)
            n -= edge.n_tokens
        return tuple(Hop(edge.id, edge.n_tokens) for edge in reversed(edges))

    def branch(self) -> bytes:
        """The tokens (big-endian uint32) behind the first `n_tokens` on the stored prefix that shares most
        with the prompt, at most `MAX_BRANCH` and as far as they are known; b"" where nothing follows. Where
        several prefixes go on, the one that was used most. The caller holds the lock of the graph's owner.
        """
        found, node = b"", self._reached[self.n_whole][0] if self._reached else None
        if self._part is not None:
            found = (self._part.tokens or b"")[(self.n_tokens - self._part.parent.depth) * TOKEN_BYTES :]
            node = self._part.child
        while node is not None and len(found) < MAX_BRANCH * TOKEN_BYTES:
            known = (edge for edge in islice(node.children(), _MAX_LOOKED_AT) if edge.tokens)
            edge = max(known, key=attrgetter("score"), default=None)
            if edge is None:
                break
            found, node = found + (edge.tokens or b""), edge.child
        return found[: MAX_BRANCH * TOKEN_BYTES]

    def _walk(self, graph: Graph, chain: TokenChain) -> int:
        """Fill `_reached` and `_part`; the length of the prefix."""
        root = graph.node(chain.root, bytes.fromhex(chain.root), 0)
        if root is None:
            return 0
        self._reached[0] = (root, None, 0)
        stream, todo, n_best = chain.ids.astype(">u4").tobytes(), [0], 0
        while todo:
            depth = heappop(todo)
            node, _, n_hops = self._reached[depth]
            whole, part, n_part = node.matches(stream[depth * TOKEN_BYTES : (depth + BLOCK_TOKENS) * TOKEN_BYTES])
            for edge in whole + _matches_by_hash(graph, node, chain, depth) if node.unknown else whole:
                end = depth + edge.n_tokens
                if end not in self._reached:
                    heappush(todo, end)
                if end not in self._reached or n_hops + 1 < self._reached[end][2]:
                    self._reached[end] = (edge.child, edge, n_hops + 1)
            if part is not None and depth + n_part > n_best:
                self._part, n_best = part, depth + n_part
        n_whole = max(self._reached)
        if n_whole >= n_best:
            self._part = None
        return max(n_whole, n_best)

    def _unknown_beyond(self, n_prompt: int) -> Iterator[Edge]:
        """Edges that might go further than the walk did, if only their tokens were known."""
        for depth, (node, _, _) in self._reached.items():
            for n, edges in (node.unknown or {}).items():
                # An edge that fits into the prompt and was not followed differs somewhere, so it
                # shares less than all its tokens.
                if min(depth + n - 1, n_prompt) > self.n_tokens:
                    yield from edges


def _matches_by_hash(graph: Graph, node: Node, chain: TokenChain, depth: int) -> list[Edge]:
    found: list[Edge] = []
    for n in node.unknown or ():
        if depth + n <= len(chain):
            child = graph.node(node.root, bytes.fromhex(chain.key_at(depth + n)), depth + n)
            found += [edge for edge in (child.into if child else []) if edge.parent is node and edge.tokens is None]
    return found


def way_back(node: Node) -> list[BlockId]:
    """The objects on a way from the root to `node`, in order, ENDs behind the edges that lead to them;
    [] when none leads there.
    """
    came: dict[Node, Edge | None] = {node: None}
    todo = [node]
    while todo:
        here = todo.pop()
        if here.depth == 0:
            return _objects_from(came[here], came) if here.key == here.root else []
        for edge in here.into:
            if edge.parent not in came:
                came[edge.parent] = edge
                todo.append(edge.parent)
    return []


def _objects_from(edge: Edge | None, came: dict[Node, Edge | None]) -> list[BlockId]:
    ids: list[BlockId] = []
    while edge is not None:
        ids.append(edge.id)
        if edge.child.end is not None:
            ids.append(edge.child.end.id)
        edge = came[edge.child]
    return ids
