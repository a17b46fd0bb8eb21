"""From the items of an input to the messages of a chat, as templates read them. Pure.

One turn of the assistant comes as several items, in the order in which it was made: reasoning, then
text, then calls. They become one message again, so that its tokens are those that were sampled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from deployments.dialects.responses.compaction import told_summary
from deployments.dialects.responses.sealed import unseal
from deployments.dialects.responses.shell_items import CALLS, OUTPUTS, call_id, called, output_text
from deployments.dialects.responses.tools import qualified
from deployments.dialects.responses.wire_items import (
    CallOutputItem,
    CustomCallItem,
    FunctionCallItem,
    MessageItem,
    ReasoningItem,
)
from deployments.http.body import parse_value
from erllama.errors import InvalidParameter

logger = logging.getLogger("deployments.http")

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def chat_messages(
    given: str | list[Any] | None,
    instructions: str | None,
    before: Iterable[dict[str, Any]] = (),
    referred: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """The whole conversation: `before` are the items of earlier responses, `referred` those that
    references may mean, by id. Raises `InvalidParameter`.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    told = _Conversation(referred)
    told.add(before, "previous_response_id")
    told.add([{"role": "user", "content": given}] if isinstance(given, str) else given or (), "input")
    messages += told.messages
    if not messages:
        raise InvalidParameter("Missing required parameter: 'input'.", param="input")
    return messages


class _Conversation:
    """Messages that are being put together from items."""

    def __init__(self, referred: Mapping[str, dict[str, Any]]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # the assistant's message that is not complete yet
        self._referred = referred

    def add(self, items: Iterable[Any], path: str) -> None:
        for number, item in enumerate(items):
            self._add(item, f"{path}[{number}]")

    def _add(self, item: Any, path: str) -> None:
        if not isinstance(item, dict):
            raise InvalidParameter(f"{path} must be an object", param=path)
        match item.get("type", "message" if "role" in item else None):
            case "message":
                self._message(parse_value(MessageItem, item, path), path)
            case "function_call":
                call = parse_value(FunctionCallItem, item, path)
                self._call(call.call_id, qualified(call.namespace, call.name), call.arguments)
            case "custom_tool_call":
                custom = parse_value(CustomCallItem, item, path)
                arguments = json.dumps({"input": custom.input}, ensure_ascii=False)
                self._call(custom.call_id, qualified(custom.namespace, custom.name), arguments)
            case "function_call_output" | "custom_tool_call_output":
                output = parse_value(CallOutputItem, item, path)
                text = _joined(output.output, f"{path}.output")
                self._say({"role": "tool", "tool_call_id": output.call_id, "content": text})
            case kind if kind in CALLS:
                self._call(call_id(item), *called(item))
            case kind if kind in OUTPUTS:
                self._say({"role": "tool", "tool_call_id": call_id(item), "content": output_text(item)})
            case "compaction" | "compaction_summary" if summary := told_summary(item):
                self._say({"role": "user", "content": summary})
            case "reasoning":
                self._reasoning(parse_value(ReasoningItem, item, path))
            case "item_reference":
                self._add(self._meant(item.get("id"), f"{path}.id"), path)
            case kind:
                logger.info("event=skipped_item type=%.40r place=%s", kind, path)

    def _meant(self, id: Any, path: str) -> dict[str, Any]:
        found = self._referred.get(str(id))
        if found is None:
            raise InvalidParameter(
                f"Item with id '{str(id)[:80]}' is not kept here (any more), so send the item itself.", param=path
            )
        return found

    def _say(self, message: dict[str, Any]) -> None:
        self._turn = None
        self.messages.append(message)

    def _message(self, message: MessageItem, path: str) -> None:
        text = _joined(message.content, f"{path}.content")
        if message.role != "assistant":
            # "developer" is OpenAI's newer name of the system role; hardly any template knows it
            self._say({"role": "system" if message.role == "developer" else message.role, "content": text})
            return
        self._open_turn("content", "tool_calls")["content"] = text

    def _reasoning(self, item: ReasoningItem) -> None:
        shown = item.content or item.summary or ()
        text = "\n\n".join(part.text for part in shown if part.text) or unseal(item.encrypted_content or "")
        if text:
            self._open_turn("reasoning_content", "content", "tool_calls")["reasoning_content"] = text

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._open_turn().setdefault("tool_calls", []).append(call)

    def _open_turn(self, *without: str) -> dict[str, Any]:
        """The assistant's message that goes on, or a new one if it has any of `without` already."""
        if self._turn is None or any(self._turn.get(name) for name in without):
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn


def _joined(content: str | list[dict[str, Any]], path: str) -> str:
    """Texts joined by line breaks, as the other dialect of OpenAI does. What a model that reads text
    cannot be shown is named in its place: a client keeps it in its history for ever.
    """
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{path}[{number}]") for number, part in enumerate(content))


def _part(part: Mapping[str, Any], path: str) -> str:
    kind = part.get("type")
    field = _TEXTS.get(str(kind))
    if field is None:
        logger.info("event=skipped_part type=%.40r place=%s", kind, path)
        return f"[{str(kind)[:40]}: not shown, this model reads text only]"
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidParameter(f"Invalid value for '{path}.{field}': must be a string.", param=f"{path}.{field}")
    return text
