"""Every number that leaves this server for a metrics system, declared once, as data.

Counters are exported with `_total` at their end; Ray's exporter puts `ray_` before every name, the
ingress' own `/metrics` does not. No tag has an unbounded set of values: no request, tenant or free
text is ever one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Which process counts it. `replica`: a model's; the ingress tells those at `/metrics`, too."""

    INGRESS = "ingress"
    REPLICA = "replica"
    SCHEDULER = "scheduler"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class Tag:
    """`values` are all that there may be; None where the configuration bounds them: `bound` says how."""

    values: frozenset[str] | None
    bound: str = ""


def _only(*values: str) -> Tag:
    return Tag(frozenset(values))


TAGS: Mapping[str, Tag] = {
    "model": Tag(None, "models of the configuration and of the hub, by their ids"),
    "replica": Tag(None, "replicas that run"),
    "node": Tag(None, "nodes of the cluster"),
    "resource": Tag(None, "ram, and each GPU of a node"),
    "tier": Tag(None, "live, staged, and the tiers of the store by their labels; none"),
    "rule": Tag(None, "rules against noise, each with NAME.left"),
    "dialect": Tag(None, "the APIs, by their classes"),
    "status": _only("1xx", "2xx", "3xx", "4xx", "429", "499", "5xx"),
    "reason": Tag(None, "the words of a fixed set: of slowness, of saves, of releases"),
    "kind": Tag(None, "the words of a fixed set: of hits, of releases, of memory"),
    "state": _only("prefilling", "generating", "queued", "free"),
    "outcome": _only("finished", "failed", "cancelled", "refused"),
    "direction": _only("read", "written"),
    "cause": Tag(None, "fixed words of why the store dropped something, or a prompt was computed; rules"),
    "damage": Tag(None, "the store's words of what is wrong with an object"),
    "what": Tag(None, "the words of a fixed set: of what failed, of swaps, of idle time"),
}

# seconds; what people wait for, what a token takes, what memory and disks take
LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
RESTORE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number. `unit` is that of its name's end: seconds, bytes, tokens; "" counts things."""

    name: str
    kind: Kind
    source: Source
    help: str
    tags: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus' format."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.exported,)


def _ingress(name: str, kind: Kind, help: str, *tags: str, unit: str = "", buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"erllama_{name}", kind, Source.INGRESS, help, tags, unit, buckets)


def _replica(name: str, kind: Kind, help: str, *tags: str, unit: str = "") -> Metric:
    return Metric(f"erllama_{name}", kind, Source.REPLICA, help, ("model", "replica", *tags), unit)


def _seconds(name: str, help: str, *tags: str, buckets: tuple[float, ...] = LATENCY) -> Metric:
    return _ingress(f"{name}_seconds", Kind.HISTOGRAM, help, *tags, unit="seconds", buckets=buckets)


C, G = Kind.COUNTER, Kind.GAUGE

