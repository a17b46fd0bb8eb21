"""What hangs on what in the index: nodes are token prefixes, ROWS objects the edges between them.
Pure, not thread-safe.

A node is a prefix key *and* a length, so every edge leads to a longer prefix: whatever names a
directory holds, there is no cycle. Two saves may have cut one block at different points; as no edge
crosses a multiple of BLOCK_TOKENS, both paths meet again at its end.

    Node  <-- parent  Edge  child -->  Node          ROWS
    Node  <-- node    End                            END
                      Loose                          REPLAY, and names that no save of ours makes:
                                                     on no path, kept to be evicted

Memory decides the representation, because tokens alone are 1 kB per block: slots, 32-byte keys, one
int for small numbers per tier, ids built on demand. Tokens are kept as big-endian uint32 bytes:
their order as bytes is their order as tokens, so that bisecting the sorted edges of a node finds
the one that shares most with a prompt without looking at the others (there may be 10 000).
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey

KEY_BYTES = 32
TOKEN_BYTES = 4
_FIELD_BITS = 48
_FIELD_MASK = (1 << _FIELD_BITS) - 1
MAX_FIELD = _FIELD_MASK - 1


def field(packed: int, tier_index: int) -> int:
    """The number of `tier_index` in an int that packs one per tier."""
    return packed >> (_FIELD_BITS * tier_index) & _FIELD_MASK


def field_of(value: int, tier_index: int) -> int:
    """What to add to a packed int to add `value` to the number of `tier_index`."""
    return value << (_FIELD_BITS * tier_index)


def key_of(digest: bytes) -> ChainKey:
    return ChainKey(digest.hex())


class Item(ABC):
    """One object. `sizes` packs its bytes + 1 per tier (0: not there), `queued` the tiers whose
    eviction queue has it, as bits.
    """

    __slots__ = ("n_uses", "queued", "score", "sizes")

    def __init__(self) -> None:
        self.n_uses, self.score = 0, -math.inf
        self.sizes = self.queued = 0

    @property
    @abstractmethod
    def id(self) -> BlockId:
        """The name, made from where the object hangs."""

    def is_in(self, tier_index: int) -> bool:
        return field(self.sizes, tier_index) != 0

    def bytes_in(self, tier_index: int) -> int:
        """Its size in a tier that it is in."""
        return field(self.sizes, tier_index) - 1

    def hangs_on(self) -> Node | None:
        """The node that must be reachable for this object to be of use."""
        return None


class Loose(Item):
    """An object that hangs on nothing."""

    __slots__ = ("id",)
    id: BlockId

    def __init__(self, id: BlockId) -> None:
        super().__init__()
        self.id = id


class End(Item):
    """An END object: belongs to the point that its node stands for."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    @property
    def id(self) -> BlockId:
        key = self.node.key
        return BlockId(self.node.root, Kind.END, key, key, self.node.depth)

    def hangs_on(self) -> Node | None:
        return self.node


class Edge(Item):
    """A ROWS object. `tokens` is None while they are not known."""

    __slots__ = ("child", "n_tokens", "parent", "tokens")

    def __init__(self, parent: Node, child: Node, n_tokens: int, tokens: bytes | None) -> None:
        super().__init__()
        self.parent, self.child, self.n_tokens, self.tokens = parent, child, n_tokens, tokens

    @property
    def id(self) -> BlockId:
        parent = self.parent
        return BlockId(parent.root, Kind.ROWS, parent.key, self.child.key, parent.depth, self.n_tokens)

    def hangs_on(self) -> Node | None:
        return self.parent


_tokens_of = attrgetter("tokens")

# Nearly every node has one edge in and one out. A list for each would be half of all there is for
# the garbage collector to look at.
_Edges = Edge | list[Edge] | None


def _listed(edges: _Edges) -> list[Edge]:
    """`edges` as a list: the list itself if it is one."""
    if edges is None:
        return []
    return [edges] if isinstance(edges, Edge) else edges


def _unlisted(edges: list[Edge]) -> _Edges:
    return edges if len(edges) > 1 else edges[0] if edges else None


