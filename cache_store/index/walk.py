"""The way of a prompt through the index: every node that its tokens lead to, and the edge that
shares most with what follows.

Edges are followed by hash: the prompt's key at the edge's end, computed once for each length that
occurs among the edges of a node. Where tokens are known they must agree, and tell which edge shares
a part; where they are not, fingerprints leave few that may. Lengths are taken in ascending order,
so when a node is reached all ways to it are known, and the one with the fewest edges (the fewest
reads) stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId
from cache_store.format.keys import BLOCK_TOKENS, TokenChain
from cache_store.index.hot_tokens import TOKEN_BYTES
from cache_store.index.nodes import NONE
from cache_store.index.radix import Graph

MAX_UNKNOWN = 16  # ROWS objects that a path names for its reader to look into
MAX_BRANCH = 1024  # tokens of a stored prefix behind the point where a prompt leaves it
_FOLLOWED_FAR = 2 * BLOCK_TOKENS
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
    unknown     up to MAX_UNKNOWN ROWS objects that might make it longer, those first that might most:
                who reads and `learn`s their tokens may ask again
    """

    __slots__ = ("_chain", "_part", "_reached", "ends", "n_tokens", "n_whole", "unknown")

    def __init__(self, graph: Graph, chain: TokenChain) -> None:
        """The caller holds the lock of whoever owns `graph`."""
        self._chain = chain
        stream = chain.ids.astype(">u4").tobytes()
        # per length that of the last edge of the shortest way to it (0 at the root), and that way's
        # number of edges
        self._reached: dict[int, tuple[int, int]] = {}
        self._part: BlockId | None = None  # it shares its first tokens, and goes further than every node
        nodes = self._walk(graph, stream)
        self.n_whole = max(self._reached, default=0)
        self.n_tokens = self._take_part(graph, nodes, stream)
        with_end = (depth for depth in sorted(nodes) if graph.nodes.end[nodes[depth]] != NONE)
        self.ends = tuple(BlockId.of_end(chain.prefix(depth)) for depth in with_end)
        self.unknown = tuple(graph.id_of(item) for item in self._unknown_beyond(graph, nodes, stream))

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
        return (*self.hops_to(self._part.start), Hop(self._part, self.n_tokens - self._part.start))

    def hops_to(self, n: int) -> tuple[Hop, ...]:
        """The same for the first `n` tokens, at which some whole objects end."""
        hops: list[Hop] = []
        while n > 0:
            n_tokens = self._reached[n][0]
            hops.append(Hop(BlockId.of_rows(self._chain, n - n_tokens, n), n_tokens))
            n -= n_tokens
        return tuple(reversed(hops))

    def branch(self, graph: Graph) -> bytes:
        """The tokens (big-endian uint32) behind the first `n_tokens` on the stored prefix that shares most
        with the prompt, at most `MAX_BRANCH` and as far as they are known; b"" where nothing follows. Where
        several prefixes go on, the one that was used most. The caller holds the lock of the graph's owner.
        """
        found, node = b"", graph.node_at(self._chain, self.n_whole)
        if self._part is not None:
            part = graph.find(self._part)
            tokens = None if part == NONE else graph.tokens.get(part)
            found, node = (tokens or b"")[(self.n_tokens - self._part.start) * TOKEN_BYTES :], NONE
            if tokens is not None:
                node = graph.child[part]
        while node != NONE and len(found) < MAX_BRANCH * TOKEN_BYTES:
            known = graph.tokens.at_node(node)[:_MAX_LOOKED_AT]
            edge = max(known, key=graph.score.__getitem__, default=None)
            if edge is None:
                break
            found, node = found + (graph.tokens.get(edge) or b""), graph.child[edge]
        return found[: MAX_BRANCH * TOKEN_BYTES]

    def _walk(self, graph: Graph, stream: bytes) -> dict[int, int]:
        """Fill `_reached`; the node of each length."""
        if (root := graph.node_at(self._chain, 0)) == NONE:
            return {}
        self._reached[0] = (0, 0)
        nodes, todo = {0: root}, [0]
        while todo:
            depth = heappop(todo)
            if depth == _FOLLOWED_FAR:  # all keys in one pass cost less than one at a time
                self._chain.block_keys()
            n_hops = self._reached[depth][1] + 1
            for edge in graph.whole(nodes[depth], self._chain, depth, _window(stream, depth)):
                n_tokens = graph.n_tokens[edge]
                end = depth + n_tokens
                if end not in nodes:
                    heappush(todo, end)
                    nodes[end] = graph.child[edge]
                if end not in self._reached or n_hops < self._reached[end][1]:
                    self._reached[end] = (n_tokens, n_hops)
        return nodes

    def _take_part(self, graph: Graph, nodes: dict[int, int], stream: bytes) -> int:
        """Fill `_part`; the length of the prefix."""
        best, n_best = None, self.n_whole
        for depth, node in nodes.items():
            if depth + BLOCK_TOKENS > n_best:
                part, n_part = graph.tokens.part(node, _window(stream, depth))
                if part is not None and depth + n_part > n_best:
                    best, n_best = part, depth + n_part
        if best is not None:
            graph.tokens.use(best)
            self._part = graph.id_of(best)
        return n_best

    def _unknown_beyond(self, graph: Graph, nodes: dict[int, int], stream: bytes) -> list[int]:
        """Edges that might go further than the walk did, if only their tokens were known."""
        n_prompt, found = len(self._chain), list[tuple[int, int]]()
        for depth, node in nodes.items():
            if self.n_tokens < min(depth + BLOCK_TOKENS - 1, n_prompt):
                for edge, at_most in graph.unread(node, _window(stream, depth)):
                    # An edge that fits into the prompt and was not followed differs somewhere, so it
                    # shares less than all its tokens.
                    if (upto := min(depth + at_most, n_prompt)) > self.n_tokens:
                        found.append((-upto, edge))
        return [edge for _, edge in sorted(found)[:MAX_UNKNOWN]]


