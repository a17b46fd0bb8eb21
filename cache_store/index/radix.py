"""What hangs on what in the index: nodes are token prefixes, ROWS objects the edges between them.
Pure, not thread-safe.

A node is a prefix key *and* a length, so every edge leads to a longer prefix: whatever names a
directory holds, there is no cycle. Two saves may have cut one block at different points; as no edge
crosses a multiple of BLOCK_TOKENS, both paths meet again at its end.

    node  <-- parent  edge  child -->  node          ROWS
    node  <-- parent  END   child -->  the same      END
    node  <-- parent  other child -->  node          REPLAY, and names that no save of ours makes: on
                                                     no path, kept to be evicted; their nodes are
                                                     `nodes.LOOSE`

Memory decides the representation: ten million objects are no rarity in a shared tier. An object is
a number that indexes columns, like a node (`nodes.py`): 50 bytes with three tiers, and 68 for the
node that it leads to. Names are built on demand, and tokens are those of hot objects
(`hot_tokens.py`). The objects at a node are a linked list, or a `Crowd`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, TokenChain
from cache_store.index.crowd import Crowd, Entries
from cache_store.index.hot_tokens import TOKEN_BYTES, UNKNOWN, HotTokens, fingerprint, most_in_common
from cache_store.index.nodes import LOOSE, NONE, NodeTable, link_many, without

MAX_BYTES = (1 << 48) - 2  # of an object
MAX_TOKENS = (1 << 16) - 1
MAX_USES = (1 << 32) - 1
ROWS, END, REPLAY = range(3)
OFF_PATH = 4  # added to the kind of an object that hangs on nothing
FREE = 255
KINDS = (Kind.ROWS, Kind.END, Kind.REPLAY)
KIND_MASK = 3
_CROWD = NONE - 1  # as the first object at a node: there is a `Crowd`
_MOST_LISTED = 16
LARGE = 0xFFFFFFFF  # as a size: one of 4 GB and more, kept aside
_LOOKED_AT = 256  # objects of a crowd, for those whose tokens a prompt may share


class Graph:
    """Columns by number of an object.

    kind        ROWS, END, REPLAY, with `OFF_PATH` or without; FREE where the number is free
    parent      the node that it begins at and hangs on; `child` the one that it leads to
    n_tokens    its length
    first       its fingerprint (`hot_tokens.py`)
    n_uses, score   how often it was used (at most MAX_USES), and what that is worth (`frecency.py`)
    sizes       per tier, its bytes + 1; 0 where that has it not
    """

    def __init__(self, n_tiers: int, token_bytes: int) -> None:
        self.nodes = NodeTable(n_tiers)
        self.kind = array("B")
        self.parent, self.child = array("I"), array("I")
        self.n_tokens, self.first = array("H"), array("I")
        self.n_uses, self.score = array("I"), array("d")
        self.sizes = [array("I") for _ in range(n_tiers)]
        self.next_into, self._next_child = array("I"), array("I")
        self._crowds: dict[int, Crowd] = {}
        self._large: dict[tuple[int, int], int] = {}  # bytes of an object (its number) in a tier
        self._free = NONE  # a free number, `next_into` names the next
        self.tokens = HotTokens(token_bytes, self.parent)
        self.n_objects = 0

    # --- one object -------------------------------------------------------------------------------

    def id_of(self, item: int) -> BlockId:
        nodes, parent, child = self.nodes, self.parent[item], self.child[item]
        kind = KINDS[self.kind[item] & KIND_MASK]
        root, start = nodes.root_key(parent), nodes.depth[parent]
        return BlockId(root, kind, nodes.key(parent), nodes.key(child), start, self.n_tokens[item])

    def is_in(self, item: int, tier_index: int) -> bool:
        return self.sizes[tier_index][item] != 0

    def bytes_in(self, item: int, tier_index: int) -> int:
        """Its size in a tier that it is in."""
        size = self.sizes[tier_index][item]
        return size - 1 if size != LARGE else self._large[item, tier_index]

    def resize(self, item: int, tier_index: int, n_bytes: int | None) -> None:
        """A tier has it in so many bytes, or (None) not any more."""
        if self.sizes[tier_index][item] == LARGE:
            del self._large[item, tier_index]
        if n_bytes is not None and n_bytes + 1 >= LARGE:
            self._large[item, tier_index] = n_bytes
            n_bytes = LARGE - 1
        self.sizes[tier_index][item] = 0 if n_bytes is None else n_bytes + 1

    def hangs_on(self, item: int) -> int:
        """The node that must be reachable for this object to be of use; NONE for no node."""
        return NONE if self.kind[item] & OFF_PATH else self.parent[item]

    def is_nowhere(self, item: int) -> bool:
        return not any(sizes[item] for sizes in self.sizes)

    def learn(self, item: int, tokens: bytes) -> None:
        """The tokens of a ROWS object on a path."""
        self.tokens.put(item, tokens)
        self._set_first(item, fingerprint(tokens))

    def learn_first(self, item: int, first: int) -> None:
        """The fingerprint of one whose tokens are not known, as another process knew it."""
        is_new = first != UNKNOWN and self.first[item] == UNKNOWN
        if is_new and self.kind[item] == ROWS and self.tokens.get(item) is None:
            self._set_first(item, first)

    def _set_first(self, item: int, first: int) -> None:
        if self.first[item] != first:
            self.first[item] = first
            if self.nodes.children[self.parent[item]] == _CROWD:
                self._crowds[self.parent[item]].note(item, first)

    # --- names ------------------------------------------------------------------------------------

    def find(self, id: BlockId) -> int:
        """The number of an object; NONE without one."""
        on_path = fits_graph(id)
        root = self.nodes.roots.find(id.root)
        if root is None:
            return NONE
        flag, depth = (0, id.start + id.n_tokens) if on_path else (LOOSE, 0)
        node = self.nodes.find(root | flag, bytes.fromhex(id.key), depth)
        if node == NONE:
            return NONE
        if on_path and id.kind is Kind.END:
            return self.nodes.end[node]
        parent, kind = bytes.fromhex(id.parent), KINDS.index(id.kind) | (0 if on_path else OFF_PATH)
        for item in self.into(node):
            before = self.parent[item]
            is_it = self.kind[item] == kind and self.n_tokens[item] == id.n_tokens
            if is_it and self.nodes.depth[before] == id.start and self.nodes.has_key(before, parent):
                return item
        return NONE

    def node_at(self, chain: TokenChain, n: int) -> int:
        """The node of the first `n` tokens of a prompt; NONE without one."""
        root = self.nodes.roots.find(chain.root)
        return NONE if root is None else self.nodes.find(root, bytes.fromhex(chain.key_at(n)), n)

    def into(self, node: int) -> Iterator[int]:
        """The ROWS objects (of a LOOSE node: all) that lead to a node."""
        item = self.nodes.into[node]
        while item != NONE:
            yield item
            item = self.next_into[item]

    def has_ways(self, node: int) -> bool:
        """Whether more than one leads there."""
        return self.nodes.into[node] != NONE and self.next_into[self.nodes.into[node]] != NONE

    def children(self, node: int) -> Iterator[int]:
        """The ROWS objects (of a LOOSE node: all) that go on from a node."""
        item = self.nodes.children[node]
        if item == _CROWD:
            yield from self._crowds[node].numbers()
            return
        while item != NONE:
            yield item
            item = self._next_child[item]

    def add(self, id: BlockId) -> int:
        """A new object, in no tier and not used yet. `ValueError` for a name that fits nowhere."""
        if not (0 <= id.start < 1 << 32 and 0 <= id.n_tokens <= MAX_TOKENS):
            raise ValueError(f"start {id.start}, n_tokens {id.n_tokens}: out of range")
        on_path, make = fits_graph(id), self.nodes.make
        flag, depth = (0, id.start + id.n_tokens) if on_path else (LOOSE, 0)
        child = make(id.root, bytes.fromhex(id.key), depth, flag)
        is_end = on_path and id.kind is Kind.END
        parent = child if is_end else make(id.root, bytes.fromhex(id.parent), id.start, flag)
        item = self._take_number()
        self.kind[item] = KINDS.index(id.kind) | (0 if on_path else OFF_PATH)
        self.parent[item], self.child[item], self.n_tokens[item] = parent, child, id.n_tokens
        if is_end:
            self.nodes.end[child] = item
        else:
            self.next_into[item], self.nodes.into[child] = self.nodes.into[child], item
            self._attach(item, parent)
        self.n_objects += 1
        return item

    def remove(self, item: int) -> None:
        """Forget an object that no tier has, and the nodes that only it needed."""
        parent, child = self.parent[item], self.child[item]
        self.tokens.drop(item)
        if self.nodes.end[child] == item:
            self.nodes.end[child] = NONE
        else:
            self.nodes.into[child] = without(item, self.nodes.into[child], self.next_into)
            self.parent[item] = NONE  # it is not current in a crowd any more
            self._detach(item, parent)
        self.nodes.drop_if_bare(parent)
        self.nodes.drop_if_bare(child)
        self.kind[item] = FREE
        self.next_into[item], self._free = self._free, item
        self.n_objects -= 1

    def items(self) -> Iterator[int]:
        return (item for item, kind in enumerate(self.kind) if kind != FREE)

    # --- prompts ----------------------------------------------------------------------------------

    def whole(self, node: int, chain: TokenChain, depth: int, window: bytes) -> list[int]:
        """The objects at a node that are the prompt's next tokens, `window`: named by its key at their
        end, and not known to have other tokens.
        """
        only = self.nodes.children[node]
        if only == NONE:
            return []
        if only != _CROWD and self._next_child[only] == NONE:  # as at most nodes: its fingerprint would save little
            return [only] if self._is_whole(only, chain, depth, window) else []
        wanted = fingerprint(window)
        return [
            item
            for item in self._perhaps_whole(node, chain, depth, wanted)
            if (self.first[item] == wanted or most_in_common(self.first[item], wanted) is None)
            and self._is_whole(item, chain, depth, window)
        ]

    def _is_whole(self, item: int, chain: TokenChain, depth: int, window: bytes) -> bool:
        n_tokens = self.n_tokens[item]
        if n_tokens * TOKEN_BYTES > len(window):
            return False
        tokens = self.tokens.get(item)
        if tokens is not None and not window.startswith(tokens):
            return False
        return self.nodes.has_key(self.child[item], bytes.fromhex(chain.key_at(depth + n_tokens)))

    def _perhaps_whole(self, node: int, chain: TokenChain, depth: int, wanted: int) -> Iterator[int]:
        if self.nodes.children[node] != _CROWD:
            return self.children(node)
        short = wanted >> 16 << 16  # as objects have it that are shorter than what the rest of a fingerprint is of
        ranges = [(first, first + 1) for first in {wanted, short, UNKNOWN}]
        found = list(islice(self._of_crowd(node, ranges), _LOOKED_AT + 1))
        return iter(found) if len(found) <= _LOOKED_AT else self._of_every_length(node, chain, depth)

    def _of_every_length(self, node: int, chain: TokenChain, depth: int) -> Iterator[int]:
        for n_tokens in self._crowds[node].of_lengths(min(len(chain) - depth, BLOCK_TOKENS)):
            child = self.node_at(chain, depth + n_tokens)
            if child != NONE:
                yield from (item for item in self.into(child) if self.parent[item] == node)

    def unread(self, node: int, window: bytes) -> Iterator[tuple[int, int]]:
        """(an object at a node whose tokens are not known, how many of `window` it may share without
        being a beginning of it), without those that share none; of many, some of the likeliest.
        """
        wanted = fingerprint(window)
        for item in self._likely(node, wanted):
            at_most = self.n_tokens[item] - 1
            common = most_in_common(self.first[item], wanted)
            at_most = at_most if common is None else min(common, at_most)
            if at_most > 0 and self.tokens.get(item) is None:
                yield item, at_most

    def _likely(self, node: int, wanted: int) -> Iterator[int]:
        if self.nodes.children[node] != _CROWD:
            return self.children(node)
        same_first = wanted >> 16 << 16
        ranges = [(wanted, wanted + 1), (UNKNOWN, UNKNOWN + 1), (same_first, same_first + (1 << 16))]
        found = (item for limits in ranges for item in islice(self._of_crowd(node, [limits]), _LOOKED_AT))
        return iter(dict.fromkeys(found))

    def _of_crowd(self, node: int, ranges: list[tuple[int, int]]) -> Iterator[int]:
        """Those of a crowd whose fingerprint lies in one of `ranges`; some may come twice."""
        for low, high in ranges:
            for first, item in self._crowds[node].between(low, high):
                if self.parent[item] == node and self.first[item] == first and self.kind[item] != END:
                    yield item

    def block_until(self, node: int) -> tuple[int, bytes] | None:
        """The node at which the block of `node` begins, and the tokens from there to `node`; None where
        they are not known.
        """
        tokens = b""
        while self.nodes.depth[node] % BLOCK_TOKENS:
            item = next((item for item in self.into(node) if self.tokens.get(item) is not None), NONE)
            if item == NONE:
                return None
            node, tokens = self.parent[item], (self.tokens.get(item) or b"") + tokens
        return node, tokens

    # --- inside -----------------------------------------------------------------------------------

    def _attach(self, item: int, parent: int) -> None:
        first = self.nodes.children[parent]
        if first == _CROWD:
            self._crowds[parent].add(item, self.first[item], self.n_tokens[item])
            return
        self._next_child[item], self.nodes.children[parent] = first, item
        if first != NONE and sum(1 for _ in islice(self.children(parent), _MOST_LISTED + 1)) > _MOST_LISTED:
            members = list(self.children(parent))
            self.nodes.children[parent] = _CROWD
            crowd = self._crowds[parent] = Crowd(self._is_at(parent))
            for member in members:
                crowd.add(member, self.first[member], self.n_tokens[member])

    def _detach(self, item: int, parent: int) -> None:
        if self.nodes.children[parent] != _CROWD:
            self.nodes.children[parent] = without(item, self.nodes.children[parent], self._next_child)
            return
        self._crowds[parent].remove()
        if self._crowds[parent].n == 0:
            del self._crowds[parent]
            self.nodes.children[parent] = NONE

    def _is_at(self, node: int) -> Callable[[Entries], NDArray[np.bool_]]:
        def is_current(entries: Entries) -> NDArray[np.bool_]:
            numbers, first = (entries & 0xFFFFFFFF).astype(np.int64), entries >> 32
            parents, firsts = np.frombuffer(self.parent, np.uint32), np.frombuffer(self.first, np.uint32)
            # a number may have been given to an END since
            no_end = np.frombuffer(self.kind, np.uint8)[numbers] != END
            is_here: NDArray[np.bool_] = (parents[numbers] == node) & (firsts[numbers] == first) & no_end
            return is_here

        return is_current

    def append(self, n: int) -> None:
        """So many numbers more, free ones that are not in the list of these: for the caller to use."""
        self.kind.frombytes(bytes([FREE]) * n)
        for column in (self.parent, self.child, self.next_into, self._next_child):
            column.frombytes(b"\xff" * column.itemsize * n)
        for column in (self.n_tokens, self.first, self.n_uses, *self.sizes):
            column.frombytes(bytes(column.itemsize * n))
        self.score.frombytes(np.full(n, -math.inf).tobytes())

    def attach_many(self, items: NDArray[np.uint32], parents: NDArray[np.uint32]) -> None:
        """Let new objects go on from their parents."""
        _, group, sizes = np.unique(parents, return_inverse=True, return_counts=True)
        alone = (np.frombuffer(self.nodes.children, np.uint32)[parents] == NONE) & (sizes[group] <= _MOST_LISTED)
        if alone.any():
            link_many(items[alone], parents[alone], self.nodes.children, self._next_child)
        for item, parent in zip(items[~alone].tolist(), parents[~alone].tolist(), strict=True):
            self._attach(item, parent)

    def _take_number(self) -> int:
        item = self._free
        if item == NONE:
            self.append(1)
            return len(self.kind) - 1
        self._free = self.next_into[item]
        self.next_into[item] = NONE
        self.first[item], self.n_uses[item], self.score[item] = UNKNOWN, 0, -math.inf
        return item

    def check_integrity(self) -> None:
        """Raise AssertionError where nodes and objects disagree."""
        items = list(self.items())
        assert self.n_objects == len(items), "number of objects"
        hanging = [dict[int, int]() for _ in self.sizes]
        for item in items:
            assert not self.is_nowhere(item), "in no tier"
            assert self.find(self.id_of(item)) == item, "not found by its name"
            if (node := self.hangs_on(item)) != NONE:
                for at_node, sizes in zip(hanging, self.sizes, strict=True):
                    at_node[node] = at_node.get(node, 0) + (sizes[item] != 0)
        self.nodes.check_integrity()
        self.tokens.check_integrity()
        for node in self.nodes.numbers():
            self._check_node(node)
            for at_node, column in zip(hanging, self.nodes.hanging, strict=True):
                assert column[node] == at_node.get(node, 0), "number of objects on a node"
        assert set(self._crowds) == {node for node in self.nodes.numbers() if self.nodes.children[node] == _CROWD}
        assert all(self.sizes[tier_index][item] == LARGE for item, tier_index in self._large), "a large object"

    def _check_node(self, node: int) -> None:
        into, children, end = list(self.into(node)), list(self.children(node)), self.nodes.end[node]
        assert into or children or end != NONE, "a node that nothing needs"
        assert all(self.child[item] == node for item in into), "an edge into another node"
        assert all(self.parent[item] == node for item in children), "an edge from another node"
        at_end = () if end == NONE else (self.kind[end], self.parent[end], self.child[end])
        assert at_end in ((), (END, node, node)), "an END elsewhere"
        assert all(item in set(self.into(self.child[item])) for item in children), "an edge that does not arrive"
        for item in into if not self.nodes.root[node] & LOOSE else ():
            length = self.nodes.depth[node] - self.nodes.depth[self.parent[item]]
            assert (self.kind[item], self.n_tokens[item]) == (ROWS, length), "an edge of another length"
        if self.nodes.children[node] == _CROWD:
            crowd = self._crowds[node]
            assert crowd.n == len(children), "number of objects of a crowd"
            assert all(crowd.lengths >> self.n_tokens[item] & 1 for item in children), "a length of a crowd"


def fits_graph(id: BlockId) -> bool:
    """Whether a save of ours makes a ROWS or END object of this name."""
    if not 0 <= id.start <= id.start + id.n_tokens < 1 << 32:
        return False
    if id.kind is Kind.END:
        return id.parent == id.key and id.n_tokens == 0
    return id.kind is Kind.ROWS and id.n_tokens > 0 and id.start % BLOCK_TOKENS + id.n_tokens <= BLOCK_TOKENS
