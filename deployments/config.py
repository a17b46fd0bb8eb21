"""The `args` of `serve_config.yaml`, typed. An unknown key or a wrong value is refused at start with its path and the reason.

The keys of a model are those of `EngineConfig` (llama.cpp's own names) and Ray's own names for what Ray owns; one list, so that
nobody has to know which layer a knob belongs to.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.http_options import HttpOptions
from erllama.config import MODEL_ID, EngineConfig, Fingerprint, KvType
from erllama.errors import InvalidParameter


def deployment_name(model_id: str) -> str:
    """The Serve deployment of a model. Serve refuses only '#'; ':' is legal in ids (Ollama's tags) but not in a log file's name."""
    return f"model-{model_id.replace(':', '-')}"


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
    """One KV tier: any fsspec URL and a byte budget."""

    url: str
    max_bytes: int | str | None = None


class StoreSpec(_Strict):
    """The KV store. No tiers: nothing is kept beyond the life of a sequence."""

    tiers: tuple[TierSpec, ...] = ()

    @field_validator("tiers")
    @classmethod
    def _not_yet(cls, value: tuple[TierSpec, ...]) -> tuple[TierSpec, ...]:
        if value:
            raise ValueError("KV tiers are not implemented in this version; leave the list empty")
        return value


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


class BuildArgs(_Strict):
    """The whole of `args`."""

    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    store: StoreSpec = StoreSpec()
    http: HttpSpec = HttpSpec()

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        for model in self.models:
            for name in (model.id, *model.aliases):
                if name in seen:
                    raise ValueError(f"two models answer to {name!r}")
                seen.add(name)
        deployments = [deployment_name(model.id) for model in self.models]
        if len(set(deployments)) != len(deployments):
            raise ValueError("two model ids give the same deployment name")
        return self