def _window(stream: bytes, depth: int) -> bytes:
    """The tokens of a prompt that an edge from there may have."""
    return stream[depth * TOKEN_BYTES : (depth + BLOCK_TOKENS) * TOKEN_BYTES]


def way_back(graph: Graph, node: int) -> list[BlockId]:
    """The objects on a way from the root to `node`, in order, ENDs behind the edges that lead to them;
    [] when none leads there.
    """
    came: dict[int, int] = {node: NONE}  # the edge that goes on from a node
    todo = [node]
    while todo:
        here = todo.pop()
        if graph.nodes.depth[here] == 0:
            is_root = graph.nodes.key(here) == graph.nodes.root_key(here)
            return _objects_from(graph, came[here], came) if is_root else []
        for edge in graph.into(here):
            if graph.parent[edge] not in came:
                came[graph.parent[edge]] = edge
                todo.append(graph.parent[edge])
    return []


def _objects_from(graph: Graph, edge: int, came: dict[int, int]) -> list[BlockId]:
    ids: list[BlockId] = []
    while edge != NONE:
        ids.append(graph.id_of(edge))
        end = graph.nodes.end[graph.child[edge]]
        if end != NONE:
            ids.append(graph.id_of(end))
        edge = came[graph.child[edge]]
    return ids


def proves(graph: Graph, id: BlockId, tokens: NDArray[np.uint32]) -> bool:
    """See `Index.proves`."""
    begin, root = id.parent, graph.nodes.roots.find(id.root)
    if id.start % BLOCK_TOKENS:
        node = NONE if root is None else graph.nodes.find(root, bytes.fromhex(id.parent), id.start)
        before = None if node == NONE else graph.block_until(node)
        if before is None:
            return False
        begin, tokens = graph.nodes.key(before[0]), np.concatenate([np.frombuffer(before[1], ">u4"), tokens])
    return TokenChain(begin, tokens).key_at(len(tokens)) == id.key
