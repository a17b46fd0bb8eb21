"""Messages of a conversation in the one shape that everything else here expects. Pure.

What clients send differs: content is text, null or a list of parts, arguments are JSON text or an
object. History is accepted as it is: a model, or a client that was cut off, may have left arguments
that are no JSON, and a later turn must not fail for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from erllama.errors import InvalidParameter


class RawArguments(str):
    """Arguments of a call that are no JSON object: rendered as they stand, never quoted."""

    __slots__ = ()


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of `messages` in which `content` is a string (None and absent: ""; text parts joined
    by newlines, as llama-server does) and the `arguments` of calls are objects, or `RawArguments`.

    All other keys pass through: tool_call_id, name, reasoning_content. Raises `InvalidParameter`
    that names the place, e.g. `messages[2].content[0].type`.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidParameter(f"messages must be a list, got {type(messages).__name__}", param="messages")
    if not messages:
        raise InvalidParameter("messages is empty", param="messages")
    return [_normalise_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalise_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(where, "an object", message)
    if not isinstance(message.get("role"), str):
        raise _wrong(f"{where}.role", "a string", message.get("role"))
    normal = dict(message)
    normal["content"] = _normalise_content(message.get("content"), f"{where}.content")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple | None):
        raise _wrong(f"{where}.tool_calls", "a list", calls)
    if not calls:
        normal.pop("tool_calls", None)  # templates ask `if message.tool_calls`, some `is defined`
        return normal
    normal["tool_calls"] = [_normalise_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return normal


def _normalise_content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _wrong(where, "a string or a list of parts", content)
    texts: list[str] = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong(f"{where}[{i}]", "an object", part)
        if part.get("type") != "text":
            raise InvalidParameter(f'{where}[{i}].type must be "text", got {part.get("type")!r}', param="messages")
        if not isinstance(part.get("text"), str):
            raise _wrong(f"{where}[{i}].text", "a string", part.get("text"))
        texts.append(part["text"])
    return "\n".join(texts)


def _normalise_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise _wrong(f"{where}.function", "an object", function)
    if not isinstance(function.get("name"), str):
        raise _wrong(f"{where}.function.name", "a string", function.get("name"))
    arguments = _normalise_arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**call, "type": call.get("type") or "function", "function": {**function, "arguments": arguments}}


def _normalise_arguments(arguments: Any, where: str) -> dict[str, Any] | RawArguments:
    """OpenAI sends the arguments as JSON text."""
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = None
        return parsed if isinstance(parsed, dict) else RawArguments(arguments)
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise _wrong(where, "a JSON object", arguments)
    return dict(arguments)


def _wrong(where: str, expected: str, got: Any) -> InvalidParameter:
    return InvalidParameter(f"{where} must be {expected}, got {type(got).__name__}", param="messages")
