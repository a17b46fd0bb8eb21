"""Messages and tools of a chat request, validated, and as templates read them.

Ollama's calls have arguments that are objects, and a result names its tool, not its call. Templates
of some families want ids: a call without one gets one from its place, so that a conversation which
goes on begins with the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from deployments.generation.chat import OfferedTool

ROLES = ("system", "user", "assistant", "tool")


class Part(BaseModel):
    """Extra fields are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _arguments(value: Any) -> Any:
    """An object; clients that come from OpenAI's API send its JSON text."""
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be an object") from None


def _role(value: Any) -> Any:
    if value not in ROLES:
        raise ValueError(f"unknown role {str(value)[:40]!r}, known are {', '.join(ROLES)}")
    return value


def no_images(value: Any) -> Any:
    if value:
        raise ValueError("images are not supported by this server")
    return value


class CalledFunction(Part):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments)] = Field(default_factory=dict)


class ToolCallPart(Part):
    id: str | None = None
    function: CalledFunction


class Message(Part):
    role: Annotated[str, BeforeValidator(_role)]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[Any] | None, AfterValidator(no_images)] = None
    tool_calls: list[ToolCallPart] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None  # what `tool_name` was called before


class FunctionDef(Part):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


def _tool_type(value: Any) -> Any:
    if value not in (None, "", "function"):
        raise ValueError(f"tools of type {str(value)[:40]!r} are not supported, only of type 'function'")
    return "function"


class Tool(Part):
    type: Annotated[str, BeforeValidator(_tool_type)] = "function"
    function: FunctionDef


def offered_tools(tools: Sequence[Tool] | None) -> tuple[OfferedTool, ...]:
    """Tools as the template shows them."""
    functions = [tool.function for tool in tools or ()]
    return tuple(OfferedTool.of(one.name, one.description, one.parameters) for one in functions)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: only what was said, results beside the call that they
    answer.
    """
    rendered: list[dict[str, Any]] = []
    pending: list[tuple[str, str]] = []  # (id, name) of the calls that have no result yet
    for number, message in enumerate(messages):
        fields: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            fields["thinking"] = message.thinking
        if message.tool_calls:
            calls = [_call(call, f"call_{number}_{place}") for place, call in enumerate(message.tool_calls)]
            fields["tool_calls"] = calls
            pending = [(call["id"], call["function"]["name"]) for call in calls]
        if message.role == "tool":
            fields |= _answered(message, pending)
        rendered.append(fields)
    return rendered


def _call(call: ToolCallPart, id: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or id, "type": "function", "function": function}


def _answered(result: Message, pending: list[tuple[str, str]]) -> dict[str, str]:
    """What tells which call a result belongs to: by its id, else by the name of the tool, else the
    first that waits. That call is taken out of `pending`.
    """
    named = result.tool_name or result.name
    of_id = (call for call in pending if call[0] == result.tool_call_id)
    of_name = (call for call in pending if result.tool_call_id is None and named in (None, call[1]))
    found = next(of_id, None) or next(of_name, None)
    if found is not None:
        pending.remove(found)
    id = result.tool_call_id or (found[0] if found is not None else None)
    name = named or (found[1] if found is not None else None)
    return {key: value for key, value in (("tool_call_id", id), ("name", name)) if value}
