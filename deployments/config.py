"""The `args` of `serve_config.yaml`, typed. An unknown key or a wrong value is refused at start
with its path and the reason.

Each key is defined once, by whom it configures: a model's are those of `EngineConfig` (llama.cpp's
own names) and Ray's own names for what Ray owns, in one list, so that nobody has to know which
layer a knob belongs to; the store's are `StoreConfig`'s, the HTTP front's `HttpOptions`'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, replace
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cache_store.config import parse_bytes
from deployments.access.tenant import ANONYMOUS
from deployments.http.model_names import ModelNames
from deployments.http.options import HttpOptions
from deployments.http.ports import ReplyDefaults
from deployments.store_spec import STRICT, StoreSpec
from erllama.cache.policy import CachePolicy
from erllama.config import EngineConfig
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable
from erllama.hub.config import HubConfig
from erllama.hub.name import ModelName
from erllama.request import SamplingParams, sampling_of


def deployment_name(model_id: str) -> str:
    """The Serve deployment of a model. Serve refuses only '#'; ':' and '/' are legal in ids (Ollama's
    tags and namespaces) but not in a log file's name."""
    return f"model-{model_id.replace(':', '-').replace('/', '_')}"


_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _Strict(BaseModel):
    model_config = ConfigDict(**STRICT, frozen=True)


@contextmanager
def _refusals() -> Iterator[None]:
    """A value that the engine refuses, as the error that pydantic gathers."""
    try:
        yield
    except InvalidParameter as error:
        raise ValueError(error.message) from None


def _sampling(value: Any) -> Any:
    """Parameters of `SamplingParams` by their names; `logit_bias` also as a mapping from token ids."""
    with _refusals():
        return sampling_of(value) if isinstance(value, dict) else value


