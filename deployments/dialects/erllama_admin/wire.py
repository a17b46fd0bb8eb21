"""Bodies and queries of this API, validated. A fault is an `InvalidParameter` that names the field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import QueryParams

from cache_store.sharing.pin import LONGEST_S, MAX_NAME_CHARS
from deployments.dialects.openai.wire_messages import Message
from deployments.dialects.openai.wire_tools import Tool
from erllama.errors import InvalidParameter, check_int

Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]

MAX_LISTED = 1000


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class PinSpec(_Body):
    """`ttl_s` is how long from now on; `name` "" names a pin by the key of its prefix."""

    ttl_s: Annotated[float, Field(gt=0, le=LONGEST_S, allow_inf_nan=False, strict=False)] = 3600.0
    name: Name = ""


class PinBody(PinSpec):
    tenant: str | None = None


class ComputeBody(_Body):
    """A prefix to compute and keep: a `prompt`, as text or token ids, or `messages` with their
    `tools`, as chats of OpenAI's dialect begin with them.
    """

    model: str | None = None
    tenant: str | None = None
    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    pin: PinSpec | None = None

    @model_validator(mode="after")
    def _has_one(self) -> ComputeBody:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("must have either 'prompt' or 'messages'")
        if self.tools and not self.messages:
            raise ValueError("'tools' stand beside 'messages'")
        return self


class ForkBody(_Body):
    new_session_id: str
    model: str | None = None
    tenant: str | None = None


def asked_limit(query: QueryParams) -> int:
    """How many shall be listed."""
    text = query.get("limit", "100")
    if not (text.isascii() and text.isdigit()):
        raise InvalidParameter(f"limit must be an integer, got {text[:40]!r}", param="limit")
    limit = int(text[:8])
    check_int("limit", limit, 1, MAX_LISTED)
    return limit


class PullBody(_Body):
    """Of a pull into the hub. `name` None is made from the source."""

    source: Annotated[str, Field(min_length=1, max_length=2000)]
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    stream: bool = True
