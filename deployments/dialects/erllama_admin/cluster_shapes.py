"""The cluster as JSON. Pure. Counters are totals since a process started; what is not known is null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deployments.dialects.erllama_admin.cluster import ClusterNode, MemoryUse, SchedulerState
from deployments.http.model_library import ModelPhase
from deployments.http.ports import ReplicaState

OF_PHASE: Mapping[ModelPhase, str] = {
    ModelPhase.UNLOADED: "not_loaded",
    ModelPhase.WAITING: "loading",
    ModelPhase.LOADING: "loading",
    ModelPhase.LOADED: "ready",
    ModelPhase.SLEEPING: "asleep",
    ModelPhase.LEAVING: "ready",
    ModelPhase.FAILED: "failed",
}


def node_card(node: ClusterNode, memories: Iterable[MemoryUse]) -> dict[str, Any]:
    """`memories` are those of the whole cluster."""
    own = [memory for memory in memories if memory.node_id == node.id]
    ram = next((memory for memory in own if memory.resource == "ram"), None)
    gpus = [memory for memory in own if memory.resource != "ram"]
    return {
        "id": node.id,
        "address": node.address,
        "alive": node.alive,
        "cpus": node.cpus,
        "gpus": node.gpus,
        "memory_bytes": node.memory_bytes if ram is None else ram.total_bytes,
        "memory_used_bytes": None if ram is None else ram.used_bytes,
        "gpu_memory_bytes": sum(gpu.total_bytes for gpu in gpus) if gpus else None,
        "gpu_memory_used_bytes": sum(gpu.used_bytes for gpu in gpus) if gpus else None,
        "pressure": max((memory.pressure for memory in own), key=lambda one: one.rank, default=None),
    }


def replica_card(state: ReplicaState) -> dict[str, Any]:
    """`hits` counts requests by "kind:tier", "cold" those that found nothing."""
    stats, counts, cache, store = state.stats, state.stats.counts, state.stats.cache, state.store
    measured = cache.prefill_tokens_per_s > 0
    return {
        "id": state.replica_id,
        "node": state.node_id,
        "state": str(state.status),
        "n_running": stats.n_running,
        "n_queued": stats.n_queued,
        "n_parallel": stats.n_parallel,
        "n_ctx": state.n_ctx,
        "idle_s": state.memory.idle_s,
        "sequences": [asdict(sequence) for sequence in stats.running],
        "weights_bytes": state.memory.weights_bytes,
        "context_bytes": state.memory.kv_bytes,
        "kv_tokens": stats.kv_tokens,
        "idle_kv_tokens": stats.idle_kv_tokens,
        "requests": {
            "finished": counts.requests_finished,
            "failed": counts.requests_failed,
            "cancelled": counts.requests_cancelled,
        },
        "prompt_tokens": counts.prompt_tokens,
        "cached_tokens": counts.cached_tokens,
        "completion_tokens": counts.completion_tokens,
        "hits": {**cache.hits, "cold": cache.misses},
        "saves": dict(cache.saves),
        "failed_reads": cache.failed_reads,
        "failed_saves": cache.failed_saves,
        "evictions": sum(store.evicted.values()) if store else 0,
        "evicted": dict(store.evicted) if store else {},
        "dropped": dict(store.dropped) if store else {},
        "corrupt": dict(store.corrupt) if store else {},
        "prefill_tokens_per_s": cache.prefill_tokens_per_s if measured else None,
        "prefill_seconds_saved": cache.saved_prefill_ms / 1e3 if measured else None,
    }


def tier_cards(model_id: str, state: ReplicaState) -> list[dict[str, Any]]:
    """The tiers of a replica's store. Replicas may share one: each tells what its own index knows of it,
    and counts what it did itself.
    """
    if state.store is None:
        return []
    return [
        {
            "model": model_id,
            "replica": state.replica_id,
            "node": state.node_id,
            "name": tier.label,
            "bytes": tier.n_bytes,
            "budget_bytes": tier.max_bytes,
            "objects": tier.objects,
            "hits": tier.hits,
            "read_bytes": tier.read_bytes,
            "written_bytes": tier.written_bytes,
            "read_bytes_per_s": tier.read_bytes_per_s,
            "errors": tier.errors,
            "available": tier.available,
        }
        for tier in state.store.tiers
    ]


def model_card(
    model_id: str, aliases: Sequence[str], source: str, state: str, reason: str, replicas: Sequence[ReplicaState]
) -> dict[str, Any]:
    return {
        "id": model_id,
        "aliases": list(aliases),
        "from": source,
        "state": state,
        "reason": reason,
        "replicas": [replica_card(replica) for replica in replicas],
    }


def scheduler_card(state: SchedulerState) -> dict[str, Any]:
    return {
        "started": state.started,
        "evictions": state.evictions,
        "evicted_bytes": state.evicted_bytes,
        "last": [asdict(release) for release in state.last],
        "errors": dict(state.errors),
    }
