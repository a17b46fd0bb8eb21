"""Where traces go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TraceOptions:
    """OpenTelemetry spans of requests, sent to `endpoint` (OTLP over HTTP: "http://host:4318/v1/traces")
    with `headers`, which may hold a key and are not shown. `service_name` is what they call this
    server. `sample` is the share of traces that begin
    here; of one that a client has begun, the client decides. Raises pydantic's `ValidationError`, also
    where `erllama[otel]` is not installed.
    """

    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    service_name: Annotated[str, Field(min_length=1)] = "erllama"

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"must be an URL like http://host:4318/v1/traces, got {value[:200]!r}")
        return value

    @model_validator(mode="after")
    def _is_installed(self) -> TraceOptions:
        if not has_exporter():
            raise ValueError("traces need the extra otel: pip install 'erllama[otel]'")
        return self


def has_exporter() -> bool:
    """Whether the optional packages are there."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # not even its parents are
        return False
