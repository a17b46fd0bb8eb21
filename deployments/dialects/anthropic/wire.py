"""Bodies of Anthropic's requests, validated. Every fault is an `InvalidParameter` (HTTP 400) that
names the field.

A field that nobody here knows passes, unlike OpenAI's: clients send new ones with every version
(`context_management`, `betas`, `speed`, `service_tier`, `cache_control`, ...), and one refusal
would end their session. What is known to change the reply, and cannot be done here, is refused by
name. Types are strict; null means absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deployments.dialects.anthropic.wire_messages import Block, Message, OpenPart, as_blocks
from deployments.dialects.anthropic.wire_tools import Tool, ToolChoiceBody
from deployments.http.body import Priority
from erllama.errors import NotSupported


def _texts(value: Any) -> Any:
    blocks = as_blocks(value)
    for number, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise ValueError(f"must be text; block {number} has the type {str(kind)[:40]!r}")
    return blocks


class Thinking(OpenPart):
    """`display` is accepted and not followed: thinking always comes whole, since the client sends it
    back and the template needs it there, or the next prompt would not begin with this one.
    """

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class OutputFormat(OpenPart):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(OpenPart):
    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(OpenPart):
    user_id: str | None = None


class ConversationBody(OpenPart):
    """What a conversation is: all that `count_tokens` needs."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Annotated[list[Block], BeforeValidator(_texts)] = Field(default_factory=list)
    tools: list[Tool] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # its name in an earlier beta
    cache_control: Any = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None

    def check_names(self) -> None:
        """Raises `NotSupported` for what cannot be left out."""
        for name in ("container", "mcp_servers"):
            if getattr(self, name):
                raise NotSupported(f"{name} is not supported by this server; leave it out", param=name)

    @property
    def format(self) -> OutputFormat | None:
        return (self.output_config and self.output_config.format) or self.output_format


class MessageBody(ConversationBody):
    """Ranges are checked by `SamplingParams` and `GenerationRequest`, in one place for all dialects."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    priority: Priority = None  # not Anthropic's: it says who goes first here
