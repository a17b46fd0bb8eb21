"""The configuration of capturing: `http.capture`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from cache_store.config import parse_bytes

MIN_BYTES = 1 << 20


class CaptureOptions(BaseModel):
    """Where requests are kept. `dir` None keeps none; else it is an absolute path, on the machine of each
    ingress replica, of which the files take up to `max_bytes` ("1GiB"), the oldest going first.
    `redact` "text" replaces what people and models wrote, word by word, so that equal texts stay equal;
    names, parameters and the schemas of tools stay. "keys" keeps texts. Keys are never kept. Raises
    pydantic's `ValidationError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: str | None = None
    max_bytes: int | str = "1GiB"
    redact: Literal["text", "keys"] = "text"

    @field_validator("dir")
    @classmethod
    def _is_absolute(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute():
            raise ValueError(f"must be an absolute path, got {value[:200]!r}")
        return value

    @field_validator("max_bytes")
    @classmethod
    def _is_size(cls, value: int | str) -> int | str:
        if parse_bytes(value) < MIN_BYTES:
            raise ValueError(f"must be at least {MIN_BYTES} bytes, got {value!r}")
        return value

    @property
    def budget_bytes(self) -> int:
        return parse_bytes(self.max_bytes)
