"""What is stored, for people: the prefixes that nothing longer continues. Reads the catalogue only."""

from __future__ import annotations

from heapq import nlargest

from cache_store.block import BlockId, Kind
from cache_store.index import Entry
from cache_store.keys import ChainKey
from cache_store.records import CachedPrefix
from cache_store.stockroom import Stockroom


def leaf_prefixes(stock: Stockroom, root: ChainKey | None, limit: int) -> tuple[CachedPrefix, ...]:
    """At most `limit`, most recently used first; `root` None: of all roots. `n_bytes` counts the whole way, in its fastest tiers."""
    edges = edges_of(stock, root)
    parents = {(id.parent, id.start) for id in edges}
    leaves = [entry for id, entry in edges.items() if (id.key, id.start + id.n_tokens) not in parents]
    into = {(id.key, id.start + id.n_tokens): entry for id, entry in edges.items()}
    chosen = nlargest(limit, leaves, key=lambda entry: entry.last_used_s)
    return tuple(_prefix(stock, entry, into) for entry in chosen)


def edges_of(stock: Stockroom, root: ChainKey | None) -> dict[BlockId, Entry]:
    """The ROWS objects of a root (None: of all), as they are in their fastest tiers."""
    found: dict[BlockId, Entry] = {}
    for tier in range(stock.staged + 1):
        for entry in stock.catalogue.entries(tier):
            if entry.id.kind is Kind.ROWS and root in (None, entry.id.root):
                found.setdefault(entry.id, entry)
    return found


def _prefix(stock: Stockroom, leaf: Entry, into: dict[tuple[ChainKey, int], Entry]) -> CachedPrefix:
    id, n_bytes, step = leaf.id, 0, leaf
    while True:
        n_bytes += step.n_bytes
        above = into.get((step.id.parent, step.id.start))
        if above is None:
            break
        step = above
    labels = tuple(stock.shelves[tier].label for tier in stock.catalogue.tiers_of(id) if tier < stock.staged)
    return CachedPrefix(id.root, id.key, id.start + id.n_tokens, labels, n_bytes, leaf.hits)
