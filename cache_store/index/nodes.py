"""The prefixes of the index as numbers: a table of fixed-width columns and a hash table over it.
Pure, not thread-safe.

A node is a prefix key under a root, *and* a length. Its number indexes the columns, and is given
again once the node has gone. Columns are `array`s and one `bytearray`, which grow in place
(`realloc` moves pages, not bytes), so a node takes 64 bytes and no Python object: nothing for the
garbage collector to look at.

The hash table is one of linear hashing (Litwin, VLDB 1980): each new node splits one bucket, so no
call ever waits for all of them to be hashed again. A key is a SHA-256 and serves as its own hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import ChainKey

KEY_BYTES = 32
NONE = 0xFFFFFFFF  # no number
LOOSE = 1 << 31  # added to the number of a root: nodes of objects on no path, which no prompt leads to
_FIRST_BUCKETS = 64


def key_of(digest: bytes) -> ChainKey:
    return ChainKey(digest.hex())


class Roots:
    """The roots, which all nodes below them share, as numbers."""

    def __init__(self) -> None:
        self._numbers: dict[ChainKey, int] = {}
        self._keys: list[ChainKey] = []
        self._n_nodes: list[int] = []

    def find(self, key: ChainKey) -> int | None:
        return self._numbers.get(key)

    def key(self, number: int) -> ChainKey:
        return self._keys[number & ~LOOSE]

    def of_node(self, key: ChainKey) -> int:
        """The number of a root that one more node is below."""
        number = self._numbers.get(key)
        if number is None:
            number = self._unused()
            self._numbers[key] = number
            self._keys[number] = key
        self._n_nodes[number] += 1
        return number

    def add_nodes(self, number: int, n: int) -> None:
        """So many nodes more are below a root that has some."""
        self._n_nodes[number & ~LOOSE] += n

    def leave(self, number: int) -> None:
        """One node fewer."""
        number &= ~LOOSE
        self._n_nodes[number] -= 1
        if self._n_nodes[number] == 0:
            del self._numbers[self._keys[number]]

    def _unused(self) -> int:
        if len(self._numbers) < len(self._keys):
            return self._n_nodes.index(0)
        self._keys.append(ChainKey(""))
        self._n_nodes.append(0)
        return len(self._keys) - 1

    def check_integrity(self, n_nodes: dict[int, int]) -> None:
        assert {number: n for number, n in enumerate(self._n_nodes) if n} == n_nodes, "nodes of a root"
        assert self._numbers == {self._keys[number]: number for number in n_nodes}, "numbers of roots"


class NodeTable:
    """Columns by number of a node.

    depth       its length in tokens
    root        the number of its root, with `LOOSE` or without; NONE where the number is free
    into        the first object that leads here; `end` the END object; `children` the first object
                that leads on: what these name, and how it goes on, is the caller's (`radix.py`)
    hanging     per tier, how many objects hang on it there
    """

    def __init__(self, n_tiers: int) -> None:
        self.roots = Roots()
        self.depth, self.root = array("I"), array("I")
        self.into, self.end, self.children = array("I"), array("I"), array("I")
        self.hanging = [array("I") for _ in range(n_tiers)]
        self._keys = bytearray()
        self._next = array("I")  # in the same bucket; of a free number, the next free one
        self._free = NONE
        self._buckets = array("I", [NONE]) * _FIRST_BUCKETS
        self._base = _FIRST_BUCKETS  # a power of two: buckets from `len - base` on are not split yet
        self.n = 0

    def key_bytes(self, node: int) -> bytes:
        return bytes(self._keys[node * KEY_BYTES : (node + 1) * KEY_BYTES])

    def key(self, node: int) -> ChainKey:
        return ChainKey(self._keys[node * KEY_BYTES : (node + 1) * KEY_BYTES].hex())

    def has_key(self, node: int, key: bytes) -> bool:
        return self._keys[node * KEY_BYTES : (node + 1) * KEY_BYTES] == key

    def root_key(self, node: int) -> ChainKey:
        return self.roots.key(self.root[node])

    def find(self, root: int, key: bytes, depth: int) -> int:
        """The number of a node; NONE without one."""
        node = self._buckets[self._bucket(key)]
        while node != NONE:
            if self.depth[node] == depth and self.root[node] == root and self.has_key(node, key):
                return node
            node = self._next[node]
        return NONE

    def all_of(self, key: bytes) -> Iterator[int]:
        """The nodes of one key, at whatever length."""
        node = self._buckets[self._bucket(key)]
        while node != NONE:
            if self.has_key(node, key) and not self.root[node] & LOOSE:
                yield node
            node = self._next[node]

    def make(self, root: ChainKey, key: bytes, depth: int, flag: int = 0) -> int:
        """The number of a node, which is made where there is none. `flag`: 0, or `LOOSE`."""
        assert len(key) == KEY_BYTES, "a key that is none"
        number = self.roots.find(root)
        if number is not None and (node := self.find(number | flag, key, depth)) != NONE:
            return node
        node = self._take_number()
        self._keys[node * KEY_BYTES : (node + 1) * KEY_BYTES] = key
        self.depth[node], self.root[node] = depth, self.roots.of_node(root) | flag
        bucket = self._bucket(key)
        self._next[node], self._buckets[bucket] = self._buckets[bucket], node
        self.n += 1
        if self.n > len(self._buckets):
            self._split()
        return node

    def make_many(
        self, roots: NDArray[np.uint32], keys: NDArray[np.uint8], depths: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        """`make` for each row. `roots` are numbers with their flags, of roots that have a node by now."""
        nodes = self._find_many(roots, keys, depths)
        while len(missing := np.flatnonzero(nodes == NONE)):  # again where different nodes have one mark
            marks = _hashed(keys[missing]) ^ depths[missing] * np.uint64(0x9E3779B97F4A7C15)
            _, firsts = np.unique(marks, return_index=True)
            new = missing[firsts]
            self._append(roots[new], keys[new], depths[new])
            nodes[missing] = self._find_many(roots[missing], keys[missing], depths[missing])
        return nodes

    def drop_if_bare(self, node: int) -> None:
        """Forget a node that nothing leads to or from; its number becomes free."""
        if self.into[node] != NONE or self.end[node] != NONE or self.children[node] != NONE:
            return
        if self.root[node] == NONE:
            return  # it has gone already: both ends of an object may be one node
        bucket = self._bucket(self.key_bytes(node))
        if self._buckets[bucket] == node:
            self._buckets[bucket] = self._next[node]
        else:
            before = self._buckets[bucket]
            while self._next[before] != node:
                before = self._next[before]
            self._next[before] = self._next[node]
        self.roots.leave(self.root[node])
        self.root[node] = NONE
        self._next[node], self._free = self._free, node
        self.n -= 1

    def numbers(self) -> Iterator[int]:
        return (node for node, root in enumerate(self.root) if root != NONE)

    def keys(self) -> NDArray[np.uint8]:
        """All keys, a row each; a view, of which nothing may be left when a node is made."""
        return np.frombuffer(self._keys, np.uint8).reshape(-1, KEY_BYTES)

    def check_integrity(self) -> None:
        in_buckets = [node for bucket in range(len(self._buckets)) for node in self._in_bucket(bucket)]
        assert sorted(in_buckets) == list(self.numbers()), "nodes of the hash table"
        assert len(in_buckets) == self.n, "number of nodes"
        n_nodes: dict[int, int] = {}
        for node in in_buckets:
            assert self.find(self.root[node], self.key_bytes(node), self.depth[node]) == node, "a node not found"
            number = self.root[node] & ~LOOSE
            n_nodes[number] = n_nodes.get(number, 0) + 1
        self.roots.check_integrity(n_nodes)

    def _take_number(self) -> int:
        node = self._free
        if node != NONE:
            self._free = self._next[node]
            return node
        for column in (self.depth, self.root, self.into, self.end, self.children, self._next):
            column.append(NONE)
        for column in self.hanging:
            column.append(0)
        self._keys += bytes(KEY_BYTES)
        return len(self.depth) - 1

    def _bucket(self, key: bytes | bytearray) -> int:
        hashed = int.from_bytes(key[:8]) & (2 * self._base - 1)
        return hashed if hashed < len(self._buckets) else hashed & (self._base - 1)

    def _split(self) -> None:
        """Add a bucket, and give it what is its own of the one that has had it so far."""
        nodes = list(self._in_bucket(len(self._buckets) - self._base))
        self._buckets[len(self._buckets) - self._base] = NONE
        self._buckets.append(NONE)
        for node in nodes:
            bucket = self._bucket(self._keys[node * KEY_BYTES : node * KEY_BYTES + 8])
            self._next[node], self._buckets[bucket] = self._buckets[bucket], node
        if len(self._buckets) == 2 * self._base:
            self._base *= 2

    def _find_many(
        self, roots: NDArray[np.uint32], keys: NDArray[np.uint8], depths: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        firsts = np.frombuffer(self._buckets, np.uint32)[self._buckets_of(keys)]
        wanted = keys.view(np.uint64)

        def same(nodes: NDArray[np.uint32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            of_root, of_depth = np.frombuffer(self.root, np.uint32), np.frombuffer(self.depth, np.uint32)
            alike: NDArray[np.bool_] = (of_root[nodes] == roots[rows]) & (of_depth[nodes] == depths[rows])
            alike &= (self.keys().view(np.uint64)[nodes] == wanted[rows]).all(axis=1)
            return alike

        return find_many(firsts, self._next, same)

    def _append(self, roots: NDArray[np.uint32], keys: NDArray[np.uint8], depths: NDArray[np.uint32]) -> None:
        """New nodes, all different, which are not there."""
        first, n = len(self.depth), len(keys)
        self.depth.frombytes(depths.tobytes())
        self.root.frombytes(roots.tobytes())
        self._keys += keys.tobytes()
        for column in (self.into, self.end, self.children, self._next):
            column.frombytes(b"\xff" * 4 * n)
        for column in self.hanging:
            column.frombytes(bytes(4 * n))
        for root, count in zip(*np.unique(roots, return_counts=True), strict=True):
            self.roots.add_nodes(int(root), int(count))
        self.n += n
        if self.n > len(self._buckets):
            self._rebuild(max(self.n, len(self._buckets) * 5 // 4))
        else:
            self._put_into_buckets(np.arange(first, first + n, dtype=np.uint32), keys)

    def _rebuild(self, n_buckets: int) -> None:
        """All buckets anew, more of them than a split for each would make: for many nodes at once."""
        self._buckets = array("I", [NONE]) * n_buckets
        self._base = 1 << (n_buckets.bit_length() - 1)
        nodes = np.flatnonzero(np.frombuffer(self.root, np.uint32) != NONE).astype(np.uint32)
        self._put_into_buckets(nodes, self.keys()[nodes])

    def _put_into_buckets(self, nodes: NDArray[np.uint32], keys: NDArray[np.uint8]) -> None:
        link_many(nodes, self._buckets_of(keys), self._buckets, self._next)

    def _buckets_of(self, keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
        hashed = _hashed(keys) & np.uint64(2 * self._base - 1)
        return np.where(hashed < len(self._buckets), hashed, hashed & np.uint64(self._base - 1))

    def _in_bucket(self, bucket: int) -> Iterator[int]:
        node = self._buckets[bucket]
        while node != NONE:
            yield node
            node = self._next[node]


def _hashed(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(">u8")[:, 0].astype(np.uint64)


def link_many(
    members: NDArray[np.uint32], lists: NDArray[np.integer[Any]], firsts: array[int], next_of: array[int]
) -> None:
    """Put each of `members` at the beginning of the linked list of its number in `lists`."""
    order = np.argsort(lists, kind="stable")
    members, lists = members[order], lists[order]
    begins = np.append(True, lists[1:] != lists[:-1])[: len(lists)]
    ends = np.append(begins[1:], True)[: len(lists)]
    heads = np.frombuffer(firsts, np.uint32)
    following = np.append(members[1:], np.uint32(NONE))[: len(lists)]
    np.frombuffer(next_of, np.uint32)[members] = np.where(ends, heads[lists], following)
    heads[lists[begins]] = members[begins]


def find_many(
    firsts: NDArray[np.uint32],
    next_of: array[int],
    same: Callable[[NDArray[np.uint32], NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.uint32]:
    """For each row the first member of its linked list that is the `same` (members, and their rows);
    NONE without one. `firsts` is used up.
    """
    found, todo = np.full(len(firsts), NONE, np.uint32), np.flatnonzero(firsts != NONE)
    while len(todo):
        members = firsts[todo]
        is_it = same(members, todo)
        found[todo[is_it]] = members[is_it]
        firsts[todo] = np.frombuffer(next_of, np.uint32)[members]
        todo = todo[~is_it & (firsts[todo] != NONE)]
    return found


def without(item: int, first: int, next_of: array[int]) -> int:
    """The first of a linked list when `item` has left it."""
    if first == item:
        return next_of[item]
    before = first
    while next_of[before] != item:
        before = next_of[before]
    next_of[before] = next_of[item]
    return first