METRICS: tuple[Metric, ...] = (
    # --- the ingress: one HTTP request each -------------------------------------------------------
    _ingress("requests", C, "HTTP requests that were answered; 499: the client left first.", "dialect", "status"),
    _ingress("requests_open", G, "HTTP requests that are being answered."),
    _ingress("slow_requests", C, "Requests that were slow, by why.", "reason"),
    _seconds("request", "From a request's head to the end of its answer.", "dialect"),
    _seconds("time_to_first_token", "From a request's head to its first token.", "dialect", "model"),
    _seconds("time_per_output_token", "Mean time between a reply's tokens.", "model", buckets=TOKEN),
    _seconds("queue", "Wait for a free sequence of the engine.", "model"),
    _seconds("restore", "Until it was known, and done, what of a prompt is kept.", "model", "tier", buckets=RESTORE),
    _seconds("prefill", "From admission to the first token, restore included.", "model"),
    _ingress("prompt_noise", C, "What rules took out of prompts that changes though nothing was said.", "rule"),
    # --- a model's replica ------------------------------------------------------------------------
    _replica("engine_requests", C, "Requests that ended in the engine.", "outcome"),
    _replica("sequences", G, "Sequences by state; queued: requests that wait for one.", "state"),
    _replica("prompt_tokens", C, "Tokens of prompts, cached ones included.", unit="tokens"),
    _replica("cached_tokens", C, "Tokens of prompts that were taken over instead of computed.", unit="tokens"),
    _replica("completion_tokens", C, "Tokens that were generated.", unit="tokens"),
    _replica("drafted_tokens", C, "Tokens of replies that were computed ahead.", unit="tokens"),
    _replica("accepted_tokens", C, "Tokens that were computed ahead and then sampled.", unit="tokens"),
    _replica("cache_hits", C, "Requests by how much of their prompt was kept, and where.", "kind", "tier"),
    _replica("computed_prompts", C, "Requests whose prompts were computed, by why.", "cause"),
    _replica("computed_prompt_tokens", C, "Tokens of prompts that were computed, by why.", "cause", unit="tokens"),
    _replica("cache_saves", C, "Saves to the store, by why.", "reason"),
    _replica("cache_failures", C, "Saves and reads that failed, restores that would not have paid.", "what"),
    _replica(
        "idle_prefill_tokens",
        C,
        "Tokens computed while no request ran or waited, and those that one took over.",
        "what",
    ),
    _replica("idle_prefill_turns", C, "Next turns of chats that were expected, by what became of them.", "what"),
    _replica("prefill_saved_seconds", C, "What the cached tokens would have taken to compute.", unit="seconds"),
    _replica("prefill_tokens_per_second", G, "How fast prompts are computed, a moving mean."),
    _replica("cache_stall_seconds", C, "Saves and restores on the engine's thread.", unit="seconds"),
    _replica("decode_seconds", C, "Time in llama.cpp's decode.", unit="seconds"),
    _replica("decode_steps", C, "Calls of llama.cpp's decode."),
    _replica("decode_aborts", C, "Decodes that were aborted because they took too long."),
    _replica("context_tokens", G, "Tokens in the context: of sequences that run, and kept.", "kind", unit="tokens"),
    _replica("memory_bytes", G, "What weights and context take.", "kind", unit="bytes"),
    _replica("store_bytes", C, "Bytes that a store's tier has read and written.", "tier", "direction", unit="bytes"),
    _replica("store_held_bytes", G, "Bytes in a store's tier, as this replica knows it.", "tier", unit="bytes"),
    _replica("store_budget_bytes", G, "Bytes that a store's tier may hold; 0: no limit.", "tier", unit="bytes"),
    _replica("store_objects", G, "Objects in a store's tier.", "tier"),
    _replica("store_available", G, "1 while a store's tier is used, 0 while it is left alone.", "tier"),
    _replica("store_errors", C, "Calls of a store's tier that failed.", "tier"),
    _replica("store_dropped", C, "Saves that were dropped, by why.", "cause"),
    _replica("store_corrupt", C, "Objects that did not verify, by what was wrong.", "damage"),
    _replica("store_evicted", C, "Objects that were evicted, by why.", "cause"),
    # --- the memory scheduler ---------------------------------------------------------------------
    *(
        Metric(f"erllama_memory_{what}_bytes", G, Source.SCHEDULER, help, ("node", "resource"), "bytes")
        for what, help in (
            ("used", "Used bytes of a node's RAM or of a GPU."),
            ("total", "Bytes that a node's RAM or a GPU has."),
        )
    ),
    Metric(
        "erllama_memory_exhausted",
        G,
        Source.SCHEDULER,
        "1 while a memory is too full and nothing idle is left to release.",
        ("node", "resource"),
    ),
    Metric(
        "erllama_memory_releases",
        C,
        Source.SCHEDULER,
        "Times that a model or tier released memory.",
        ("reason", "kind", "model"),
    ),
    Metric(
        "erllama_memory_freed_bytes",
        C,
        Source.SCHEDULER,
        "Bytes that went back to the system or the GPU.",
        ("reason", "kind", "model"),
        "bytes",
    ),
    # --- models on demand -------------------------------------------------------------------------
    Metric(
        "erllama_hub_swaps",
        C,
        Source.HUB,
        "Times that models of the hub were woken, put to sleep or removed.",
        ("what",),
    ),
    Metric("erllama_hub_models_in_memory", G, Source.HUB, "Models of the hub that are in memory."),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


def status_class(status: int) -> str:
    """The `status` tag of an HTTP status."""
    return str(status) if status in (429, 499) else f"{min(max(status // 100, 1), 5)}xx"
