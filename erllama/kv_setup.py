"""Puts the parts of the KV cache together for one engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cache_store import ChainKey, Store, root_key
from erllama.adapters import AdapterSet
from erllama.backend import Backend, ModelBackend
from erllama.cache_flow import CacheFlow
from erllama.cache_policy import CachePolicy
from erllama.config import EngineConfig
from erllama.kv_read import KvReader
from erllama.kv_save import KvSaver
from erllama.kv_state import KvKind
from erllama.namespace import namespace, replay_root
from erllama.stats import CacheCounters

_PREFAULT_BYTES = 256 << 20  # of each of two buffers: 20 k tokens of a 0.5B model, 2 k of an 8B one; beyond that the first restore pays


def make_root_of(backend: ModelBackend, config: EngineConfig, fingerprint: str, salt: str) -> Callable[[AdapterSet], ChainKey]:
    """The chain root of the KV that `backend` makes with a set of adapters, for one tenant."""
    layout, version = backend.kv_layout, backend.state_version
    long_rope = 0 < backend.info.long_rope_beyond < backend.n_ctx
    return lambda adapters: root_key(namespace(fingerprint, config, layout, adapters, version, long_rope=long_rope), salt)


def make_flow(backend: Backend, config: EngineConfig, policy: CachePolicy, store: Store | None, wake: Callable[[], None]) -> CacheFlow:
    """The flow of one engine. Without a store, or with a model whose state cannot be stored, prefixes are shared in the context only."""
    counts = CacheCounters()
    align = config.prefill_slice if config.deterministic else 1
    if store is None or backend.kv_layout.kind is KvKind.OPAQUE:
        return CacheFlow(backend, policy, counts, align=align)
    # a thread for each sequence that may be restoring, and one for what is released: who waits must not hold up the others
    executor = ThreadPoolExecutor(config.n_parallel + 1, thread_name_prefix=f"erllama-{config.id}-kv")
    executor.submit(backend.prefault, _PREFAULT_BYTES)
    reader = KvReader(backend, store, policy, executor=executor, wake=wake, align=align)
    saver = KvSaver(
        backend, store, policy, counts, replay_root=replay_root(config.id, store.salt), build=backend.state_version, clock=time.time
    )
    return CacheFlow(backend, policy, counts, reader=reader, saver=saver, align=align)
