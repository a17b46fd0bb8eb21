"""The `<tool_call>` form of tool calls: Hermes, Qwen 2.5 and 3, and the demo model write it.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

A block counts as a call when its body is one JSON object with a string `name` and, if present, an
object under `arguments` (or `parameters`). Anything else stays text, unchanged: a reply is never
lost because it resembles a call. A block that is complete but for its closing tag counts too, since
`</tool_call>` may have been the stop string. A closing tag inside a JSON string does not close the
block.

White space before a block, and white space after one that no text follows, is layout and dropped.
All other text is preserved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from erllama.chat.tool_formats.base import Call, ReplyPart, TextDelta, ToolCall, split_reply

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
# opening tags that begin no call; after so many the rest is text: each is searched to the end of
# the reply
MAX_FAILED_BLOCKS = 256
# an escaped character, a quote that begins or ends a string, or the closing tag
_TOKEN = re.compile(rf'\\.|"|{CLOSE}', re.DOTALL)
_SPACE = re.compile(r"\s*")
_FIELDS = ({"name"}, {"name", "arguments"}, {"name", "parameters"})


class HermesSplitter:
    """See `ReplySplitter`. Text that may begin a block is held back, so is an open block."""

    __slots__ = ("_after_call", "_buffer", "_failed", "_in_string", "_searched")

    def __init__(self) -> None:
        self._buffer = ""
        self._searched = 0  # inside a block: its closing tag does not begin before this position,
        self._in_string = False  # which lies inside a JSON string
        self._failed = 0
        self._after_call = False

    def push(self, text: str) -> list[ReplyPart]:
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> list[ReplyPart]:
        """An open block is a call if its JSON is complete, else text."""
        out = self._drain(final=True)
        if self._buffer and not (self._after_call and self._buffer.isspace()):
            out.append(TextDelta(self._buffer))
        self._buffer = ""
        return out

    def _drain(self, *, final: bool) -> list[ReplyPart]:
        out: list[ReplyPart] = []
        while self._failed < MAX_FAILED_BLOCKS and (start := self._buffer.find(OPEN)) >= 0:
            self._emit_text(out, len(self._buffer[:start].rstrip()))
            start = self._buffer.find(OPEN)  # what is left before it is white space
            end = self._block_end(start + len(OPEN))
            if end is None and not final:
                return out
            body = self._buffer[start + len(OPEN) : end]
            call = _parse_call(body)
            if call is None:
                self._failed += 1
                # only the tag is known to be text: a real block may follow inside
                self._emit_text(out, start + len(OPEN))
            else:
                out.append(call)
                self._after_call = True
                self._buffer = self._buffer[end + len(CLOSE) :] if end is not None else ""
            self._searched = 0
        self._emit_text(out, len(self._buffer[: len(self._buffer) - _open_prefix(self._buffer)].rstrip()))
        return out

    def _emit_text(self, out: list[ReplyPart], n_chars: int) -> None:
        if n_chars:
            out.append(TextDelta(self._buffer[:n_chars]))
            self._buffer = self._buffer[n_chars:]
            self._searched = 0
            self._after_call = False

    def _block_end(self, body: int) -> int | None:
        """Where the closing tag of the block begins; None if it has not come yet. Goes on where the
        last search ended.
        """
        if self._searched <= body:
            self._searched, self._in_string = body, False
        settled = len(self._buffer) - len(CLOSE)  # what ends later may still become another token
        in_string = self._in_string
        for match in _TOKEN.finditer(self._buffer, self._searched):
            if match.group() == CLOSE and not in_string:
                return match.start()
            in_string ^= match.group() == '"'
            if match.end() <= settled:
                self._searched, self._in_string = match.end(), in_string
        return None


def _open_prefix(text: str) -> int:
    """How many characters at the end of `text` may begin the opening tag."""
    return next((n for n in range(min(len(OPEN) - 1, len(text)), 0, -1) if text.endswith(OPEN[:n])), 0)


def _parse_call(body: str) -> ToolCall | None:
    call = _load_object(body)
    if call is None:
        return None
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):  # some models quote the object once more
        arguments = _load_object(arguments)
    elif arguments is None:
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def _load_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # NaN and 1e999 pass json.loads and are no JSON on the wire
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- what a transcript may be compared by ---------------------------------------------------------


def _strict_calls(text: str, content: str) -> list[Call] | None:
    """The calls of a reply that is `content`, then calls, and nothing else but white space; None
    for any other.
    """
    if not text.startswith(content):
        return None
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    calls: list[Call] = []
    position = _skip_space(text, len(content))
    try:
        while position < len(text):
            if not text.startswith(OPEN, position):
                return None
            body, position = decoder.raw_decode(text, _skip_space(text, position + len(OPEN)))
            position = _skip_space(text, position)
            if text.startswith(CLOSE, position):
                position = _skip_space(text, position + len(CLOSE))
            calls.append(_strict_call(body, decoder))
    except (ValueError, RecursionError):
        return None
    return calls


def _strict_call(body: Any, decoder: json.JSONDecoder) -> Call:
    if not isinstance(body, dict) or body.keys() not in _FIELDS:
        raise ValueError("fields that a signature hides")
    arguments = body.get("arguments", body.get("parameters"))
    if isinstance(arguments, str):
        arguments = decoder.decode(arguments)
    return body["name"], {} if arguments is None else arguments


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a repeated key")
    return found


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


class Hermes:
    """See `ToolFormat`."""

    name = "hermes"
    opening = f"{OPEN}\n"
    closing = f"\n{CLOSE}"
    separator = "\n"

    def call_schema(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        properties = {"name": {"const": name}, "arguments": arguments}
        return {
            "type": "object",
            "properties": properties,
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return self.separator.join(
            f'{self.opening}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments_json}}}{self.closing}'
            for call in calls
        )

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """As Qwen 2.5's template tells it."""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>"
            "\n\nFor each function call, return a json object with function name and arguments within "
            f'{OPEN}{CLOSE} XML tags:\n{self.opening}{{"name": <function-name>, "arguments": <args-json-object>}}'
            f"{self.closing}"
        )

    def splitter(self) -> HermesSplitter:
        return HermesSplitter()

    def strict_calls(self, text: str) -> tuple[str, list[Call]] | None:
        reply = split_reply(self, text)
        calls = _strict_calls(text, reply.content) if reply.calls else []
        return None if calls is None or len(calls) != len(reply.calls) else (reply.content, calls)


HERMES = Hermes()
