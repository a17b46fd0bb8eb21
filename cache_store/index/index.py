"""What one replica knows about the objects in all tiers of its store: the longest stored prefix of a prompt, and who may be evicted.

    Graph (radix.py)                 what hangs on what; tokens
    Walk (walk.py)                   the way of a prompt through it
    EvictionQueue (eviction.py)   per tier, the leaves by score
    frecency                         the score

Pure bookkeeping: no I/O, no thread, no lock; whoever owns an Index holds a lock around every call. The clock is passed in (unix seconds)
and may jump. What is said here about tiers is a hint: an object may have been deleted by someone else, which its reader finds out and
reports with `remove`. Victims are proposed, not removed: the caller deletes them and then calls `remove`.

A lease or a pin belongs to a name and is counted. It may precede the object and outlive it.

An object takes about 1.4 kB, 1 kB of which are tokens. It is two objects to Python's garbage collector, and a full collection of a million
such pairs takes the better part of a second: whoever loads that many calls `gc.freeze` afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId
from cache_store.format.keys import BLOCK_TOKENS, ChainKey
from cache_store.index import frecency
from cache_store.index.eviction import EvictionQueue
from cache_store.index.radix import MAX_FIELD, TOKEN_BYTES, Edge, Graph, Item, block_until, field, field_of
from cache_store.index.walk import Walk


@dataclass(frozen=True, slots=True)
class Hop:
    """The first `n_use` tokens of a ROWS object: fewer than it has in the last hop of a path only."""

    id: BlockId
    n_use: int


@dataclass(frozen=True, slots=True)
class Path:
    """The stored part of a prompt: its first `n_tokens`, in the fewest objects. `ends`: the END objects of prefixes up to there that some
    whole edges lead to (not only those of this path), ascending by length."""

    hops: tuple[Hop, ...]
    n_tokens: int
    ends: tuple[BlockId, ...]


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What a snapshot keeps of an object in one tier. `tokens`: big-endian uint32, None where not known.

    `hits` does not count the creation. `last_used_s` (unix) is the moment at which creation and hits at once would score what they do:
    of an object without hits the time of its creation, of others never later than the last hit.
    """

    id: BlockId
    n_bytes: int
    tokens: bytes | None
    hits: int
    last_used_s: float


