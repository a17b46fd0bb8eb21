"""Frozen snapshots of what the engine is and does. Taking one never disturbs inference: the engine
thread publishes, others read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

_RATE_MIN_TOKENS = 32  # slices shorter than this say little about the speed of prefilling
_RATE_WEIGHT = 0.25


class ModelStatus(StrEnum):
    """Derived from the live sequences: none is `idle`, any that prefills (or restores) is
    `prefilling`, else `generating`.
    """

    IDLE = "idle"
    PREFILLING = "prefilling"
    GENERATING = "generating"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A loaded LoRA adapter: `handle` names it in calls, `sha256` is the digest of its file,
    `scale` multiplies its effect. Equal digests at equal scales give equal KV, whatever the path.
    """

    handle: str
    path: str = field(compare=False)
    sha256: str
    scale: float


AdapterSet = tuple[AdapterInfo, ...]
"""What a sequence computes with: fixed when the sequence is made."""


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU that llama.cpp sees, with its memory in bytes at the moment of asking."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is. `context_size` is the context of one sequence in tokens.

    `kv_kind` says how its KV can be kept: attention (cut at any token), window, recurrent and
    hybrid (at checkpoints), opaque (not at all; `kv_problem` tells why). `tier` names the tiers of
    its store, fastest first, "none" without one.
    """

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
    kv_kind: str
    kv_problem: str
    fingerprint: str
    n_gpu_layers: int
    has_chat_template: bool
    generates: bool
    embeds: bool
    rank_tokens: int = 0  # of a pair of texts, the most that it scores; 0: it has no rank head


@dataclass(frozen=True, slots=True)
class EvictResult:
    """What an evict or an unload did.

    `n_tokens` of ended sequences left the context, `freed_bytes` went back to the system (0 while
    requests run). `n_live` requests ran or waited and keep the context. `weights_unloaded`: an
    unload did what its name says, so that nothing but the vocabulary is loaded.
    """

    n_tokens: int = 0
    freed_bytes: int = 0
    n_live: int = 0
    weights_unloaded: bool = False


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What a memory scheduler needs to know about one model: what it holds, and what giving it back
    would cost whom. Bytes and seconds.

    `kv_bytes` is the context's whole KV buffer, allocated once however much of it is used; 0
    without a context. `weights_bytes` is 0 while they are unloaded; `weights_private_bytes` of them
    are memory of our own, the rest is mapped from the file: pages that the system takes back by
    itself when it needs them. A mapped model can be private nearly as a whole: llama.cpp copies
    Q4_0 weights, for one, into the layout of its kernels. With `on_gpu` the layers that were
    offloaded, with their KV, are in GPU memory instead. `idle_s` runs from the end of the last
    request (or from loading) and is 0 while one runs or waits.
    """

    kv_bytes: int
    weights_bytes: int
    weights_private_bytes: int
    n_running: int
    n_queued: int
    idle_s: float
    has_context: bool
    weights_loaded: bool
    on_gpu: bool


