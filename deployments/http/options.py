"""Options of the HTTP front that belong to no model."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from cache_store.config import parse_bytes
from deployments.access.keys import ApiKey
from deployments.capture.options import CaptureOptions
from deployments.noise.options import NoiseOptions
from deployments.telemetry.slow import SlowLimits
from deployments.telemetry.trace_options import TraceOptions

Text = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ResponsesOptions:
    """Where the responses of OpenAI's Responses API go that a client may refer to: into the last
    tier of the KV store that outlives the machine's memory, `max_bytes` of them ("1GiB") and for
    `ttl_s` seconds at most, the oldest going first.
    """

    max_bytes: int | str = "1GiB"
    ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30 * 86400.0

    @field_validator("max_bytes")
    @classmethod
    def _is_size(cls, value: int | str) -> int | str:
        parse_bytes(value)
        return value

    @property
    def budget_bytes(self) -> int:
        return parse_bytes(self.max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LogOptions:
    """The log lines of the ingress: `format` text, or one JSON object per line. A request that takes
    longer than `slow_first_token_s` to its first token, longer than `slow_token_s` from one token to
    the next, or whose client takes `slow_reader_s` longer to read it, is logged with why.
    """

    format: Literal["text", "json"] = "text"
    slow_first_token_s: Seconds = 2.0
    slow_token_s: Seconds = 0.2
    slow_reader_s: Seconds = 2.0

    @property
    def limits(self) -> SlowLimits:
        return SlowLimits(self.slow_first_token_s * 1e3, self.slow_token_s * 1e3, self.slow_reader_s * 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """What the ingress needs to know besides the models. Raises pydantic's `ValidationError`.

    max_body_bytes: a larger body is refused with 413. 32 MiB is a context of several million tokens
        as text.
    keepalive_s: silence on a stream before a keep-alive is sent; common proxies give up after 30 to
        60 s.
    ready_timeout_s: how long `/health/ready` waits for a model's answer.
    resume_grace_s: how long a reply is kept, after its connection ended, for a client that comes back;
        0 keeps none, and lets no identical requests share one.
    cors_origins: origins of web pages that may call; "*" is any. Empty sends no CORS headers.
    api_keys: accepted keys; empty accepts every request. The health routes are always open, but tell
        an error's own words only to who has a key. A configuration gets logged, without the keys.
    prefill_timeout_s, token_timeout_s, total_timeout_s: how long a request may take to its first token
        (waiting included), from one token to the next, and to its end; None is as long as it likes.
    slow_reader_s: how long a client may leave a piece of its stream unread before the stream is
        cancelled (up to twice as long goes by); None is for ever.
    noise: rules against what clients write into prompts that changes though nothing was said.
    responses: how many of the Responses API are kept, and for how long. metrics: who may read
    `/metrics`, an "admin", which is everybody without keys, or everybody ("open"). log: what log lines
    look like, and what is slow. traces: where OpenTelemetry spans go; None: nowhere.
    capture: where requests are kept for measuring.
    """

    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    keepalive_s: Annotated[float, Field(gt=0)] = 15.0
    ready_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    resume_grace_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    cors_origins: tuple[Text, ...] = ()
    api_keys: tuple[ApiKey, ...] = field(default=(), repr=False)
    prefill_timeout_s: Seconds | None = None
    token_timeout_s: Seconds | None = None
    total_timeout_s: Seconds | None = None
    slow_reader_s: Seconds | None = 120.0
    responses: ResponsesOptions = field(default_factory=ResponsesOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    metrics: Literal["admin", "open"] = "admin"
    log: LogOptions = field(default_factory=LogOptions)
    traces: TraceOptions | None = None
    capture: CaptureOptions = field(default_factory=CaptureOptions)
