"""What a model's replica counts, as samples of declared metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from cache_store import StoreStats
from deployments.telemetry.recorder import Sample
from erllama.stats import CacheCounters, CauseCount, Counters, EngineStats, ModelMemory


def replica_samples(
    model_id: str, replica_id: str, stats: EngineStats, store: StoreStats | None, memory: ModelMemory
) -> Iterator[Sample]:
    """All numbers of one replica. A name comes once per set of tags."""
    own = {"model": model_id, "replica": replica_id}
    engine, cache, causes = _of_engine(stats, memory), _of_cache(stats.cache), _of_causes(stats.causes)
    rows = chain(engine, cache, causes, _of_store(store) if store else ())
    for name, value, tags in rows:
        yield Sample(f"erllama_{name}", value, {**own, **tags})


_Row = tuple[str, float, Mapping[str, str]]


def _of_engine(stats: EngineStats, memory: ModelMemory) -> Iterator[_Row]:
    yield from _of_counts(stats.counts, stats.requests_refused)
    states = {"prefilling": stats.n_prefilling, "generating": stats.n_generating, "queued": stats.n_queued}
    yield from _each("sequences", "state", {**states, "free": stats.n_free_seq_ids})
    yield from _each("context_tokens", "kind", {"running": stats.kv_tokens, "idle": stats.idle_kv_tokens})
    yield from _each("memory_bytes", "kind", {"weights": memory.weights_bytes, "context": memory.kv_bytes})


def _of_counts(counts: Counters, n_refused: int) -> Iterator[_Row]:
    outcomes = {
        "finished": counts.requests_finished,
        "failed": counts.requests_failed,
        "cancelled": counts.requests_cancelled,
        "refused": n_refused,
    }
    yield from _each("engine_requests", "outcome", outcomes)
    yield "prompt_tokens", counts.prompt_tokens, {}
    yield "cached_tokens", counts.cached_tokens, {}
    yield "completion_tokens", counts.completion_tokens, {}
    yield "drafted_tokens", counts.drafted_tokens, {}
    yield "accepted_tokens", counts.accepted_tokens, {}
    yield "decode_seconds", counts.decode_ms / 1e3, {}
    yield "decode_steps", counts.steps, {}
    yield "decode_aborts", counts.decode_aborts, {}


def _of_cache(cache: CacheCounters) -> Iterator[_Row]:
    for hit, n in cache.hits.items():
        kind, _, tier = hit.partition(":")
        yield "cache_hits", n, {"kind": kind, "tier": tier}
    yield "cache_hits", cache.misses, {"kind": "cold", "tier": "none"}
    yield from _each("cache_saves", "reason", cache.saves)
    failures = {
        "read": cache.failed_reads,
        "save": cache.failed_saves,
        "restore_skipped": cache.restores_skipped,
    }
    yield from _each("cache_failures", "what", failures)
    yield from _each("idle_prefill_tokens", "what", {"computed": cache.idle_tokens, "used": cache.idle_used_tokens})
    yield from _each("idle_prefill_turns", "what", {"done": cache.idle_turns, "given_up": cache.idle_given_up})
    yield "prefill_saved_seconds", cache.saved_prefill_ms / 1e3, {}
    yield "prefill_tokens_per_second", cache.prefill_tokens_per_s, {}
    yield "cache_stall_seconds", cache.stall_ms / 1e3, {}


def _of_causes(causes: Mapping[str, CauseCount]) -> Iterator[_Row]:
    for cause, count in causes.items():
        yield "computed_prompts", count.requests, {"cause": cause}
        yield "computed_prompt_tokens", count.computed_tokens, {"cause": cause}


def _of_store(store: StoreStats) -> Iterator[_Row]:
    for tier in store.tiers:
        own = {"tier": tier.label}
        yield "store_bytes", tier.read_bytes, {**own, "direction": "read"}
        yield "store_bytes", tier.written_bytes, {**own, "direction": "written"}
        yield "store_held_bytes", tier.n_bytes, own
        yield "store_budget_bytes", tier.max_bytes or 0, own
        yield "store_objects", tier.objects, own
        yield "store_available", float(tier.available), own
        yield "store_errors", tier.errors, own
    yield from _each("store_dropped", "cause", store.dropped)
    yield from _each("store_corrupt", "damage", store.corrupt)
    yield from _each("store_evicted", "cause", store.evicted)


def _each(name: str, tag: str, values: Mapping[str, float]) -> Iterator[_Row]:
    for value, n in values.items():
        yield name, n, {tag: value}
