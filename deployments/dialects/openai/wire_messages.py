"""Messages of a chat request, validated. History is accepted as models and clients left it:
arguments that are no JSON, results that name no call, messages that say nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class OpenPart(BaseModel):
    """Extra fields are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _content(value: Any) -> Any:
    """Text, or text parts joined by line breaks (what llama.cpp and vLLM give to templates)."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content parts")
    return "\n".join(_part_text(part, number) for number, part in enumerate(value))


def _part_text(part: Any, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal"):
        raise ValueError(f"only content parts of type text are supported, part {number} has {str(kind)[:40]!r}")
    text = part.get(kind)
    if not isinstance(text, str):
        raise ValueError(f"part {number}, of type {kind}, must carry it as a string")
    return text


def _arguments(value: Any) -> Any:
    """JSON text, as OpenAI has it, or the object itself, as Ollama's clients send it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "" if value is None else value


def _role(value: Any) -> Any:
    if value not in ROLES:
        raise ValueError(f"unknown role {str(value)[:40]!r}, known are {', '.join(ROLES)}")
    return value


class CalledFunction(OpenPart):
    name: str
    arguments: Annotated[str, BeforeValidator(_arguments)]


class ToolCallPart(OpenPart):  # streamed calls come back with their `index`
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(OpenPart):
    """Clients send replies back whole, with `refusal`, `annotations` and `audio`."""

    role: Annotated[str, BeforeValidator(_role)]
    content: Annotated[str | None, BeforeValidator(_content)] = None
    name: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None


class Prediction(OpenPart):
    """What the reply may be. Where it is, the reply comes faster; it never changes it."""

    type: Literal["content"] = "content"
    content: Annotated[str, BeforeValidator(_content)]
