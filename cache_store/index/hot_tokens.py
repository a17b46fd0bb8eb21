"""The token ids of objects that were used lately, in a bounded number of bytes. Pure, not
thread-safe.

Tokens are big-endian uint32 bytes: their order as bytes is their order as tokens, so that bisecting
the sorted objects of a node finds the one that shares most with a prompt without looking at the
others (there may be 10 000).

Of every object that was ever known by its tokens a *fingerprint* stays when they have to go:

    bits 16..31     of its first token, never 0
    bits 0..15      of its first HEAD_TOKENS tokens, never 0; 0 where it has fewer

So of a thousand objects that go on from one prefix a prompt has to look into a few only. Two
fingerprints that differ prove that tokens differ; nothing is concluded from equal ones.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from zlib import crc32

TOKEN_BYTES = 4
HEAD_TOKENS = 16
UNKNOWN = 0  # the fingerprint of an object whose tokens were never known
_OVERHEAD = 250  # bytes of Python objects around the tokens of one object


def fingerprint(tokens: bytes) -> int:
    """See the module. `UNKNOWN` for no tokens."""
    if not tokens:
        return UNKNOWN
    first = crc32(tokens[:TOKEN_BYTES]) >> 16 or 1
    head = crc32(tokens[: HEAD_TOKENS * TOKEN_BYTES]) & 0xFFFF or 1
    return first << 16 | (head if len(tokens) >= HEAD_TOKENS * TOKEN_BYTES else 0)


def most_in_common(one: int, other: int) -> int | None:
    """How many leading tokens two objects of these fingerprints share at most; None: as many as they
    like.
    """
    if one == UNKNOWN or other == UNKNOWN:
        return None
    if one >> 16 != other >> 16:
        return 0
    differ = one & 0xFFFF and other & 0xFFFF and one != other
    return HEAD_TOKENS - 1 if differ else None


def n_common(a: bytes, b: bytes) -> int:
    """How many leading tokens two packed token strings share."""
    if b.startswith(a):
        return len(a) // TOKEN_BYTES
    n_bytes = min(len(a), len(b))
    differing = int.from_bytes(a[:n_bytes]) ^ int.from_bytes(b[:n_bytes])
    return (n_bytes - (differing.bit_length() + 7) // 8) // TOKEN_BYTES


class HotTokens:
    """Tokens by the number of a ROWS object; `parent` (`radix.Graph`) tells the node that each begins
    at. What was used longest ago goes first.
    """

    def __init__(self, max_bytes: int, parent: array[int]) -> None:
        self._max_bytes = max_bytes
        self._parent = parent
        self._tokens: dict[int, bytes] = {}  # least recently used first
        self._at_node: dict[int, int | list[int]] = {}  # objects, sorted by tokens; most nodes have one
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def n_bytes(self) -> int:
        """What all of it takes, about."""
        return self._n_bytes

    @property
    def has_room(self) -> bool:
        """Whether something can be kept without anything else being dropped."""
        return self._n_bytes < self._max_bytes

    def get(self, edge: int) -> bytes | None:
        return self._tokens.get(edge)

    def use(self, edge: int) -> None:
        """Keep these for longer than all others."""
        tokens = self._tokens.pop(edge, None)
        if tokens is not None:
            self._tokens[edge] = tokens

    def put(self, edge: int, tokens: bytes) -> None:
        if self._tokens.get(edge) == tokens:
            self.use(edge)
            return
        self.drop(edge)
        self._tokens[edge] = tokens
        node = self._parent[edge]
        others = self.at_node(node)
        if others:
            insort(others, edge, key=self._tokens.__getitem__)
            self._at_node[node] = others
        else:
            self._at_node[node] = edge
        self._n_bytes += len(tokens) + _OVERHEAD
        while self._n_bytes > self._max_bytes:
            self.drop(next(iter(self._tokens)))

    def drop(self, edge: int) -> None:
        tokens = self._tokens.get(edge)
        if tokens is None:
            return
        node = self._parent[edge]
        others = self.at_node(node)
        del others[others.index(edge, bisect_left(others, tokens, key=self._tokens.__getitem__))]
        if others:
            self._at_node[node] = others if len(others) > 1 else others[0]
        else:
            del self._at_node[node]
        del self._tokens[edge]
        self._n_bytes -= len(tokens) + _OVERHEAD

    def at_node(self, node: int) -> list[int]:
        """The objects that begin at a node and whose tokens are known, sorted by them."""
        found = self._at_node.get(node, [])
        return [found] if isinstance(found, int) else found

    def part(self, node: int, window: bytes) -> tuple[int | None, int]:
        """(of the objects at a node that do not begin `window` whole, the one that shares most with it,
        how many tokens that shares): (None, 0) where none shares any.

        O(log n) for each object that begins `window`. The one that shares most is a neighbour of the
        place where `window` would be inserted. Objects that begin `window` lie before that place;
        between them lie others that share a shorter and shorter part, and bisecting for that part
        skips all that share it.
        """
        edges = self.at_node(node)
        best, n_best = None, 0
        place = bisect_right(edges, window, key=self._tokens.__getitem__)
        for edge in (*self._before(edges, place, window), *edges[place : place + 1]):
            n_shared = n_common(self._tokens[edge], window)
            if n_shared > n_best:
                best, n_best = edge, n_shared
        return best, n_best

    def _before(self, edges: list[int], at: int, window: bytes) -> Iterator[int]:
        while at > 0:
            edge = edges[at - 1]
            n_shared = n_common(self._tokens[edge], window)
            if n_shared * TOKEN_BYTES == len(self._tokens[edge]):
                at -= 1
                continue
            if n_shared == 0:
                return
            yield edge
            at = bisect_right(edges, window[: n_shared * TOKEN_BYTES], hi=at - 1, key=self._tokens.__getitem__)

    def check_integrity(self) -> None:
        at_nodes = [edge for node in self._at_node for edge in self.at_node(node)]
        assert sorted(at_nodes) == sorted(self._tokens), "objects with tokens"
        for node in self._at_node:
            edges = self.at_node(node)
            assert all(self._parent[edge] == node for edge in edges), "tokens at another node"
            known = [self._tokens[edge] for edge in edges]
            assert known == sorted(known), "tokens are not sorted"
        assert self._n_bytes == sum(len(tokens) + _OVERHEAD for tokens in self._tokens.values()), "bytes of tokens"
