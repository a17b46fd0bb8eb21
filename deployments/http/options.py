"""Options of the HTTP front that belong to no model. Wrong values fail at construction and name the
field.
"""

from __future__ import annotations

from dataclasses import dataclass

from erllama.errors import InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """What the ingress needs to know besides the models.

    Attributes ---------- max_body_bytes: a larger body is refused with 413. 32 MiB is a context of
    several million tokens as text. keepalive_s: silence on a stream before a comment is sent;
    common proxies give up after 30 to 60 s. ready_timeout_s: how long `/health/ready` waits for a
    model's answer. cors_origins: origins of web pages that may call; "*" is any. Empty sends no
    CORS headers. api_keys: accepted bearer keys; empty accepts every request. The health routes are
    always open.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    keepalive_s: float = 15.0
    ready_timeout_s: float = 5.0
    cors_origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "keepalive_s", "ready_timeout_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InvalidParameter(f"{name} must be a number above 0, got {value!r}", param=name)
        for name in ("cors_origins", "api_keys"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) and value for value in values):
                raise InvalidParameter(f"{name} must be a list of non-empty strings", param=name)

    def __repr__(self) -> str:
        """Without the keys: a configuration gets logged."""
        return (
            f"HttpOptions(max_body_bytes={self.max_body_bytes}, keepalive_s={self.keepalive_s}, "
            f"ready_timeout_s={self.ready_timeout_s}, "
            f"cors_origins={self.cors_origins!r}, api_keys=<{len(self.api_keys)}>)"
        )
