"""What an engine shows of itself: frozen, made between two steps. Engine thread only."""

from __future__ import annotations

from copy import copy

from erllama.backend.base import Backend
from erllama.cache.flow import CacheFlow
from erllama.engine.adapters import AdapterRegistry
from erllama.engine.admission import Admission
from erllama.engine.sessions import Sessions
from erllama.events import CacheHitKind
from erllama.sequence.machine import State, model_status
from erllama.stats import Counters, EngineStats


def take_snapshot(
    backend: Backend,
    admission: Admission,
    flow: CacheFlow,
    sessions: Sessions,
    adapters: AdapterRegistry,
    counts: Counters,
    last_cache_hit: CacheHitKind,
) -> EngineStats:
    """The gauges of this moment and a copy of the counters. Costs microseconds per running sequence."""
    running = admission.running
    states = [s.state for s in running]
    n_generating = states.count(State.GENERATING)
    return EngineStats(
        n_parallel=admission.n_parallel,
        n_free_seq_ids=admission.n_free,
        status=model_status(states),
        n_queued=len(admission.waiting),
        n_prefilling=len(states) - n_generating,
        n_generating=n_generating,
        last_cache_hit=last_cache_hit,
        kv_tokens=sum(s.n_kv for s in running),
        idle_kv_tokens=flow.live.n_tokens,
        has_context=backend.has_context,
        weights_loaded=backend.weights_loaded,
        kv_bytes=backend.kv_bytes,
        sessions=len(sessions),
        adapters=adapters.list(),
        running=tuple([sequence.info() for sequence in running]),
        counts=copy(counts),
        cache=flow.counts.snapshot(),
        causes={} if flow.prompt_log is None else flow.prompt_log.causes,
    )