class Index:
    """See the module. Objects that no tier holds are forgotten."""

    def __init__(self, n_tiers: int, clock: Callable[[], float]) -> None:
        self._graph = Graph()
        self._time = frecency.SteadyTime(clock)
        self._queues = [EvictionQueue(tier_index, self._is_held) for tier_index in range(n_tiers)]
        self._bytes = [0] * n_tiers
        self._leases: dict[BlockId, int] = {}
        self._pins: dict[BlockId, int] = {}

    def __len__(self) -> int:
        return self._graph.n_items

    def __repr__(self) -> str:
        tiers = ", ".join(str(n_bytes) for n_bytes in self._bytes)
        return f"<Index {len(self)} objects, bytes by tier: {tiers}; {len(self._leases)} leased, {len(self._pins)} pinned>"

    # What is where

    def add(
        self,
        id: BlockId,
        tier_index: int,
        n_bytes: int,
        tokens: NDArray[np.uint32] | None = None,
        *,
        hits: int = 0,
        last_used_s: float | None = None,
    ) -> None:
        """`tier_index` holds `id`. Idempotent: sizes and tokens are the last ones told, hits and recency the best."""
        self._put(id, tier_index, n_bytes, None if tokens is None else _packed(tokens), hits, last_used_s)

    def restore(self, entry: IndexRow, tier_index: int) -> None:
        """`add` what `entries` gave, in this process or another."""
        self._put(entry.id, tier_index, entry.n_bytes, entry.tokens, entry.hits, entry.last_used_s)

    def learn(self, id: BlockId, tokens: NDArray[np.uint32]) -> None:
        """The tokens of a ROWS object. Nothing happens when the object is not known, or not ROWS."""
        item = self._graph.find(id)
        if isinstance(item, Edge):
            self._learn(item, _checked(id, _packed(tokens)))

    def remove(self, id: BlockId, tier_index: int) -> None:
        """`id` is gone from `tier_index`. Idempotent."""
        item = self._graph.find(id)
        if item is None or not item.is_in(tier_index):
            return
        size = field(item.sizes, tier_index)
        item.sizes -= field_of(size, tier_index)
        self._bytes[tier_index] -= size - 1
        node = item.hangs_on()
        if node is not None:
            node.hanging -= field_of(1, tier_index)
            if field(node.hanging, tier_index) == 0:
                self._queues[tier_index].push_into(node)
        if item.sizes == 0:
            self._graph.remove(item)

    def has(self, id: BlockId) -> bool:
        return self._graph.find(id) is not None

    def tiers_of(self, id: BlockId) -> tuple[int, ...]:
        """The tiers that hold `id`, fastest first."""
        item = self._graph.find(id)
        return () if item is None else tuple(tier_index for tier_index in range(len(self._bytes)) if item.is_in(tier_index))

    def n_bytes(self, id: BlockId, tier_index: int | None = None) -> int:
        """The size of `id` in `tier_index`, or in the fastest that holds it; 0 where it is not."""
        item = self._graph.find(id)
        if item is None:
            return 0
        tiers = range(len(self._bytes)) if tier_index is None else (tier_index,)
        return next((field(item.sizes, tier_index) - 1 for tier_index in tiers if item.is_in(tier_index)), 0)

    def bytes_in(self, tier_index: int) -> int:
        return self._bytes[tier_index]

    def tokens_of(self, id: BlockId) -> bytes | None:
        """The tokens of a ROWS object (big-endian uint32); None where they are not known."""
        item = self._graph.find(id)
        return item.tokens if isinstance(item, Edge) else None

    # Prefixes

    def longest_prefix(self, root: ChainKey, tokens: NDArray[np.uint32]) -> Path:
        """The longest common prefix with what is stored, to the token. Does not count as a hit."""
        walk = Walk(self._graph, root, tokens)
        hops = [Hop(edge.id, edge.n_tokens) for edge in walk.way()]
        n_tokens = walk.n_whole
        if walk.part is not None:
            hops[-1] = Hop(hops[-1].id, walk.n_part)
            n_tokens = walk.part.parent.depth + walk.n_part
        ends = (walk.reached[depth][0].end for depth in sorted(walk.reached))
        return Path(tuple(hops), n_tokens, tuple(end.id for end in ends if end is not None))

    def unknown_beyond(self, root: ChainKey, tokens: NDArray[np.uint32], limit: int) -> list[BlockId]:
        """Up to `limit` ROWS objects that might make the longest prefix longer: whoever reads and `learn`s their tokens may ask again."""
        return [edge.id for edge in islice(Walk(self._graph, root, tokens).unknown_beyond(), limit)]

    def node_at(self, root: ChainKey, tokens: NDArray[np.uint32], upto: int) -> int:
        """The length of the longest prefix of tokens[:upto] that whole ROWS objects cover: where a save goes on."""
        return Walk(self._graph, root, tokens[:upto]).n_whole

    def leads_to_end_of(self, id: BlockId, tier_index: int) -> bool:
        """Whether `tier_index` has a ROWS object, this or another, that ends where `id` does."""
        node = self._graph.node(id.root, bytes.fromhex(id.key), id.start + id.n_tokens)
        return node is not None and any(edge.is_in(tier_index) for edge in node.into)

    def proves(self, id: BlockId, tokens: NDArray[np.uint32]) -> bool:
        """Whether `tokens` are those of the ROWS object `id`: a name is the hash of its block so far, as far as that is known here."""
        key, stream = id.parent, np.asarray(tokens, dtype="<u4").tobytes()
        if id.start % BLOCK_TOKENS:
            node = self._graph.node(id.root, bytes.fromhex(id.parent), id.start)
            before = None if node is None else block_until(node)
            if before is None:
                return False
            key, stream = before[0].key_text, np.frombuffer(before[1], ">u4").astype("<u4").tobytes() + stream
        return hashlib.sha256(bytes.fromhex(key) + stream).hexdigest() == id.key

    # Eviction

    def touch(self, ids: Iterable[BlockId], n_uses: int = 1) -> None:
        """`n_uses` hits, now, on each of `ids` that is known."""
        now_s = self._time.now()
        for id in ids:
            item = self._graph.find(id)
            if item is not None:
                item.n_uses += n_uses
                item.score = frecency.after_use(item.score, now_s, n_uses)

    def lease(self, ids: Iterable[BlockId]) -> None:
        """Someone reads or publishes `ids`: they are no victims until each lease has been released."""
        _count(self._leases, ids)

    def release(self, ids: Iterable[BlockId]) -> None:
        """Give back one lease of each of `ids`; ValueError when there is none."""
        self._requeue(_uncount(self._leases, ids))

    def pin(self, ids: Iterable[BlockId]) -> None:
        """Never evict `ids` until each pin has been taken back."""
        _count(self._pins, ids)

    def unpin(self, ids: Iterable[BlockId]) -> None:
        """Take back one pin of each of `ids`; ValueError when there is none."""
        self._requeue(_uncount(self._pins, ids))

    def victims(self, tier_index: int, n_bytes: int) -> list[BlockId]:
        """Objects whose deletion from `tier_index`, in this order, frees `n_bytes`, or as much as may go; may free more. 0 is a no-op.

        Lowest score first among those that nothing in this tier hangs on; never leased or pinned ones, nor what those hang on. Does not
        remove: until the caller does, the next call names them again.
        """
        return [item.id for item in self._queues[tier_index].victims(n_bytes)]

    # Snapshots

    def entries(self, tier_index: int) -> Iterator[IndexRow]:
        """Everything in `tier_index`. The call needs the owner's lock, the iteration does not: it shows each object as it is by then."""
        self._time.now()
        return _rows_of(list(self._graph.items()), tier_index, self._time.lead_s())

    def check_integrity(self) -> None:
        """Raise AssertionError where two parts of the bookkeeping disagree. O(n log n)."""
        self._graph.check_integrity(len(self._bytes))
        items = list(self._graph.items())
        for tier_index, queue in enumerate(self._queues):
            here = [item for item in items if item.is_in(tier_index)]
            assert self._bytes[tier_index] == sum(field(item.sizes, tier_index) - 1 for item in here), "bytes of a tier"
            queued = queue.queued()
            assert len(set(queued)) == len(queued), "an object is queued twice"
            assert all(item.queued >> tier_index & 1 for item in queued), "queued, but not marked"
            assert sum(item.queued >> tier_index & 1 for item in here) == len(set(queued) & set(here)), "marked, but not queued"
            assert all(item.queued >> tier_index & 1 for item in here if queue.may_go(item)), "a leaf is not queued"
        assert all(n > 0 for n in [*self._leases.values(), *self._pins.values()]), "a count of leases or pins"

    def _put(self, id: BlockId, tier_index: int, n_bytes: int, tokens: bytes | None, hits: int, last_used_s: float | None) -> None:
        if not 0 <= tier_index < len(self._bytes) or not 0 <= n_bytes <= MAX_FIELD or hits < 0:
            raise ValueError(f"tier {tier_index}, n_bytes {n_bytes}, hits {hits}: out of range")
        tokens = None if tokens is None else _checked(id, tokens)
        item = self._graph.find(id)
        if item is None or last_used_s is not None:
            used_s = self._time.now() if last_used_s is None else self._time.from_unix(last_used_s)
            score = frecency.score_of(1 + hits, used_s)
            if item is None:
                item = self._graph.add(id, tokens, 1 + hits, score)
            else:
                item.n_uses, item.score = max(item.n_uses, 1 + hits), max(item.score, score)
        if tokens is not None and isinstance(item, Edge):
            self._learn(item, tokens)
        self._hold(item, tier_index, n_bytes)

    def _hold(self, item: Item, tier_index: int, n_bytes: int) -> None:
        before = field(item.sizes, tier_index)
        item.sizes += field_of(n_bytes + 1 - before, tier_index)
        self._bytes[tier_index] += n_bytes + 1 - max(before, 1)
        if before:
            return
        node = item.hangs_on()
        if node is not None:
            node.hanging += field_of(1, tier_index)
        self._queues[tier_index].push_new(item)

    def _learn(self, edge: Edge, tokens: bytes) -> None:
        if edge.tokens != tokens:
            edge.parent.detach(edge)
            edge.tokens = tokens
            edge.parent.attach(edge)

    def _is_held(self, item: Item) -> bool:
        if not self._leases and not self._pins:
            return False
        id = item.id
        return id in self._leases or id in self._pins

    def _requeue(self, ids: Iterable[BlockId]) -> None:
        for id in ids:
            item = self._graph.find(id)
            if item is not None:
                for queue in self._queues:
                    queue.push(item)


