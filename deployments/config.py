"""The `args` of `serve_config.yaml`, typed. An unknown key or a wrong value is refused at start with its path and the reason.

The keys of a model are those of `EngineConfig` (llama.cpp's own names) and Ray's own names for what Ray owns; one list, so that
nobody has to know which layer a knob belongs to.
"""

from __future__ import annotations

import os
import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from cache_store import StoreConfig, TierConfig
from deployments.http.options import HttpOptions
from erllama.cache.policy import CachePolicy
from erllama.config import MODEL_ID, EngineConfig, Fingerprint, KvType
from erllama.errors import InvalidParameter
from erllama.gguf.fingerprint import user_cache_dir


def deployment_name(model_id: str) -> str:
    """The Serve deployment of a model. Serve refuses only '#'; ':' is legal in ids (Ollama's tags) but not in a log file's name."""
    return f"model-{model_id.replace(':', '-')}"


_SHM_BYTES = 2 << 30
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Autoscaling(_Strict):
    """Ray Serve's autoscaling of one model; times in seconds. `min_replicas: 0` scales to zero and wakes on the next request."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] | None = None
    upscale_delay_s: Annotated[float, Field(ge=0)] = 5.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not exceed max_replicas ({self.max_replicas})")
        return self


class AdapterSpec(_Strict):
    """A LoRA adapter that every replica loads at start."""

    path: str
    scale: float = 1.0


class ModelSpec(_Strict):
    """One model: one Serve deployment named `model-<id>`."""

    id: str
    path: str
    aliases: tuple[str, ...] = ()

    # the engine: see EngineConfig for meaning and limits
    n_ctx: int = 4096
    n_parallel: int = 4
    n_batch: int = 512
    prefill_slice: int = 256
    max_queue: int = 128
    stream_interval_ms: float = 50.0
    decode_budget_s: float = 120.0
    n_threads: int | Literal["auto"] = "auto"
    n_gpu_layers: int | Literal["auto"] = "auto"
    flash_attn: bool = True
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    use_mmap: bool = True
    use_mlock: bool = False
    fingerprint: Fingerprint = "safe"
    deterministic: bool = False
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    adapters: tuple[AdapterSpec, ...] = ()

    # Ray
    num_replicas: Annotated[int, Field(ge=1)] = 1
    autoscaling: Autoscaling | None = None
    num_cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    num_gpus: Annotated[float, Field(ge=0)] = 0
    memory: Annotated[int, Field(ge=0)] | None = None
    resources: dict[str, float] = {}
    graceful_shutdown_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    keep_alive_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    prewarm: Annotated[int, Field(ge=0)] = 0
    prewarm_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0

    @field_validator("id")
    @classmethod
    def _valid_id(cls, value: str) -> str:
        if not MODEL_ID.match(value):
            raise ValueError(f"must match {MODEL_ID.pattern}, got {value!r}")
        return value

    @model_validator(mode="after")
    def _valid(self) -> Self:
        try:
            self.engine_config(n_threads=1)
        except InvalidParameter as error:
            raise ValueError(error.message) from None
        if self.autoscaling is not None and self.num_replicas != 1:
            raise ValueError("num_replicas and autoscaling exclude each other")
        if self.drain_s > self.graceful_shutdown_timeout_s:
            limit = f"graceful_shutdown_timeout_s ({self.graceful_shutdown_timeout_s:g})"
            raise ValueError(f"drain_s ({self.drain_s:g}) must not exceed {limit}: the replica is killed then")
        if isinstance(self.n_gpu_layers, int) and self.n_gpu_layers != 0 and self.num_gpus == 0:
            raise ValueError(f"n_gpu_layers is {self.n_gpu_layers} but num_gpus is 0: a replica without a GPU cannot offload layers")
        return self

    def engine_config(self, *, n_threads: int) -> EngineConfig:
        """The engine's part. `n_threads` is what Ray gave the replica; a number in the config wins. No GPU, no GPU layers."""
        names = EngineConfig.__dataclass_fields__.keys() & ModelSpec.model_fields.keys()
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        if values["n_threads"] == "auto":
            values["n_threads"] = n_threads
        if self.num_gpus == 0:
            values["n_gpu_layers"] = 0
        return EngineConfig(**values)


class TierSpec(_Strict):
    """One KV tier: any fsspec URL, a byte budget, compression of what is written to it, and arguments of the fsspec driver."""

    url: str
    max_bytes: int | str | None = None
    compression: Literal["zstd", "lz4"] | None = None
    storage_options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self.config()
        return self

    def config(self) -> TierConfig:
        """What the store takes. Raises `ValueError` that names the field."""
        return TierConfig(**self.model_dump())


class StoreSpec(_Strict):
    """The KV store of all models: `tiers`, fastest first. Null stands for `default_tiers`, an empty list for no store at all.

    `salt` isolates tenants; the other keys are those of `StoreConfig`.
    """

    tiers: tuple[TierSpec, ...] | None = None
    salt: str = ""
    queue_bytes: int = 256 << 20
    rescan_s: float = 300.0
    checkpoint_s: float = 900.0

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self.config()
        return self

    def config(self) -> StoreConfig | None:
        """What the store takes; None without tiers. Raises `ValueError` that names the field."""
        tiers = default_tiers() if self.tiers is None else tuple(tier.config() for tier in self.tiers)
        return StoreConfig(tiers=tiers, **self.model_dump(exclude={"tiers"})) if tiers else None


