"""Token-exact KV blocks on any fsspec file system. Imports neither ray nor llama_cpp nor the
engine.

What it is. Whoever computes KV state hands it over with the token ids that it stands for; whoever
has a prompt asks for its longest stored prefix and gets back exactly the rows that were handed
over, verified, or fewer. Objects are immutable and named by content, so replicas, nodes and
restarts share them without a service between them: a directory or a bucket is all there is.

What it is not. Not a database: nothing is promised to be there later, budgets evict. Not a lock
service: two may compute and write the same block. Not protection against those who may write into a
tier: digests find accidents. It knows no models and no llama.cpp: rows are bytes.

    store.py     the facade, with the map of the parts behind it
    format/      what is stored and how it is named; format/file.py is the format, byte by byte
    index/       what one process knows of all tiers: the longest prefix, who may be evicted
    tiers/       places of objects: a local directory, or anything that fsspec has a driver for
    read/        prefixes found, fetched, verified        write/   blocks accepted and published
    sharing/     what processes tell each other, pins, and a shared tier kept to its budget
    documents/   small objects of an application, by ids of their own, beside the blocks
    transfer.py  one prefix as a whole: evicted, exported as a file, imported from one

Processes that share tiers need not know of each other: each lists, probes and evicts for itself.
Where a scheduler carries what `Store.take_delta` gives on one of them to `Store.apply_deltas` on
the others, they know at once what a listing would tell minutes later, and agree on what is worth
keeping. Where it calls `Store.collect_garbage` on one of them and `Store.leave_garbage` on the
others, one process evicts from a shared tier instead of all; when the scheduler stops, each is back
to itself.

    config = StoreConfig(tiers=(TierConfig("/dev/shm/kv", max_bytes="2GiB"),
    TierConfig("s3://bucket/kv"))) with Store(config) as store:
        chain = TokenChain(store.root("digest of everything that decides KV bytes"), tokens)
        store.save([Block(id, ...) for id in store.missing(chain)])
        plan = store.lookup(chain, deadline_s=1.0)
        fetched = store.read(plan, lambda block, n_use: ..., deadline_s=5.0)
"""

from __future__ import annotations

from cache_store.config import StoreConfig, TierConfig
from cache_store.errors import BadTransfer, CorruptBlock, Damage, StoreClosed, StoreError, StoreFull, TierError
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain, n_common, root_key, tenant_root
from cache_store.index.delta import BadDelta, IndexDelta, TierDelta
from cache_store.index.walk import Hop
from cache_store.read.fetch import ObjectReader
from cache_store.records import CachedPrefix, Fetched, GarbageReport, ImportReport, PinInfo, Plan, StoreStats, TierStats
from cache_store.store import Store
from cache_store.tiers.open import open_tier
from cache_store.transfer import EntryReader, ImportState

__all__ = [
    "BLOCK_TOKENS",
    "BadDelta",
    "BadTransfer",
    "Block",
    "BlockId",
    "CachedPrefix",
    "ChainKey",
    "CorruptBlock",
    "Damage",
    "EntryReader",
    "Fetched",
    "GarbageReport",
    "Hop",
    "ImportReport",
    "ImportState",
    "IndexDelta",
    "Kind",
    "ObjectReader",
    "PinInfo",
    "Plan",
    "Store",
    "StoreClosed",
    "StoreConfig",
    "StoreError",
    "StoreFull",
    "StoreStats",
    "TierConfig",
    "TierDelta",
    "TierError",
    "TierStats",
    "TokenChain",
    "n_common",
    "open_tier",
    "root_key",
    "tenant_root",
]
