"""Contents as chat templates read them. Pure.

    systemInstruction       a system message in front
    text                    content; parts of the user are joined by line breaks, the model's by
                            nothing: they are pieces of one reply
    text that is a thought  reasoning_content
    functionCall            one of tool_calls
    functionResponse        a message of the role tool

Calls without ids get numbers, and results find theirs by name, the oldest first, so that the outcome
depends on nothing but what was said.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from deployments.dialects.gemini.wire import Content, FunctionResponse, GenerateBody, Part
from deployments.http.body import encode_given
from erllama.chat.template import Ending


class _Calls:
    """The calls that have had no result yet."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []
        self._n_calls = 0

    def made(self, name: str, id: str | None) -> str:
        """The id of a call."""
        self._n_calls += 1
        self._open.append((name, id or f"call_{self._n_calls}"))
        return self._open[-1][1]

    def answered(self, name: str, id: str | None) -> str:
        """The id of the call that a result belongs to."""
        found = next((call for call in self._open if (call[1] == id if id else call[0] == name)), None)
        if found is None:
            return id or f"call_{self._n_calls}"
        self._open.remove(found)
        return found[1]


def template_messages(body: GenerateBody) -> list[dict[str, Any]]:
    """The conversation. Raises `InvalidParameter` for numbers that JSON lacks."""
    calls = _Calls()
    system = body.system_instruction
    out = [{"role": "system", "content": _joined(system.parts)}] if system is not None and system.parts else []
    for content in body.contents:
        if content.role == "model":
            out.append(_model(content.parts, calls))
        else:
            out.extend(_said(content, calls))
    return out


def prompt_ending(body: GenerateBody) -> Ending:
    """A reply goes on inside of a last text that is the model's."""
    last = body.contents[-1]
    calls = any(part.function_call is not None for part in last.parts)
    return "continued" if last.role == "model" and last.parts and not calls else "opened"


def _joined(parts: list[Part], joint: str = "\n") -> str:
    return joint.join(part.text for part in parts if part.text is not None and not part.thought)


def _said(content: Content, calls: _Calls) -> Iterator[dict[str, Any]]:
    role = "system" if content.role == "system" else "user"
    if not content.parts:
        yield {"role": role, "content": ""}
    for results, run in groupby(content.parts, lambda part: part.function_response is not None):
        if results:
            yield from (_result(part.function_response, calls) for part in run if part.function_response is not None)
        else:
            yield {"role": role, "content": _joined(list(run))}


def _result(result: FunctionResponse, calls: _Calls) -> dict[str, Any]:
    id = calls.answered(result.name, result.id)
    return {"role": "tool", "content": _result_text(result.response or {}), "tool_call_id": id, "name": result.name}


def _result_text(response: dict[str, Any]) -> str:
    """Under `output` is what a function gave, under `error` why it gave nothing; else it is all of it."""
    if response.keys() == {"output"}:
        return _text(response["output"])
    if response.keys() == {"error"}:
        return f"Error: {_text(response['error'])}"
    return encode_given(response)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode_given(value)


def _model(parts: list[Part], calls: _Calls) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _joined(parts, "")}
    thought = "".join(part.text or "" for part in parts if part.thought)
    made = [
        {
            "id": calls.made(part.function_call.name, part.function_call.id),
            "type": "function",
            "function": {"name": part.function_call.name, "arguments": part.function_call.args or {}},
        }
        for part in parts
        if part.function_call is not None
    ]
    return message | ({"reasoning_content": thought} if thought else {}) | ({"tool_calls": made} if made else {})
