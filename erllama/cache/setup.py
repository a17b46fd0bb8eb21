"""Puts the parts of the KV cache together for one engine, and names what decides KV bytes.

The namespace of a model's KV is a digest of everything that changes KV bytes. Not part of it: the
context size (a context may grow without losing its cache; longrope models are the exception), batch
and slice sizes, threads, and where layers run. They move the last bits of a row at most, like any
reordering of a sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cache_store import BLOCK_TOKENS, ChainKey, Store, root_key
from erllama.backend.base import Backend, ModelBackend
from erllama.cache.flow import CacheFlow
from erllama.cache.policy import CachePolicy
from erllama.cache.read import KvReader
from erllama.cache.save import KvSaver
from erllama.config import EngineConfig
from erllama.diagnosis.cause import Kept
from erllama.diagnosis.prompt_log import Blame, PromptLog
from erllama.kv.layout import KvKind, KvLayout
from erllama.stats import AdapterSet, CacheCounters

# of each of two buffers: 20 k tokens of a 0.5B model, 2 k of an 8B one; beyond that the first
# restore pays
_PREFAULT_BYTES = 256 << 20


def make_root_of(
    backend: ModelBackend, config: EngineConfig, fingerprint: str, salt: str
) -> Callable[[AdapterSet], ChainKey]:
    """The chain root of the KV that `backend` makes with a set of adapters, for one tenant."""
    layout, version = backend.kv_layout, backend.state_version
    long_rope = 0 < backend.info.long_rope_beyond < backend.n_ctx
    return lambda adapters: root_key(
        namespace(fingerprint, config, layout, adapters, version, long_rope=long_rope), salt
    )


def make_flow(
    backend: Backend,
    config: EngineConfig,
    policy: CachePolicy,
    store: Store | None,
    wake: Callable[[], None],
    prompt_log: PromptLog | None = None,
) -> CacheFlow:
    """The flow of one engine. Without a store, or with a model whose state cannot be stored,
    prefixes are shared in the context only.
    """
    counts = CacheCounters()
    align = config.fixed_slice if config.deterministic else 1
    if store is None or backend.kv_layout.kind is KvKind.OPAQUE:
        return CacheFlow(backend, policy, counts, align=align, prompt_log=prompt_log)
    # a thread for each sequence that may be restoring, and one for what is released: who waits must
    # not hold up the others
    executor = ThreadPoolExecutor(config.n_parallel + 1, thread_name_prefix=f"erllama-{config.id}-kv")
    executor.submit(backend.prefault, _PREFAULT_BYTES)
    reader = KvReader(backend, store, policy, executor=executor, wake=wake, align=align)
    saver = KvSaver(
        backend,
        store,
        policy,
        counts,
        transcript_root=transcript_root(config.id, store.salt),
        keeps_reasoning=config.keep_sampled_reasoning,
    )
    return CacheFlow(backend, policy, counts, reader=reader, saver=saver, align=align, prompt_log=prompt_log)


def make_prompt_log(
    backend: Backend, config: EngineConfig, policy: CachePolicy, store: Store | None, blame: Blame | None = None
) -> PromptLog:
    """What one model remembers of its requests."""

    def unavailable() -> tuple[str, ...]:
        return () if store is None else tuple(tier.label for tier in store.stats().tiers if not tier.available)

    cuttable = backend.kv_layout.kind.cuttable
    step = max(BLOCK_TOKENS, config.fixed_slice if config.deterministic else 1)
    rounding = (step if cuttable else max(step, policy.checkpoint_interval)) + policy.boundary_trim_tokens
    kept = Kept(policy.min_tokens, rounding, cuttable)
    return PromptLog(backend.token_text, kept=kept, unavailable=unavailable, blame=blame)


def namespace(
    fingerprint: str,
    config: EngineConfig,
    layout: KvLayout,
    adapters: AdapterSet,
    state_version: str,
    *,
    long_rope: bool = False,
) -> str:
    """64 hex characters. `state_version` names the format of llama.cpp's sequence state; adapters
    count with digest and scale, in order.

    `long_rope`: the context is so large that a longrope model computes with its factors for long
    contexts.
    """
    parts = {
        "model": fingerprint,
        "type_k": config.type_k,
        "type_v": config.type_v,
        "flash_attn": config.flash_attn,
        "rope": [float(config.rope_freq_base), float(config.rope_freq_scale), *(["long"] if long_rope else [])],
        "adapters": [[use.sha256, float(use.scale)] for use in adapters],
        "layout": [layout.kind, list(layout.columns), list(layout.row_bytes)],
        "state": state_version,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def transcript_root(model_id: str, salt: str) -> ChainKey:
    """The chain root of recorded chat replies: any process that knows a model's name finds them,
    without loading its weights.

    Whoever finds some checks that they spell the text: a model that was replaced under its name
    costs hits, never a wrong token.
    """
    return root_key(f"replay\0{model_id}", salt)