def _rows_of(items: list[Item], tier_index: int, lead_s: float) -> Iterator[IndexRow]:
    for item in items:
        size, n_uses, score = field(item.sizes, tier_index), item.n_uses, item.score
        if size:
            tokens = item.tokens if isinstance(item, Edge) else None
            yield IndexRow(item.id, size - 1, tokens, n_uses - 1, frecency.mean_use_s(n_uses, score) - lead_s)


def _packed(tokens: NDArray[np.uint32]) -> bytes:
    return np.asarray(tokens, dtype=">u4").tobytes()


def _checked(id: BlockId, tokens: bytes) -> bytes:
    if id.n_tokens and len(tokens) != id.n_tokens * TOKEN_BYTES:
        raise ValueError(f"{len(tokens) / TOKEN_BYTES:g} tokens for an object of {id.n_tokens}")
    return tokens


def _count(counts: dict[BlockId, int], ids: Iterable[BlockId]) -> None:
    for id in ids:
        counts[id] = counts.get(id, 0) + 1


def _uncount(counts: dict[BlockId, int], ids: Iterable[BlockId]) -> list[BlockId]:
    """Those whose count has become 0. Raises before anything has changed."""
    given: dict[BlockId, int] = {}
    _count(given, ids)
    if any(counts.get(id, 0) < n for id, n in given.items()):
        raise ValueError("given back more often than taken")
    for id, n in given.items():
        counts[id] -= n
    free = [id for id in given if not counts[id]]
    for id in free:
        del counts[id]
    return free