class Node:
    """A prefix. `address` is its key and its length; `hanging` packs per tier how many objects hang
    on it there.
    """

    __slots__ = ("_into", "_known", "address", "end", "hanging", "root", "unknown")

    def __init__(self, root: ChainKey, address: bytes) -> None:
        self.root, self.address = root, address
        self.hanging = 0
        self.end: End | None = None
        self._into: _Edges = None
        self._known: _Edges = None  # sorted by tokens
        self.unknown: dict[int, set[Edge]] | None = None  # by length: a prompt is hashed once for each

    @property
    def key(self) -> ChainKey:
        return key_of(self.address[:KEY_BYTES])

    @property
    def depth(self) -> int:
        return int.from_bytes(self.address[KEY_BYTES:])

    @property
    def into(self) -> list[Edge]:
        """The edges that lead here. Not to be changed."""
        return _listed(self._into)

    def is_bare(self) -> bool:
        return not (self._into or self.end or self._known or self.unknown)

    def children(self) -> Iterator[Edge]:
        yield from _listed(self._known)
        yield from chain.from_iterable((self.unknown or {}).values())

    def attach_into(self, edge: Edge) -> None:
        self._into = _unlisted([*self.into, edge])

    def detach_into(self, edge: Edge) -> None:
        self._into = _unlisted([other for other in self.into if other is not edge])

    def attach(self, edge: Edge) -> None:
        """Put `edge` where its tokens, or their absence, belong."""
        if edge.tokens is None:
            self.unknown = self.unknown or {}
            self.unknown.setdefault(edge.n_tokens, set()).add(edge)
        else:
            known = _listed(self._known)
            insort(known, edge, key=_tokens_of)
            self._known = _unlisted(known)

    def detach(self, edge: Edge) -> None:
        if edge.tokens is None:
            assert self.unknown is not None
            edges = self.unknown[edge.n_tokens]
            edges.remove(edge)
            if not edges:
                del self.unknown[edge.n_tokens]
            self.unknown = self.unknown or None
        else:
            known = _listed(self._known)
            del known[known.index(edge, bisect_left(known, edge.tokens, key=_tokens_of))]
            self._known = _unlisted(known)

    def matches(self, window: bytes) -> tuple[list[Edge], Edge | None, int]:
        """(edges whose tokens begin `window`, the other edge that shares most with it, how many
        tokens that shares).

        O(log n) for each result. The edge that shares most is a neighbour of the place where
        `window` would be inserted. Edges that begin `window` lie before that place; between them
        lie edges that share a shorter and shorter part, and bisecting for that part skips all that
        share it.
        """
        whole: list[Edge] = []
        part, n_part = None, 0
        known = _listed(self._known)
        place = at = bisect_right(known, window, key=_tokens_of)
        while at > 0:
            edge = known[at - 1]
            n_shared = n_common(edge.tokens or b"", window)
            if n_shared == edge.n_tokens:
                whole.append(edge)
                at -= 1
                continue
            if n_shared > n_part:
                part, n_part = edge, n_shared
            if n_shared == 0:
                break
            at = bisect_right(known, window[: n_shared * TOKEN_BYTES], hi=at - 1, key=_tokens_of)
        if place < len(known):
            n_shared = n_common(known[place].tokens or b"", window)
            if n_shared > n_part:
                part, n_part = known[place], n_shared
        return whole, part, n_part

    def check_integrity(self) -> None:
        assert all(edge.child is self for edge in self.into), "an edge into another node"
        assert all(edge.parent.depth + edge.n_tokens == self.depth for edge in self.into), "an edge of another length"
        assert all(edge.parent is self and edge in edge.child.into for edge in self.children()), (
            "an edge from another node"
        )
        known = [edge.tokens for edge in _listed(self._known)]
        assert known == sorted(tokens for tokens in known if tokens is not None), "edges are not sorted"
        for n_tokens, edges in (self.unknown or {}).items():
            assert edges, "an empty set of edges"
            assert all(edge.tokens is None and edge.n_tokens == n_tokens for edge in edges), (
                "an edge under another length"
            )


