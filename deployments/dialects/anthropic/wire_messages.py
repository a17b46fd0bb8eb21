"""Messages of a request and the blocks that they consist of, validated. A text alone is read as one
block of it, so that both are one from here on: clients send a message in one form now and in the
other one with the next turn.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from deployments.dialects.anthropic.documents import TEXTS

logger = logging.getLogger("deployments.http")

ROLES = ("user", "assistant", "system")

SKIPPED = ""
"""The kind of a block that says nothing to a model here: Anthropic's servers ran a tool, or nobody
knows it.
"""

# The kinds of blocks, each with the field that it must have.
_NEEDED = {
    "text": "text",
    "thinking": "thinking",
    "redacted_thinking": None,
    "tool_use": "name",
    "tool_result": "tool_use_id",
    "tool_reference": "tool_name",
    SKIPPED: None,
}
_REFUSED = ("image",)
_BY_ROLE = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_IN_RESULT = ("text", "tool_reference")


class OpenPart(BaseModel):
    """Fields that nobody here knows are dropped: clients add some with every version."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


def as_blocks(value: Any) -> Any:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content blocks")
    return value


def _as_known(value: Any) -> Any:
    """A block as one of the kinds above: documents and search results are texts, and what is unknown
    is skipped, since one refusal would end a client's session.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind in _REFUSED:
        return value
    if kind in TEXTS:
        return {"type": "text", "text": TEXTS[kind](value)}
    if kind == SKIPPED or kind not in _NEEDED:
        logger.info("event=block_skipped type=%.40r", kind)
        return {"type": SKIPPED}
    return value


def _kind(value: Any) -> Any:
    if not isinstance(value, str) or value not in _NEEDED:
        raise ValueError(
            f"content blocks of type {str(value)[:40]!r} are not supported by this server; known are "
            + ", ".join((*filter(None, _NEEDED), *TEXTS))
        )
    return value


def _arguments(value: Any) -> Any:
    return {} if value is None else value


class Block(OpenPart):
    """One block of any kind; which fields count depends on `type`. The signature of a thinking
    block comes back with it and is not looked at.
    """

    type: Annotated[str, BeforeValidator(_kind)]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Annotated[dict[str, Any] | str, BeforeValidator(_arguments)] = ""
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: Annotated[list[Block], BeforeValidator(as_blocks)] = []
    is_error: bool | None = None
    cache_control: Any = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return _as_known(value)

    @model_validator(mode="after")
    def _is_whole(self) -> Block:
        needed = _NEEDED[self.type]
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"a block of type {self.type} must have '{needed}'")
        if self.type == "tool_result":
            _check_kinds(self.content, _IN_RESULT, "in a tool_result")
        return self


def _check_kinds(blocks: list[Block], allowed: tuple[str, ...], where: str) -> None:
    for number, block in enumerate(blocks):
        if block.type not in (*allowed, SKIPPED):
            raise ValueError(f"block {number}, of type {block.type}, cannot stand {where}")


def _role(value: Any) -> Any:
    if value not in ROLES:
        raise ValueError(f"unknown role {str(value)[:40]!r}, known are {', '.join(ROLES)}")
    return value


Blocks = Annotated[list[Block], BeforeValidator(as_blocks)]


class Message(OpenPart):
    """A message of the role "system" may stand anywhere and stays there."""

    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(_role)]
    content: Blocks

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        _check_kinds(self.content, _BY_ROLE[self.role], f"in a message of the role {self.role}")
        return self
