"""Tool calls in the text of a reply: the `<tool_call>` form of Qwen, Hermes and the demo model.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

A block counts as a call when its body is one JSON object with a string `name` and, if present, an object under `arguments` (or
`parameters`). Anything else stays text, unchanged: a reply is never lost because it resembles a call. A block that is complete but for its
closing tag counts too, since `</tool_call>` may have been the stop string. A closing tag inside a JSON string does not close the block.

White space before a block, and white space after one that no text follows, is layout and dropped. All other text is preserved.

Pure; a `ToolCallStream` belongs to one reply and one thread.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
MAX_FAILED_BLOCKS = 256  # opening tags that begin no call; after so many the rest is text: each is searched to the end of the reply
_TOKEN = re.compile(rf'\\.|"|{CLOSE}', re.DOTALL)  # an escaped character, a quote that begins or ends a string, or the closing tag


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments_json` is the JSON text of an object, ready for a wire format; its keys keep the order of the model."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply that belongs to no tool call. Never empty."""

    text: str


class ToolCallStream:
    """Splits a streamed reply into text and calls. The result depends on the text only, not on how it was cut into pushes."""

    __slots__ = ("_after_call", "_buffer", "_failed", "_in_string", "_searched")

    def __init__(self) -> None:
        self._buffer = ""
        self._searched = 0  # inside a block: its closing tag does not begin before this position,
        self._in_string = False  # which lies inside a JSON string
        self._failed = 0
        self._after_call = False

    def push(self, text: str) -> list[TextDelta | ToolCall]:
        """What became certain with `text`, in the order of the reply. Text that may begin a block is held back, so is an open block."""
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> list[TextDelta | ToolCall]:
        """The rest, at the end of the reply. An open block is a call if its JSON is complete, else text."""
        out = self._drain(final=True)
        if self._buffer and not (self._after_call and self._buffer.isspace()):
            out.append(TextDelta(self._buffer))
        self._buffer = ""
        return out

    def _drain(self, *, final: bool) -> list[TextDelta | ToolCall]:
        out: list[TextDelta | ToolCall] = []
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
                self._emit_text(out, start + len(OPEN))  # only the tag is known to be text: a real block may follow inside
            else:
                out.append(call)
                self._after_call = True
                self._buffer = self._buffer[end + len(CLOSE) :] if end is not None else ""
            self._searched = 0
        self._emit_text(out, len(self._buffer[: len(self._buffer) - _open_prefix(self._buffer)].rstrip()))
        return out

    def _emit_text(self, out: list[TextDelta | ToolCall], n_chars: int) -> None:
        if n_chars:
            out.append(TextDelta(self._buffer[:n_chars]))
            self._buffer = self._buffer[n_chars:]
            self._searched = 0
            self._after_call = False

    def _block_end(self, body: int) -> int | None:
        """Where the closing tag of the block begins; None if it has not come yet. Goes on where the last search ended."""
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


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text around the calls of a whole reply, and the calls. Same answer as a `ToolCallStream` over any split of `text`."""
    stream = ToolCallStream()
    parts = stream.push(text) + stream.finish()
    content = "".join(part.text for part in parts if isinstance(part, TextDelta))
    return content, [part for part in parts if isinstance(part, ToolCall)]


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
