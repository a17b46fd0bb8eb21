"""The way of a prompt through the index: every node that its tokens lead to, and the edge that shares most with what follows. Pure.

Edges with known tokens are followed by comparing tokens, the others by hash: sha256 of the block's parent key and the tokens since then,
once for each length that occurs among the unknown edges of a node. Lengths are taken in ascending order, so when a node is reached all
ways to it are known, and the one with the fewest edges (the fewest reads) stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import BLOCK_TOKENS, ChainKey
from cache_store.index.radix import TOKEN_BYTES, Edge, Graph, Node


class Walk:
    """`reached`: per length the node, the last edge of the shortest way to it (None at the root), and that way's number of edges.

    `part` shares its first `n_part` tokens with what follows `part.parent`, and goes further than every node; or is None.
    """

    __slots__ = ("_block_key", "_graph", "_stream", "n_part", "part", "reached")

    def __init__(self, graph: Graph, root: ChainKey, tokens: NDArray[np.uint32]) -> None:
        self._graph = graph
        self._stream = np.asarray(tokens, dtype=">u4").tobytes()
        self.reached: dict[int, tuple[Node, Edge | None, int]] = {}
        self.part: Edge | None = None
        self.n_part = 0
        node = graph.node(root, bytes.fromhex(root), 0)
        if node is not None:
            self._run(node)

    @property
    def n_whole(self) -> int:
        """The length of the longest prefix that ends on a node."""
        return max(self.reached, default=0)

    def way(self) -> list[Edge]:
        """The edges from the root to the furthest token, `part` included."""
        edges = [] if self.part is None else [self.part]
        depth = self.n_whole if self.part is None else self.part.parent.depth
        while depth > 0:
            edge = self.reached[depth][1]
            assert edge is not None
            edges.append(edge)
            depth -= edge.n_tokens
        return edges[::-1]

    def unknown_beyond(self) -> Iterator[Edge]:
        """Edges that might go further than the walk did, if only their tokens were known."""
        n_tokens = len(self._stream) // TOKEN_BYTES
        n_found = self.n_whole if self.part is None else self.part.parent.depth + self.n_part
        for depth, (node, _, _) in self.reached.items():
            for n, edges in (node.unknown or {}).items():
                # One that fits into the prompt and was not followed differs somewhere, so it shares less than all its tokens.
                if min(depth + n - 1, n_tokens) > n_found:
                    yield from edges

    def _run(self, root: Node) -> None:
        self.reached[0] = (root, None, 0)
        todo = [0]
        n_best = 0
        while todo:
            depth = heappop(todo)
            node, _, n_hops = self.reached[depth]
            if depth % BLOCK_TOKENS == 0:
                self._block_key = node.key
            whole, part, n_part = node.matches(self._stream[depth * TOKEN_BYTES : (depth + BLOCK_TOKENS) * TOKEN_BYTES])
            if node.unknown:
                whole += self._matches_by_hash(node, depth)
            for edge in whole:
                end = depth + edge.n_tokens
                if end not in self.reached:
                    heappush(todo, end)
                    self.reached[end] = (edge.child, edge, n_hops + 1)
                elif n_hops + 1 < self.reached[end][2]:
                    self.reached[end] = (edge.child, edge, n_hops + 1)
            if part is not None and depth + n_part > n_best:
                self.part, self.n_part, n_best = part, n_part, depth + n_part
        if self.n_whole >= n_best:
            self.part, self.n_part = None, 0

    def _matches_by_hash(self, node: Node, depth: int) -> list[Edge]:
        assert node.unknown is not None
        found = []
        begin = depth - depth % BLOCK_TOKENS
        block = np.frombuffer(self._stream, ">u4")[begin : begin + BLOCK_TOKENS].astype("<u4").tobytes()
        for n in node.unknown:
            n_hashed = depth - begin + n
            if n_hashed * TOKEN_BYTES > len(block):
                continue
            key = hashlib.sha256(self._block_key + block[: n_hashed * TOKEN_BYTES]).digest()
            child = self._graph.node(node.root, key, depth + n)
            found += [edge for edge in (child.into if child else []) if edge.parent is node and edge.tokens is None]
        return found
