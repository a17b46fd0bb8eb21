"""What one process knows about the objects in all tiers of its store: the longest stored prefix of
a prompt, and who may be evicted.

    Graph (radix.py)                what hangs on what; tokens
    Path (walk.py)                  the way of a prompt through it
    EvictionQueue (eviction.py)     per tier, the leaves by score
    frecency.py                     the score

Any thread; every call is short, holds the index's lock and does no I/O. The clock is passed in
(unix seconds) and may jump. What the index says about tiers is a hint: an object may have been
deleted by someone else, which its reader finds out and reports with `remove`. Victims are proposed,
not removed: the caller deletes them and then calls `remove`.

An object takes about 1.4 kB, 1 kB of which are tokens. It is two objects to Python's garbage
collector, and a full collection of a million such pairs takes the better part of a second: whoever
loads that many calls `gc.freeze` afterwards.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain
from cache_store.index import frecency
from cache_store.index.eviction import EvictionQueue
from cache_store.index.radix import (
    MAX_FIELD,
    TOKEN_BYTES,
    Edge,
    End,
    Graph,
    Item,
    block_until,
    field,
    field_of,
    fits_graph,
)
from cache_store.index.walk import Path, way_back


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Which tiers hold an object, fastest first, and its size in the first of them."""

    id: BlockId
    tier_indices: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What a snapshot keeps of an object in one tier. `tokens`: big-endian uint32, None where not
    known.

    `hits` does not count the creation. `last_used_s` (unix) is the moment at which creation and
    hits at once would score what they do: of an object without hits the time of its creation, of
    others never later than the last hit.
    """

    id: BlockId
    n_bytes: int
    tokens: bytes | None
    hits: int
    last_used_s: float


def is_plausible(id: BlockId, n_bytes: int, tokens: bytes | None) -> bool:
    """Whether a save of ours makes such an object: only what can be deleted again is believed."""
    if tokens is not None and (id.kind is not Kind.ROWS or len(tokens) != id.n_tokens * TOKEN_BYTES):
        return False
    return n_bytes <= MAX_FIELD and (fits_graph(id) or (id.kind is Kind.REPLAY and id.n_tokens == 0))


class Index:
    """See the module. Objects that no tier holds are forgotten."""

    def __init__(self, n_tiers: int, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._graph = Graph()
        self._time = frecency.SteadyTime(clock)
        self._held: list[frozenset[BlockId]] = [frozenset()] * n_tiers
        self._queues = [EvictionQueue(i, partial(self._is_pinned, i)) for i in range(n_tiers)]
        self._bytes, self._objects = [0] * n_tiers, [0] * n_tiers
        self._pins: Counter[BlockId] = Counter()

    def __len__(self) -> int:
        return self._graph.n_items

    def __repr__(self) -> str:
        tiers = ", ".join(str(n_bytes) for n_bytes in self._bytes)
        return f"<Index {len(self)} objects, bytes by tier: {tiers}; {len(self._pins)} pinned>"

    # --- what is where ----------------------------------------------------------------------------

    def add(self, id: BlockId, tier_index: int, n_bytes: int, tokens: NDArray[np.uint32] | None = None) -> bool:
        """A tier holds `id`; True if that was new. Size and tokens are the last ones told."""
        packed = None if tokens is None else _packed(id, tokens)
        with self._lock:
            return self._put(id, tier_index, n_bytes, packed, 0, None)

    def load(self, rows: Iterable[IndexRow], tier_index: int) -> int:
        """`add` what `rows` gave, in this process or another, with the best of the hits and times
        of use that were told; how many. Other calls come in between.
        """
        n_loaded = 0
        for n_loaded, row in enumerate(rows, 1):  # noqa: B007
            with self._lock:
                self._put(row.id, tier_index, row.n_bytes, row.tokens, row.hits, row.last_used_s)
        return n_loaded

    def learn(self, id: BlockId, tokens: NDArray[np.uint32]) -> None:
        """The tokens of a ROWS object; nothing happens when it is not known, or not ROWS."""
        with self._lock:
            item = self._graph.find(id)
            if isinstance(item, Edge):
                self._learn(item, _packed(id, tokens))

    def remove(self, id: BlockId, tier_index: int) -> bool:
        """`id` is gone from a tier; True if it was known to be there."""
        with self._lock:
            item = self._graph.find(id)
            if item is None or not item.is_in(tier_index):
                return False
            self._bytes[tier_index] -= item.bytes_in(tier_index)
            item.sizes -= field_of(item.bytes_in(tier_index) + 1, tier_index)
            self._objects[tier_index] -= 1
            node = item.hangs_on()
            if node is not None:
                node.hanging -= field_of(1, tier_index)
                if field(node.hanging, tier_index) == 0:
                    self._queues[tier_index].push_all(node.into)
            if item.sizes == 0:
                self._graph.remove(item)
            return True

    def has(self, id: BlockId) -> bool:
        with self._lock:
            return self._graph.find(id) is not None

    def tiers_of(self, id: BlockId) -> tuple[int, ...]:
        """The indices of the tiers that hold `id`, fastest first."""
        with self._lock:
            item = self._graph.find(id)
            return () if item is None else self._tiers_of(item)

    def stored(self, ids: Iterable[BlockId]) -> list[StoredObject]:
        """Those of `ids` that some tier holds."""
        with self._lock:
            return [self._stored(item) for id in ids if (item := self._graph.find(id)) is not None]

    def sizes(self, ids: Iterable[BlockId], tier_index: int) -> dict[BlockId, int]:
        """The bytes of those of `ids` that a tier holds."""
        with self._lock:
            found = ((id, self._graph.find(id)) for id in ids)
            return {id: item.bytes_in(tier_index) for id, item in found if item and item.is_in(tier_index)}

    def bytes_in(self, tier_index: int) -> int:
        return self._bytes[tier_index]

    def objects_in(self, tier_index: int) -> int:
        return self._objects[tier_index]

    def tokens_of(self, id: BlockId) -> bytes | None:
        """The tokens of a ROWS object (big-endian uint32); None where they are not known."""
        with self._lock:
            item = self._graph.find(id)
            return item.tokens if isinstance(item, Edge) else None

    def rows(self, tier_index: int) -> Iterator[IndexRow]:
        """Everything in a tier: each object as it is when its turn comes."""
        with self._lock:
            self._time.now()
            items, lead_s = list(self._graph.items()), self._time.lead_s()
        for item in items:
            size = field(item.sizes, tier_index)
            if size:
                yield _row_of(item, size - 1, lead_s)

    def row(self, id: BlockId) -> IndexRow | None:
        """An object as it is in its fastest tier."""
        with self._lock:
            self._time.now()
            item = self._graph.find(id)
            return None if item is None else _row_of(item, self._stored(item).n_bytes, self._time.lead_s())

    # --- prefixes ---------------------------------------------------------------------------------

    def longest_prefix(self, chain: TokenChain) -> Path:
        """The stored part of a prompt. Does not count as a hit."""
        with self._lock:
            return Path(self._graph, chain)

    def branch(self, path: Path) -> NDArray[np.uint32]:
        """What follows a path on the stored prefix that shares most with its prompt: see `Path.branch`."""
        with self._lock:
            return np.frombuffer(path.branch(), ">u4").astype(np.uint32)

    def way_to(self, key: ChainKey) -> list[BlockId]:
        """The objects of the prefix `key` in order: ROWS from its root on, each with the END behind it;
        [] when it is not stored whole. For people: looks at every node.
        """
        with self._lock:
            nodes = list(self._graph.nodes())
        digest = bytes.fromhex(key)
        here = [node for node in nodes if node.address.startswith(digest)]
        with self._lock:
            return next((way for node in here if (way := way_back(node))), [])

    def leads_to_end_of(self, id: BlockId, tier_index: int) -> bool:
        """Whether a tier has a ROWS object, this or another, that ends where `id` does."""
        with self._lock:
            node = self._graph.node(id.root, bytes.fromhex(id.key), id.start + id.n_tokens)
            return node is not None and any(edge.is_in(tier_index) for edge in node.into)

    def proves(self, id: BlockId, tokens: NDArray[np.uint32]) -> bool:
        """Whether `tokens` are those of the ROWS object `id`: a name is the hash of its block so
        far, as far as that is known here.
        """
        begin = id.parent
        if id.start % BLOCK_TOKENS:
            with self._lock:
                node = self._graph.node(id.root, bytes.fromhex(id.parent), id.start)
                before = None if node is None else block_until(node)
            if before is None:
                return False
            begin, tokens = before[0].key, np.concatenate([np.frombuffer(before[1], ">u4"), tokens])
        return TokenChain(begin, tokens).key_at(len(tokens)) == id.key

    # --- eviction ---------------------------------------------------------------------------------

    def touch(self, ids: Iterable[BlockId], n_uses: int = 1) -> None:
        """`n_uses` hits, now, on each of `ids` that is known."""
        with self._lock:
            now_s = self._time.now()
            for id in ids:
                item = self._graph.find(id)
                if item is not None:
                    item.n_uses += n_uses
                    item.score = frecency.after_use(item.score, now_s, n_uses)

    def pin(self, ids: Iterable[BlockId]) -> None:
        """Never evict `ids` until each pin has been taken back. A pin belongs to a name: it may
        precede the object and outlive it.
        """
        with self._lock:
            self._pins.update(ids)

    def unpin(self, ids: Iterable[BlockId]) -> None:
        """Take back one pin of each of `ids`; ValueError before any change where there is none."""
        given = Counter(ids)
        with self._lock:
            if any(self._pins[id] < n for id, n in given.items()):
                raise ValueError("given back more often than taken")
            self._pins.subtract(given)
            for id in given:
                if not self._pins[id]:
                    del self._pins[id]
                    self._push(id)

    def hold(self, tier_index: int, ids: frozenset[BlockId]) -> None:
        """Never evict `ids` from a tier, until the next call names others. They may precede the
        objects and outlive them.
        """
        with self._lock:
            before, self._held[tier_index] = self._held[tier_index], ids
            for id in before - ids:
                item = self._graph.find(id)
                if item is not None:
                    self._queues[tier_index].push(item)

    def only_for(self, way: Sequence[BlockId], tier_index: int) -> list[StoredObject]:
        """Those of the objects of a prefix (`way_to`), from its end on, that nothing else in a tier
        hangs on and nobody has pinned: deleted in this order, they leave no gap.
        """
        chosen, at_node = list[Item](), list[Item]()  # at_node: what has been met of what hangs on the next edge
        with self._lock:
            for item in filter(None, map(self._graph.find, reversed(way))):
                is_here = item.is_in(tier_index)
                if is_here and self._is_pinned(tier_index, item):
                    break
                if isinstance(item, Edge):
                    if field(item.child.hanging, tier_index) > len(at_node):
                        break
                    chosen += [other for other in at_node if isinstance(other, End)] + [item] * is_here
                    at_node = []
                at_node += [item] * is_here
            return [self._stored(item, tier_index) for item in chosen]

    def victims(
        self, tier_index: int, n_bytes: int, may_go: Callable[[StoredObject], bool] | None = None
    ) -> list[StoredObject]:
        """Objects whose deletion from a tier, in this order, frees `n_bytes`, or as much as may go;
        may free more. 0 is a no-op.

        Lowest score first among those that nothing in this tier hangs on; never pinned ones, nor
        those that `may_go` refuses, nor what either hang on. `n_bytes` of each is its size in this
        tier. Does not remove: until the caller does, the next call names them again.
        """
        with self._lock:
            asked = None if may_go is None else lambda item: may_go(self._stored(item, tier_index))
            return [self._stored(item, tier_index) for item in self._queues[tier_index].victims(n_bytes, asked)]

    # --- inside -----------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError where two parts of the bookkeeping disagree. O(n log n)."""
        with self._lock:
            self._graph.check_integrity(len(self._bytes))
            items = list(self._graph.items())
            for tier_index, queue in enumerate(self._queues):
                here = [item for item in items if item.is_in(tier_index)]
                assert self._objects[tier_index] == len(here), "objects of a tier"
                assert self._bytes[tier_index] == sum(item.bytes_in(tier_index) for item in here), "bytes of a tier"
                queue.check_integrity(here)
            assert all(n > 0 for n in self._pins.values()), "a count of pins"

    def _tiers_of(self, item: Item) -> tuple[int, ...]:
        return tuple(tier_index for tier_index in range(len(self._bytes)) if item.is_in(tier_index))

    def _stored(self, item: Item, tier_index: int | None = None) -> StoredObject:
        tier_indices = self._tiers_of(item)
        return StoredObject(item.id, tier_indices, item.bytes_in(tier_indices[0] if tier_index is None else tier_index))

    def _push(self, id: BlockId) -> None:
        item = self._graph.find(id)
        if item is not None:
            for queue in self._queues:
                queue.push(item)

    def _put(
        self, id: BlockId, tier_index: int, n_bytes: int, tokens: bytes | None, hits: int, last_used_s: float | None
    ) -> bool:
        if not 0 <= tier_index < len(self._bytes) or not 0 <= n_bytes <= MAX_FIELD or hits < 0:
            raise ValueError(f"tier {tier_index}, n_bytes {n_bytes}, hits {hits}: out of range")
        item = self._graph.find(id)
        if item is None or last_used_s is not None:
            item = item or self._graph.add(id, tokens)
            used_s = self._time.now() if last_used_s is None else self._time.from_unix(last_used_s)
            item.n_uses = max(item.n_uses, 1 + hits)
            item.score = max(item.score, frecency.score_of(1 + hits, used_s))
        if tokens is not None and isinstance(item, Edge):
            self._learn(item, tokens)
        return self._hold(item, tier_index, n_bytes)

    def _hold(self, item: Item, tier_index: int, n_bytes: int) -> bool:
        before = field(item.sizes, tier_index)
        item.sizes += field_of(n_bytes + 1 - before, tier_index)
        self._bytes[tier_index] += n_bytes + 1 - max(before, 1)
        if before:
            return False
        self._objects[tier_index] += 1
        node = item.hangs_on()
        if node is not None:
            node.hanging += field_of(1, tier_index)
        self._queues[tier_index].push_new(item)
        return True

    def _learn(self, edge: Edge, tokens: bytes) -> None:
        if edge.tokens != tokens:
            edge.parent.detach(edge)
            edge.tokens = tokens
            edge.parent.attach(edge)

    def _is_pinned(self, tier_index: int, item: Item) -> bool:
        held = self._held[tier_index]
        return bool(self._pins or held) and (item.id in self._pins or item.id in held)


def _row_of(item: Item, n_bytes: int, lead_s: float) -> IndexRow:
    n_uses, score = item.n_uses, item.score
    tokens = item.tokens if isinstance(item, Edge) else None
    return IndexRow(item.id, n_bytes, tokens, n_uses - 1, frecency.mean_use_s(n_uses, score) - lead_s)


def _packed(id: BlockId, tokens: NDArray[np.uint32]) -> bytes:
    if id.n_tokens and len(tokens) != id.n_tokens:
        raise ValueError(f"{len(tokens)} tokens for an object of {id.n_tokens}")
    return np.asarray(tokens, dtype=">u4").tobytes()
