"""One form for messages that say the same. Pure.

Clients send a message in one form now and in another with the next turn, and calls get random ids
that differ from run to run. What a template reads here depends on nothing but what was said:

    keys            in one order
    empty fields    left out, but for role and content
    ids of calls    `call_0`, `call_1`, ... in the order of the conversation; a result names the last
                    call that had its id. `functions.NAME:NUMBER` says its place itself and stays
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_FIRST = ("role", "content")
_PLACED = re.compile(r"functions\.[\w.-]{1,128}:\d{1,6}")


def canonical_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """`messages`, which are not modified, in that form."""
    ids = _CallIds()
    return [_canonical(message, ids) for message in messages]


def _canonical(message: Mapping[str, Any], ids: _CallIds) -> Message:
    rest = {key: message[key] for key in sorted(message.keys() - set(_FIRST)) if not _empty(message[key])}
    fields = {key: message[key] for key in _FIRST if key in message} | rest
    if "tool_calls" in fields:
        fields["tool_calls"] = [_call(call, ids) for call in fields["tool_calls"]]
    if isinstance(fields.get("tool_call_id"), str):
        fields["tool_call_id"] = ids.of_result(fields["tool_call_id"])
    return fields


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def _call(call: Any, ids: _CallIds) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("id"), str):
        return call
    return {"id": ids.of_call(call["id"])} | {key: value for key, value in call.items() if key != "id"}


class _CallIds:
    """The names of a conversation's calls, by the ids that the client has for them."""

    def __init__(self) -> None:
        self._n = 0
        self._names: dict[str, str] = {}

    def of_call(self, id: str) -> str:
        """The name of one more call."""
        self._names[id] = id if _PLACED.fullmatch(id) else f"call_{self._n}"
        self._n += 1
        return self._names[id]

    def of_result(self, id: str) -> str:
        """The name of the call that a result answers; one that was never made gets one, too."""
        return self._names.get(id) or self.of_call(id)
