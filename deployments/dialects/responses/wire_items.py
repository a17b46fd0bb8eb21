"""Items of a request's input, validated one by one: what is unknown among them is skipped, and a
known one is accepted as models and clients left it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

ROLES = ("user", "assistant", "system", "developer")


class _Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


def _role(value: Any) -> Any:
    if value not in ROLES:
        raise ValueError(f"unknown role {str(value)[:40]!r}, known are {', '.join(ROLES)}")
    return value


def _text(value: Any) -> Any:
    """JSON text, or the value itself, as some clients send it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _content(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError("must be a string or a list of content parts")
    return value


def _output(value: Any) -> Any:
    """Text, or parts, or any JSON as its text."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return value
    return _text(value)


JsonText = Annotated[str, BeforeValidator(_text)]
Content = Annotated[str | list[dict[str, Any]], BeforeValidator(_content)]


class MessageItem(_Item):
    role: Annotated[Literal["user", "assistant", "system", "developer"], BeforeValidator(_role)]
    content: Content = ""


class FunctionCallItem(_Item):
    call_id: str
    name: str
    namespace: str | None = None
    arguments: JsonText = ""


class CustomCallItem(_Item):
    call_id: str
    name: str
    namespace: str | None = None
    input: JsonText = ""


class CallOutputItem(_Item):
    call_id: str
    output: Annotated[str | list[dict[str, Any]], BeforeValidator(_output)] = ""


class TextPart(_Item):
    """A part of a reasoning item."""

    text: str = ""


class ReasoningItem(_Item):
    """It comes back with what the model thought, with the summary alone, or sealed."""

    summary: list[TextPart] | None = None
    content: list[TextPart] | None = None
    encrypted_content: str | None = None
