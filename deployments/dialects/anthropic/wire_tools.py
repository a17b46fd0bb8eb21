"""Tools of a request and the choice among them, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deployments.dialects.anthropic.wire_messages import OpenPart


class Tool(OpenPart):
    """A tool of the client's own, or one that Anthropic's servers have: the latter are of other
    types than "custom", and need no schema.
    """

    type: str | None = None
    name: Annotated[str, Field(max_length=128)] = ""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None

    @property
    def is_own(self) -> bool:
        return self.type in (None, "custom")

    @model_validator(mode="after")
    def _is_whole(self) -> Tool:
        for field in ("name", "input_schema"):
            if self.is_own and getattr(self, field) in (None, ""):
                raise ValueError(f"a tool must have '{field}'")
        return self


class ToolChoiceBody(OpenPart):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_a_tool(self) -> ToolChoiceBody:
        if self.type == "tool" and not self.name:
            raise ValueError("a choice of type tool must have 'name'")
        return self
