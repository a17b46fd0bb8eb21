"""Frozen snapshots of what the engine is and does. Taking one never disturbs inference: the engine thread publishes, others read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class ModelStatus(StrEnum):
    """Derived from the live sequences: none is `idle`, any that prefills (or restores) is `prefilling`, else `generating`."""

    IDLE = "idle"
    PREFILLING = "prefilling"
    GENERATING = "generating"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A loaded LoRA adapter: `handle` names it in calls, `sha256` is the digest of its file, `scale` multiplies its effect."""

    handle: str
    path: str
    sha256: str
    scale: float


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU that llama.cpp sees, with its memory in bytes at the moment of asking."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is (S8). `context_size` is the context of one sequence in tokens."""

    id: str
    status: ModelStatus
    backend: str
    architecture: str
    name: str
    context_size: int
    n_parallel: int
    n_vocab: int
    n_params: int
    size_bytes: int
    quant_type: str
    quant_bits: float
    tier: str
    fingerprint: str
    n_gpu_layers: int
    has_chat_template: bool
    generates: bool
    embeds: bool


@dataclass(slots=True)
class Counters:
    """What the engine thread has counted since the start. Only that thread writes; others see copies inside `EngineStats`."""

    steps: int = 0
    requests_admitted: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of this moment, and the counters (`counts`) of it.

    `n_free_seq_ids` + running sequences == n_parallel always holds between steps. `kv_tokens` is the number of tokens held in the context.
    """

    n_parallel: int
    n_free_seq_ids: int
    status: ModelStatus = ModelStatus.IDLE
    n_queued: int = 0
    n_prefilling: int = 0
    n_generating: int = 0
    kv_tokens: int = 0
    requests_refused: int = 0
    last_cache_hit: str = "cold"
    adapters: tuple[AdapterInfo, ...] = ()
    counts: Counters = field(default_factory=Counters)

    @property
    def n_running(self) -> int:
        return self.n_prefilling + self.n_generating