@dataclass(slots=True)
class CacheCounters:
    """What the engine's KV cache did since the start.

    `hits` counts requests by "kind:tier": kinds are those of `CacheHitKind`, exact and partial;
    tiers are live (another sequence of this context), staged (the store has not written it yet) and
    the labels of the store's. `parent_hits` of them named a parent key, `misses` were cold.
    `stall_ms` sums the time that saves and restores took on the engine thread, `max_stall_ms` is
    the longest one. `pins` counts requests whose prefix the store was asked to pin.
    `prefill_tokens_per_s` is how fast prompts are computed, a moving mean, 0 before it was measured;
    `saved_prefill_ms` is what the tokens that were taken over would have taken at that speed, without
    the `unpriced_tokens` from before it was measured.
    """

    hits: dict[str, int] = field(default_factory=dict)
    parent_hits: int = 0
    misses: int = 0
    restores_skipped: int = 0
    failed_reads: int = 0
    failed_saves: int = 0
    saves: dict[str, int] = field(default_factory=dict)
    stall_ms: float = 0.0
    max_stall_ms: float = 0.0
    pins: int = 0
    prefill_tokens_per_s: float = 0.0
    saved_prefill_ms: float = 0.0
    unpriced_tokens: int = 0
    idle_tokens: int = 0
    idle_turns: int = 0
    idle_given_up: int = 0
    idle_used_tokens: int = 0
    last_problem: str = ""

    def note_prefill(self, n_tokens: int, seconds: float) -> None:
        """A slice of a prompt was computed."""
        if n_tokens < _RATE_MIN_TOKENS or seconds <= 0:
            return
        mean = self.prefill_tokens_per_s
        self.prefill_tokens_per_s += (n_tokens / seconds - mean) * (_RATE_WEIGHT if mean else 1.0)
        self.note_taken_over(0)

    def note_taken_over(self, n_tokens: int) -> None:
        """So many tokens need not be computed."""
        self.unpriced_tokens += n_tokens
        if self.prefill_tokens_per_s > 0:
            self.saved_prefill_ms += 1e3 * self.unpriced_tokens / self.prefill_tokens_per_s
            self.unpriced_tokens = 0

    def note_stall(self, ms: float) -> None:
        """Account for a save or restore that held the engine thread for `ms`."""
        self.stall_ms += ms
        self.max_stall_ms = max(self.max_stall_ms, ms)

    def snapshot(self) -> CacheCounters:
        """A copy that does not change any more."""
        return replace(self, hits=dict(self.hits), saves=dict(self.saves))


@dataclass(frozen=True, slots=True)
class CauseCount:
    """Requests whose prompts were computed, as far as they were, for one cause, and the tokens of it."""

    requests: int = 0
    computed_tokens: int = 0


@dataclass(slots=True)
class Counters:
    """What the engine thread has counted since the start. Only that thread writes; others see
    copies inside `EngineStats`.
    """

    steps: int = 0
    requests_admitted: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    decode_ms: float = 0.0
    decode_aborts: int = 0


@dataclass(slots=True)
class SequenceInfo:
    """A sequence that runs. `state` is restoring, prefilling or generating; `n_given` tokens it was
    given, of which `n_cached` were taken over; the context holds `n_kv` of its `n_tokens`. Never
    changed: one is made per sequence and step, and a frozen one costs three times as much.
    """

    request_id: str
    state: str
    n_given: int
    n_cached: int
    n_kv: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges of this moment, and the counters (`counts`) of it.

    `n_free_seq_ids` + running sequences == n_parallel always holds between steps. `kv_tokens` of
    running sequences and `idle_kv_tokens` of finished ones are in the context. `has_context` is
    False after an evict, `weights_loaded` after an unload, until the next request. `kv_bytes` is
    what the context holds for KV. `sessions` counts known sessions. `running` are the sequences.
    `causes` counts requests by why their prompts had to be computed: the names are those of
    `erllama.diagnosis.record.Cause`, and `noise:<rule>`.
    """

    n_parallel: int
    n_free_seq_ids: int
    status: ModelStatus = ModelStatus.IDLE
    n_queued: int = 0
    n_prefilling: int = 0
    n_generating: int = 0
    kv_tokens: int = 0
    idle_kv_tokens: int = 0
    has_context: bool = True
    weights_loaded: bool = True
    kv_bytes: int = 0
    sessions: int = 0
    requests_refused: int = 0
    last_cache_hit: str = "cold"
    adapters: tuple[AdapterInfo, ...] = ()
    running: tuple[SequenceInfo, ...] = ()
    counts: Counters = field(default_factory=Counters)
    cache: CacheCounters = field(default_factory=CacheCounters)
    causes: dict[str, CauseCount] = field(default_factory=dict)

    @property
    def n_running(self) -> int:
        return self.n_prefilling + self.n_generating