def default_tiers() -> tuple[TierConfig, ...]:
    """What works on a laptop: memory of the machine that all its processes share, then the user's cache directory."""
    tiers: list[TierConfig] = []
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        size = shutil.disk_usage(shared).total
        tiers.append(TierConfig(f"file://{shared}/erllama-{os.getuid()}", max_bytes=min(_SHM_BYTES, size // 4)))
    tiers.append(TierConfig(f"file://{user_cache_dir()}/kv", max_bytes="20GiB"))
    return tuple(tiers)


class HttpSpec(_Strict):
    """The HTTP front: see `HttpOptions`. `ingress_replicas` share the work of rendering, tokenising and encoding."""

    max_body_bytes: int = HttpOptions().max_body_bytes
    keepalive_s: float = HttpOptions().keepalive_s
    ready_timeout_s: float = HttpOptions().ready_timeout_s
    cors_origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    ingress_replicas: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _valid(self) -> Self:
        try:
            self.options()
        except InvalidParameter as error:
            raise ValueError(error.message) from None
        return self

    def options(self) -> HttpOptions:
        """What the ingress takes."""
        return HttpOptions(**self.model_dump(exclude={"ingress_replicas"}))


class RoutingSpec(_Strict):
    """Which of a model's replicas gets a request. `routing/score.py` has the rules; times in seconds, sizes in tokens of the prompt."""

    enabled: bool = True
    chunk_tokens: Annotated[int, Field(ge=8, le=1024)] = 32
    guard_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 512.0
    stats_period_s: Annotated[float, Field(ge=0.1, le=60)] = 0.5
    max_published: Annotated[int, Field(ge=64, le=65536)] = 2048


class FailoverPolicy(_Strict):
    """How often and how long a call whose replica is gone is tried on others; seconds.

    `timeout_s` bounds the time from a failure to the next answer. `backoff_s` is the wait before the second retry; it doubles.
    """

    max_attempts: Annotated[int, Field(ge=1)] = 12
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    backoff_s: Annotated[float, Field(ge=0)] = 0.25


class ReleaseKind(StrEnum):
    """What can be released, cheapest first.

    There is no kind for single idle sequences: llama.cpp allocates the KV buffer of a context as a
    whole, so their memory comes back with the context, whose release saves them.
    """

    RAM_TIER = "ram_tier"  # objects of a store's tier in RAM that a lower tier has, too
    CONTEXT = "context"  # the context of an idle model, once what it holds is saved
    WEIGHTS = "weights"  # the weights of an idle model, and its context with them


class SchedulerSpec(_Strict):
    """The memory scheduler: shares of a memory, times in seconds. `memory/policy.py` has the rules.

    `sources` are "system", "nvidia", "none" or "module:function" (called with a node id, returns
    `memory.messages.Reading`s) and are read on every node. `total_bytes` makes "system" believe in
    less RAM than the machine has.
    """

    enabled: bool = True
    interval_s: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] = 5.0
    high: Annotated[float, Field(gt=0, le=1)] = 0.85
    low: Annotated[float, Field(gt=0, le=1)] = 0.75
    min_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    cooldown_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    release_kinds: tuple[ReleaseKind, ...] = tuple(ReleaseKind)
    sources: tuple[str, ...] = ("system", "nvidia")
    total_bytes: Annotated[int, Field(gt=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    gossip: bool = True
    gc_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 300.0
    log: bool = True

    @field_validator("release_kinds", "sources")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = {str(name) for name in value if value.count(name) > 1}
        if twice:
            raise ValueError(f"names {sorted(twice)[0]!r} twice")
        return value

    @field_validator("sources")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ("system", "nvidia", "none") and not _FUNCTION.fullmatch(name):
                raise ValueError(f"must be system, nvidia, none or module:function, got {name!r}")
        if "none" in value and len(value) > 1:
            raise ValueError("none stands alone")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class BuildArgs(_Strict):
    """The whole of `args`."""

    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    store: StoreSpec = StoreSpec()
    policy: CachePolicy = CachePolicy()
    failover: FailoverPolicy = FailoverPolicy()
    routing: RoutingSpec = RoutingSpec()
    http: HttpSpec = HttpSpec()
    scheduler: SchedulerSpec = SchedulerSpec()

    @field_validator("policy", mode="wrap")
    @classmethod
    def _valid_policy(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> CachePolicy:
        try:
            return handler(value)  # type: ignore[no-any-return]
        except InvalidParameter as error:
            raise ValueError(error.message) from None

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        for model in self.models:
            for name in (model.id, *model.aliases):
                if name in seen:
                    raise ValueError(f"two models answer to {name!r}")
                seen.add(name)
        if not self.scheduler.enabled and any(model.keep_alive_s is not None for model in self.models):
            raise ValueError("keep_alive_s needs scheduler.enabled: true")
        deployments = [deployment_name(model.id) for model in self.models]
        if len(set(deployments)) != len(deployments):
            raise ValueError("two model ids give the same deployment name")
        return self