class Autoscaling(_Strict):
    """Ray Serve's autoscaling of one model; times in seconds. `min_replicas: 0` scales to zero and
    wakes on the next request.

    min_replicas: never fewer; 0: none while nobody asks.
    max_replicas: never more.
    target_ongoing_requests: of each replica; more of them call for another one, fewer let one go. None:
        `n_parallel`.
    upscale_delay_s: so long must they have been too many.
    downscale_delay_s: so long must they have been too few.
    """

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
    """A LoRA adapter that every replica loads at start.

    path: a GGUF file of the kind `adapter`, for this model.
    scale: how much of it is added; 0: nothing.
    """

    path: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSpec(EngineConfig):
    """One model: one Serve deployment named `model-<id>`. An `EngineConfig`, and what Serve needs
    to run it. `sampling` and `reply_grammar` (GBNF, for chats) hold where a request says nothing of
    its own.

    num_replicas: processes that have this model loaded, each with `n_parallel` sequences.
    """

    id: str
    aliases: tuple[str, ...] = ()
    sampling: Annotated[SamplingParams, BeforeValidator(_sampling)] = SamplingParams()
    reply_grammar: str | None = None
    adapters: tuple[AdapterSpec, ...] = ()

    # Ray
    num_replicas: Annotated[int, Field(ge=1)] = 1
    autoscaling: Autoscaling | None = None
    num_cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    num_gpus: Annotated[float, Field(ge=0)] = 0
    memory: Annotated[int, Field(ge=0)] | None = None
    resources: dict[str, float] = field(default_factory=dict)
    graceful_shutdown_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    keep_alive_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    prewarm: Annotated[int, Field(ge=0)] = 0
    prewarm_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0

    def __post_init__(self) -> None:
        with _refusals():
            super().__post_init__()
            grammar = self.reply_defaults().grammar
            if grammar is not None:
                GrammarCompiler(AnyTable).check(grammar)
        if self.autoscaling is not None and self.num_replicas != 1:
            raise ValueError("num_replicas and autoscaling exclude each other")
        if self.drain_s > self.graceful_shutdown_timeout_s:
            limit = f"graceful_shutdown_timeout_s ({self.graceful_shutdown_timeout_s:g})"
            raise ValueError(f"drain_s ({self.drain_s:g}) must not exceed {limit}: the replica is killed then")
        if isinstance(self.n_gpu_layers, int) and self.n_gpu_layers != 0 and self.num_gpus == 0:
            raise ValueError(
                f"n_gpu_layers is {self.n_gpu_layers} but num_gpus is 0: a replica without a GPU cannot offload layers"
            )

    def reply_defaults(self) -> ReplyDefaults:
        """What the ingress adds to requests."""
        text = self.reply_grammar
        grammar = None if text is None else Constraint(ConstraintKind.GBNF, text, "reply_grammar")
        return ReplyDefaults(self.sampling, grammar)

    def engine_config(self, *, n_threads: int) -> EngineConfig:
        """What a replica's engine gets. `n_threads` is what Ray gave the replica; a number in the
        config wins. No GPU, no GPU layers."""
        return replace(
            self, max_threads=self.max_threads or n_threads, n_gpu_layers=self.n_gpu_layers if self.num_gpus else 0
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HttpSpec(HttpOptions):
    """`HttpOptions`, and how many processes serve HTTP.

    ingress_replicas: processes that share the work of rendering, tokenising and encoding.
    """

    ingress_replicas: Annotated[int, Field(ge=1)] = 1

    def salts(self, model_id: str) -> tuple[str, ...]:
        """Of the tenants that may use a model, each once."""
        tenants = [key.tenant for key in self.api_keys] or [ANONYMOUS]
        return tuple(dict.fromkeys(tenant.salt for tenant in tenants if tenant.may_use(model_id)))


class RoutingSpec(_Strict):
    """Which of a model's replicas gets a request. `routing/score.py` has the rules; times in
    seconds, sizes in tokens of the prompt."""

    enabled: bool = True
    chunk_tokens: Annotated[int, Field(ge=8, le=1024)] = 32
    guard_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 512.0
    stats_period_s: Annotated[float, Field(ge=0.1, le=60)] = 0.5
    max_published: Annotated[int, Field(ge=64, le=65536)] = 2048


class FailoverPolicy(_Strict):
    """How often and how long a call whose replica is gone is tried on others; seconds.

    `timeout_s` bounds the time from a failure to the next answer. `backoff_s` is the wait before
    the second retry; it doubles. A replica that does not even send its heartbeat (one in two
    seconds) for `silence_s` is taken to be gone.
    """

    max_attempts: Annotated[int, Field(ge=1)] = 12
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    backoff_s: Annotated[float, Field(ge=0)] = 0.25
    silence_s: Annotated[float, Field(ge=5)] = 8.0


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

    enabled: free memory when it is short; without it nothing is unloaded, and replicas learn of each
        other's stores by listing them.
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HubSpec(HubConfig):
    """The hub, and how models of it are served when a request names them. Seconds and bytes.

    enabled: serve the hub's models beside the configured ones.
    max_models: processes of them, those whose model sleeps included.
    memory_bytes: what they may take of each node ("12GiB"); None: what is free below `scheduler.high`.
    keep_alive_s: how long a model stays in memory after its last request; None: until others need it.
    load_timeout_s: how long a request waits for its model.
    max_turn_s: how long a model may keep others waiting that there is no memory for beside it.
    min_ctx, min_parallel: what a model's context may shrink to where all of it does not fit.
    defaults: keys of a model, for all of them; `models`: for some, by name.
    """

    enabled: bool = False
    max_models: Annotated[int, Field(ge=1, le=10_000)] = 16
    memory_bytes: int | str | None = None
    keep_alive_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 300.0
    load_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    max_turn_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    min_ctx: Annotated[int, Field(ge=256)] = 2048
    min_parallel: Annotated[int, Field(ge=1)] = 1
    defaults: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with _refusals():
            super().__post_init__()
            if self.memory_bytes is not None:
                parse_bytes(self.memory_bytes)
            for name in self.models:
                ModelName.parse(name)
        for own in ({}, *self.models.values()):  # a wrong key is found at start, not with the first request
            self._spec({**self.defaults, **own}, "hub", "hub.gguf")

    def model_spec(self, name: str, path: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> ModelSpec:
        """The configuration of a model of the hub. What is known of it stands `below` or `above` the
        `defaults`, and below what is configured for it alone.
        """
        own = next((own for given, own in self.models.items() if ModelName.parse(given).short == name), {})
        return self._spec({**below, **self.defaults, **above, **own}, name, path)

    def _spec(self, settings: dict[str, Any], name: str, path: str) -> ModelSpec:
        fixed = {"id", "path", "aliases", "num_replicas", "autoscaling", "keep_alive_s"} & set(settings)
        if fixed:
            raise ValueError(f"{sorted(fixed)[0]} is not a setting of a model of the hub")
        return ModelSpec(**settings, id=name, path=path)


class BuildArgs(_Strict):
    """The whole of `args`. Its errors do not repeat what they refuse: that may be a key."""

    model_config = ConfigDict(hide_input_in_errors=True)

    hub: HubSpec = HubSpec()
    models: Annotated[tuple[ModelSpec, ...], Field(validate_default=True)] = ()
    store: StoreSpec = StoreSpec()
    policy: CachePolicy = CachePolicy()
    failover: FailoverPolicy = FailoverPolicy()
    routing: RoutingSpec = RoutingSpec()
    http: HttpSpec = HttpSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    default_model: str | None = None

    @field_validator("models")
    @classmethod
    def _some(cls, value: tuple[ModelSpec, ...], info: ValidationInfo) -> tuple[ModelSpec, ...]:
        hub = info.data.get("hub")
        if not value and not (hub is not None and hub.enabled):
            raise ValueError("must name a model, unless hub.enabled is true")
        return value

    @property
    def drain_s(self) -> float:
        """How long what runs may go on when all goes."""
        return max((spec.drain_s for spec in self.models), default=ModelSpec.drain_s)

    @field_validator("policy", mode="wrap")
    @classmethod
    def _valid_policy(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> CachePolicy:
        with _refusals():
            return handler(value)  # type: ignore[no-any-return]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        for model in self.models:
            for name in (model.id, *model.aliases):
                if name in seen:
                    raise ValueError(f"two models answer to {name!r}")
                seen.add(name)
        ModelNames({model.id: model.aliases for model in self.models}, self.default_model)
        known = {model.id for model in self.models}
        for index, key in enumerate(self.http.api_keys):
            unknown = sorted(set(key.models or ()) - known)
            if unknown and not self.hub.enabled:
                raise ValueError(f"http.api_keys.{index}.models names {unknown[0]!r}, which is no model's id")
        if not self.scheduler.enabled and any(model.keep_alive_s is not None for model in self.models):
            raise ValueError("keep_alive_s needs scheduler.enabled: true")
        if len({deployment_name(model.id) for model in self.models}) < len(self.models):
            raise ValueError("two model ids give the same deployment name")
        return self
