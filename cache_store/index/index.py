"""What one process knows about the objects in all tiers of its store: the longest stored prefix of
a prompt, and who may be evicted.

    Graph (radix.py)                what hangs on what, in columns; a number for each object
    HotTokens (hot_tokens.py)       the token ids of those that were used lately
    Path (walk.py)                  the way of a prompt through it
    EvictionQueue (eviction.py)     per tier, the leaves by score
    frecency.py                     the score

Any thread; every call is short, holds the index's lock and does no I/O. The clock is passed in
(unix seconds) and may jump. What the index says about tiers is a hint: an object may have been
deleted by someone else, which its reader finds out and reports with `remove`. Victims are proposed,
not removed: the caller deletes them and then calls `remove`.

With three tiers an object takes about 130 bytes, in columns that Python's garbage collector does
not look into. The tokens of hot objects take at most `token_bytes` beside them: where they are not
known, `Path.unknown` names the objects whose heads a reader may look into.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId
from cache_store.format.keys import ChainKey, TokenChain
from cache_store.index import bulk, frecency
from cache_store.index.columns import Columns, IndexRow, StoredObject, packed
from cache_store.index.eviction import EvictionQueue, only_for
from cache_store.index.listing import Unnamed
from cache_store.index.nodes import NONE
from cache_store.index.radix import FREE, MAX_BYTES, MAX_USES, ROWS, Graph
from cache_store.index.walk import Path, proves, way_back

_BATCH = 65_536  # objects
TOKENS_KEPT = 32 << 20  # bytes: of 25 000 whole blocks


class Index:
    """See the module. Objects that no tier holds are forgotten."""

    def __init__(self, n_tiers: int, clock: Callable[[], float], token_bytes: int = TOKENS_KEPT) -> None:
        self._lock = threading.Lock()
        self._graph = Graph(n_tiers, token_bytes)
        self._time = frecency.SteadyTime(clock)
        self._held: list[frozenset[BlockId]] = [frozenset()] * n_tiers
        self._queues = [
            EvictionQueue(self._graph, i, partial(self._is_pinned, i), partial(self._pinned, i)) for i in range(n_tiers)
        ]
        self._bytes, self._objects = [0] * n_tiers, [0] * n_tiers
        self._pins: Counter[BlockId] = Counter()
        self._listings: list[list[Unnamed]] = [[] for _ in range(n_tiers)]

    def __len__(self) -> int:
        return self._graph.n_objects

    def __repr__(self) -> str:
        tiers = ", ".join(str(n_bytes) for n_bytes in self._bytes)
        return f"<Index {len(self)} objects, bytes by tier: {tiers}; {len(self._pins)} pinned>"

    # --- what is where ----------------------------------------------------------------------------

    def add(self, id: BlockId, tier_index: int, n_bytes: int, tokens: NDArray[np.uint32] | None = None) -> bool:
        """A tier holds `id`; True if that was new. Size and tokens are the last ones told."""
        as_bytes = None if tokens is None else packed(id, tokens)
        with self._lock:
            return self._put(id, tier_index, n_bytes, as_bytes, 0, None)

    def load(self, rows: Iterable[IndexRow], tier_index: int) -> int:
        """`add` what `rows` gave, in this process or another, with the best of the hits and times
        of use that were told; how many. Other calls come in between.
        """
        n_loaded = 0
        for n_loaded, row in enumerate(rows, 1):  # noqa: B007
            with self._lock:
                self._put(row.id, tier_index, row.n_bytes, row.tokens, row.hits, row.last_used_s)
                self._graph.learn_first(self._graph.find(row.id), row.first)
        return n_loaded

    def load_columns(self, columns: Iterable[Columns], tier_index: int) -> int:
        """`load` for very many: a batch at a time."""
        n_loaded = 0
        for some in columns:
            with self._lock:
                now_s, lead_s = self._time.now(), self._time.lead_s()
                n_new, n_bytes = bulk.put_many(self._graph, some, tier_index, now_s, lead_s)
                self._objects[tier_index] += n_new
                self._bytes[tier_index] += n_bytes
                self._queues[tier_index].reset()
            n_loaded += len(some)
        return n_loaded

    def learn(self, id: BlockId, tokens: NDArray[np.uint32]) -> None:
        """The tokens of a ROWS object; nothing happens when it is not known, or not ROWS."""
        with self._lock:
            item = self._graph.find(id)
            if item != NONE and self._graph.kind[item] == ROWS:
                self._graph.learn(item, packed(id, tokens))

    def remove(self, id: BlockId, tier_index: int) -> bool:
        """`id` is gone from a tier; True if it was known to be there."""
        with self._lock:
            item = self._graph.find(id)
            if item == NONE or not self._graph.is_in(item, tier_index):
                return False
            self._take_out(item, tier_index)
            return True

    def has(self, id: BlockId) -> bool:
        with self._lock:
            return self._graph.find(id) != NONE

    def tiers_of(self, id: BlockId) -> tuple[int, ...]:
        """The indices of the tiers that hold `id`, fastest first."""
        with self._lock:
            item = self._graph.find(id)
            return () if item == NONE else self._tiers_of(item)

    def stored(self, ids: Iterable[BlockId]) -> list[StoredObject]:
        """Those of `ids` that some tier holds."""
        with self._lock:
            return [self._stored(item, id) for id in ids if (item := self._graph.find(id)) != NONE]

    def sizes(self, ids: Iterable[BlockId], tier_index: int) -> dict[BlockId, int]:
        """The bytes of those of `ids` that a tier holds."""
        graph = self._graph
        with self._lock:
            found = ((id, graph.find(id)) for id in ids)
            here = ((id, item) for id, item in found if item != NONE and graph.is_in(item, tier_index))
            return {id: graph.bytes_in(item, tier_index) for id, item in here}

    def bytes_in(self, tier_index: int) -> int:
        return self._bytes[tier_index]

    def objects_in(self, tier_index: int) -> int:
        return self._objects[tier_index]

    def tokens_of(self, id: BlockId) -> bytes | None:
        """The tokens of a ROWS object (big-endian uint32); None where they are not known."""
        with self._lock:
            item = self._graph.find(id)
            return None if item == NONE else self._graph.tokens.get(item)

    def rows(self, tier_index: int) -> Iterator[IndexRow]:
        """Everything in a tier: each object as it is when its turn comes. One that comes or goes
        meanwhile may be left out.
        """
        graph = self._graph
        with self._lock:
            self._time.now()
            lead_s = self._time.lead_s()
        for item in range(len(graph.kind)):
            with self._lock:
                if graph.kind[item] == FREE or not graph.is_in(item, tier_index):
                    continue
                row = bulk.row_of(graph, item, graph.bytes_in(item, tier_index), lead_s)
            yield row

    def columns(self, tier_index: int) -> Iterator[Columns]:
        """The same as `rows`, a batch at a time."""
        for start in range(0, len(self._graph.kind), _BATCH):
            with self._lock:
                self._time.now()
                some = bulk.columns_of(self._graph, start, start + _BATCH, tier_index, self._time.lead_s())
            if len(some):
                yield some

    @contextmanager
    def listing(self, tier_index: int) -> Iterator[Callable[[BlockId, int], None]]:
        """Give what this yields each object (and its bytes) that a listing of a tier names. In the end
        what was known to be there when it began, and was not named, is forgotten, unless an exception
        ends it. Takes a byte per object.
        """
        with self._lock:
            unnamed = Unnamed(self._graph, tier_index)
            self._listings[tier_index].append(unnamed)
        try:
            yield partial(self._named, tier_index, unnamed)
            for item in unnamed.items():
                with self._lock:
                    if unnamed.has(item):
                        self._take_out(item, tier_index)
        finally:
            with self._lock:
                self._listings[tier_index].remove(unnamed)

    def row(self, id: BlockId) -> IndexRow | None:
        """An object as it is in its fastest tier."""
        with self._lock:
            self._time.now()
            if (item := self._graph.find(id)) == NONE:
                return None
            return bulk.row_of(self._graph, item, self._stored(item, id).n_bytes, self._time.lead_s())

    # --- prefixes ---------------------------------------------------------------------------------

    def longest_prefix(self, chain: TokenChain) -> Path:
        """The stored part of a prompt. Does not count as a hit."""
        with self._lock:
            return Path(self._graph, chain)

    def branch(self, path: Path) -> NDArray[np.uint32]:
        """What follows a path on the stored prefix that shares most with its prompt: see `Path.branch`."""
        with self._lock:
            return np.frombuffer(path.branch(self._graph), ">u4").astype(np.uint32)

    def way_to(self, key: ChainKey) -> list[BlockId]:
        """The objects of the prefix `key` in order: ROWS from its root on, each with the END behind it;
        [] when it is not stored whole.
        """
        with self._lock:
            nodes = self._graph.nodes.all_of(bytes.fromhex(key))
            return next((way for node in nodes if (way := way_back(self._graph, node))), [])

    def leads_to_end_of(self, id: BlockId, tier_index: int) -> bool:
        """Whether a tier has a ROWS object, this or another, that ends where `id` does."""
        with self._lock:
            node = self._node(id.root, id.key, id.start + id.n_tokens)
            return node != NONE and any(self._graph.is_in(edge, tier_index) for edge in self._graph.into(node))

    def proves(self, id: BlockId, tokens: NDArray[np.uint32]) -> bool:
        """Whether `tokens` are those of the ROWS object `id`: a name is the hash of its block so
        far, as far as that is known here.
        """
        with self._lock:
            return proves(self._graph, id, tokens)

    # --- eviction ---------------------------------------------------------------------------------

    def touch(self, ids: Iterable[BlockId], n_uses: int = 1) -> None:
        """`n_uses` hits, now, on each of `ids` that is known."""
        graph = self._graph
        with self._lock:
            now_s = self._time.now()
            for id in ids:
                item = graph.find(id)
                if item != NONE:
                    graph.n_uses[item] = min(graph.n_uses[item] + n_uses, MAX_USES)
                    graph.score[item] = frecency.after_use(graph.score[item], now_s, n_uses)
                    graph.tokens.use(item)

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
                    self._push(id, self._queues)

    def hold(self, tier_index: int, ids: frozenset[BlockId]) -> None:
        """Never evict `ids` from a tier, until the next call names others. They may precede the
        objects and outlive them.
        """
        with self._lock:
            before, self._held[tier_index] = self._held[tier_index], ids
            for id in before - ids:
                self._push(id, self._queues[tier_index : tier_index + 1])

    def only_for(self, way: Sequence[BlockId], tier_index: int) -> list[StoredObject]:
        """Those of the objects of a prefix (`way_to`), from its end on, that nothing else in a tier
        hangs on and nobody has pinned: deleted in this order, they leave no gap.
        """
        with self._lock:
            items = [item for item in map(self._graph.find, reversed(way)) if item != NONE]
            chosen = only_for(self._graph, items, tier_index, partial(self._is_pinned, tier_index))
            return [self._stored(item, tier_index=tier_index) for item in chosen]

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
            asked = None if may_go is None else lambda item: may_go(self._stored(item, tier_index=tier_index))
            found = self._queues[tier_index].victims(n_bytes, asked)
            return [self._stored(item, tier_index=tier_index) for item in found]

    # --- inside -----------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError where two parts of the bookkeeping disagree. O(n log n)."""
        graph = self._graph
        with self._lock:
            graph.check_integrity()
            items = list(graph.items())
            for tier_index, queue in enumerate(self._queues):
                here = [item for item in items if graph.is_in(item, tier_index)]
                assert self._objects[tier_index] == len(here), "objects of a tier"
                n_bytes = sum(graph.bytes_in(item, tier_index) for item in here)
                assert self._bytes[tier_index] == n_bytes, "bytes of a tier"
                queue.check_integrity(here)
            assert all(n > 0 for n in self._pins.values()), "a count of pins"

    def _tiers_of(self, item: int) -> tuple[int, ...]:
        return tuple(tier_index for tier_index in range(len(self._bytes)) if self._graph.is_in(item, tier_index))

    def _stored(self, item: int, id: BlockId | None = None, tier_index: int | None = None) -> StoredObject:
        tier_indices = self._tiers_of(item)
        n_bytes = self._graph.bytes_in(item, tier_indices[0] if tier_index is None else tier_index)
        return StoredObject(id or self._graph.id_of(item), tier_indices, n_bytes)

    def _node(self, root: ChainKey, key: ChainKey, depth: int) -> int:
        number = self._graph.nodes.roots.find(root)
        return NONE if number is None else self._graph.nodes.find(number, bytes.fromhex(key), depth)

    def _push(self, id: BlockId, queues: Iterable[EvictionQueue]) -> None:
        item = self._graph.find(id)
        if item != NONE:
            for queue in queues:
                queue.push(item)

    def _put(
        self, id: BlockId, tier_index: int, n_bytes: int, tokens: bytes | None, hits: int, last_used_s: float | None
    ) -> bool:
        if not 0 <= tier_index < len(self._bytes) or not 0 <= n_bytes <= MAX_BYTES or hits < 0:
            raise ValueError(f"tier {tier_index}, n_bytes {n_bytes}, hits {hits}: out of range")
        graph = self._graph
        item = graph.find(id)
        if item == NONE or last_used_s is not None:
            item = graph.add(id) if item == NONE else item
            used_s = self._time.now() if last_used_s is None else self._time.from_unix(last_used_s)
            graph.n_uses[item] = min(max(graph.n_uses[item], 1 + hits), MAX_USES)
            graph.score[item] = max(graph.score[item], frecency.score_of(1 + hits, used_s))
        if tokens is not None and graph.kind[item] == ROWS:
            graph.learn(item, tokens)
        return self._put_in(item, tier_index, n_bytes)

    def _named(self, tier_index: int, unnamed: Unnamed, id: BlockId, n_bytes: int) -> None:
        with self._lock:
            item = self._graph.find(id)
            if item == NONE or not self._graph.is_in(item, tier_index):
                self._put(id, tier_index, n_bytes, None, 0, None)
                return
            unnamed.discard(item)
            if self._graph.bytes_in(item, tier_index) != n_bytes:
                self._put_in(item, tier_index, n_bytes)

    def _put_in(self, item: int, tier_index: int, n_bytes: int) -> bool:
        graph = self._graph
        was_here = graph.is_in(item, tier_index)
        self._bytes[tier_index] += n_bytes - (graph.bytes_in(item, tier_index) if was_here else 0)
        graph.resize(item, tier_index, n_bytes)
        if was_here:
            return False
        self._objects[tier_index] += 1
        node = graph.hangs_on(item)
        if node != NONE:
            graph.nodes.hanging[tier_index][node] += 1
        self._queues[tier_index].push_new(item)
        return True

    def _take_out(self, item: int, tier_index: int) -> None:
        graph, queue = self._graph, self._queues[tier_index]
        self._bytes[tier_index] -= graph.bytes_in(item, tier_index)
        self._objects[tier_index] -= 1
        graph.resize(item, tier_index, None)
        queue.forget(item)
        for unnamed in self._listings[tier_index]:
            unnamed.discard(item)
        node = graph.hangs_on(item)
        if node != NONE:
            hanging = graph.nodes.hanging[tier_index]
            hanging[node] -= 1
            if hanging[node] == 0:
                queue.push_all(graph.into(node))
        if graph.is_nowhere(item):
            graph.remove(item)

    def _is_pinned(self, tier_index: int, item: int) -> bool:
        held = self._held[tier_index]
        if not (self._pins or held):
            return False
        id = self._graph.id_of(item)
        return id in self._pins or id in held

    def _pinned(self, tier_index: int) -> Iterator[int]:
        for ids in (self._pins, self._held[tier_index]):
            yield from (item for id in ids if (item := self._graph.find(id)) != NONE)