def n_common(a: bytes, b: bytes) -> int:
    """How many leading tokens two packed token strings share."""
    if b.startswith(a):
        return len(a) // TOKEN_BYTES
    n_bytes = min(len(a), len(b))
    differing = int.from_bytes(a[:n_bytes]) ^ int.from_bytes(b[:n_bytes])
    return (n_bytes - (differing.bit_length() + 7) // 8) // TOKEN_BYTES


def block_until(node: Node) -> tuple[Node, bytes] | None:
    """The node at which the block of `node` begins, and the tokens from there to `node`; None where
    they are not known.
    """
    tokens = b""
    while node.depth % BLOCK_TOKENS:
        known = next(((edge.parent, edge.tokens) for edge in node.into if edge.tokens is not None), None)
        if known is None:
            return None
        node, tokens = known[0], known[1] + tokens
    return node, tokens


class Graph:
    """The nodes of all roots, and the objects that hang on none."""

    def __init__(self) -> None:
        self._roots: dict[ChainKey, dict[bytes, Node]] = {}
        self._loose: dict[BlockId, Loose] = {}
        self.n_items = 0

    def node(self, root: ChainKey, key: bytes, depth: int) -> Node | None:
        nodes = self._roots.get(root)
        return None if nodes is None else nodes.get(key + depth.to_bytes(4))

    def find(self, id: BlockId) -> Item | None:
        if not fits_graph(id):
            return self._loose.get(id)
        node = self.node(id.root, bytes.fromhex(id.key), id.start + id.n_tokens)
        if node is None:
            return None
        if id.kind is Kind.END:
            return node.end
        parent = bytes.fromhex(id.parent) + id.start.to_bytes(4)
        return next((edge for edge in node.into if edge.parent.address == parent), None)

    def add(self, id: BlockId, tokens: bytes | None) -> Item:
        """A new object, in no tier and not used yet."""
        item: Item
        if not fits_graph(id):
            item = self._loose[id] = Loose(id)
        elif id.kind is Kind.END:
            node = self._make_node(id.root, id.key, id.start)
            item = node.end = End(node)
        else:
            parent = self._make_node(id.root, id.parent, id.start)
            child = self._make_node(id.root, id.key, id.start + id.n_tokens)
            item = edge = Edge(parent, child, id.n_tokens, tokens)
            child.attach_into(edge)
            parent.attach(edge)
        self.n_items += 1
        return item

    def remove(self, item: Item) -> None:
        """Forget an object, and the nodes that only it needed."""
        match item:
            case Edge():
                item.parent.detach(item)
                item.child.detach_into(item)
                self._drop_if_bare(item.parent)
                self._drop_if_bare(item.child)
            case End():
                item.node.end = None
                self._drop_if_bare(item.node)
            case _:
                del self._loose[item.id]
        self.n_items -= 1

    def nodes(self) -> Iterator[Node]:
        for nodes in self._roots.values():
            yield from nodes.values()

    def items(self) -> Iterator[Item]:
        yield from self._loose.values()
        for node in self.nodes():
            yield from node.into
            if node.end is not None:
                yield node.end

    def check_integrity(self, n_tiers: int) -> None:
        """Raise AssertionError where nodes and objects disagree."""
        assert self.n_items == sum(1 for _ in self.items()), "number of objects"
        hanging: dict[Node, int] = {}
        for item in self.items():
            assert item.sizes > 0, "in no tier"
            assert self.find(item.id) is item, "not found by its name"
            node = item.hangs_on()
            if node is not None:
                here = sum(field_of(1, tier_index) for tier_index in range(n_tiers) if item.is_in(tier_index))
                hanging[node] = hanging.get(node, 0) + here
        for node in self.nodes():
            assert not node.is_bare(), "a node that nothing needs"
            assert node.hanging == hanging.get(node, 0), "number of objects on a node"
            node.check_integrity()

    def _make_node(self, root: ChainKey, key: ChainKey, depth: int) -> Node:
        nodes = self._roots.setdefault(root, {})
        address = bytes.fromhex(key) + depth.to_bytes(4)
        assert len(address) == KEY_BYTES + 4, "a key that is none"
        node = nodes.get(address)
        if node is None:
            # One string for the root in all nodes, whichever copies the names brought along.
            node = nodes[address] = Node(ChainKey(sys.intern(root)), address)
        return node

    def _drop_if_bare(self, node: Node) -> None:
        nodes = self._roots.get(node.root, {})
        if node.is_bare() and nodes.pop(node.address, None) is not None and not nodes:
            del self._roots[node.root]


def fits_graph(id: BlockId) -> bool:
    """Whether a save of ours makes a ROWS or END object of this name."""
    if not 0 <= id.start <= id.start + id.n_tokens < 1 << 32:
        return False
    if id.kind is Kind.END:
        return id.parent == id.key and id.n_tokens == 0
    return id.kind is Kind.ROWS and id.n_tokens > 0 and id.start % BLOCK_TOKENS + id.n_tokens <= BLOCK_TOKENS
