"""The stream of a reply: events in Anthropic's order.

    message_start
    for each block  content_block_start, content_block_delta ..., content_block_stop
    message_delta   why it ended, and what it cost
    message_stop

Blocks follow each other, one is closed before the next one opens. How much of the prompt was cached
is known only at the end, so `message_start` counts all of it as input, and `message_delta` repeats
the counts as they were: they are cumulative, and clients take the later ones. Waiting would hold
the first token back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deployments.dialects.anthropic.reply import (
    SIGNATURE,
    ReplyHead,
    begins_block,
    error_body,
    final_usage,
    marked_tokens,
    opened_block,
    stop_fields,
    usage,
)
from deployments.generation.chat import ReadyChat
from deployments.http.body import encode
from deployments.http.dialect import SSE, Framing
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReasoningDelta, ReplyPart, TextDelta
from erllama.errors import ErllamaError
from erllama.events import Done, Event, Tokens

PING = SSE.frame(b'{"type":"ping"}', "ping")
FRAMING = Framing(SSE.media_type, SSE.frame, PING, has_ids=True)


def _frame(event: dict[str, Any]) -> bytes:
    """Every event has a line with its type: clients drop those without."""
    return SSE.frame(encode(event).encode(), event["type"])


class MessageWriter:
    """Writes the stream of one reply to `ready`."""

    def __init__(self, head: ReplyHead, ready: ReadyChat) -> None:
        self._head = head
        self._splitter = ready.splitter()
        self._thought = ready.counter()
        self._marked = marked_tokens(ready)
        self._begun = False
        self._called = False
        self._index = -1  # of the block that was opened last
        self._kind: str | None = None  # of the block that is open

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        events = list(events)
        out = b"" if self._begun else self._start(events)
        for event in events:
            if isinstance(event, Tokens):
                self._thought.push(event.ids)
                parts: list[ReplyPart] = [TextDelta(event.text)] if event.text else []
                out += self._parts(parts if self._splitter is None else self._splitter.push(event.text))
            elif isinstance(event, Done):
                out += self._parts([] if self._splitter is None else self._splitter.finish()) + self._closed()
                delta = stop_fields(event.stats, self._head.max_tokens, called=self._called)
                counts = final_usage(event.stats, self._thought.n_tokens, self._marked)
                out += _frame({"type": "message_delta", "delta": delta, "usage": counts} | self._head.edits)
        return out

    def close(self) -> bytes:
        return _frame({"type": "message_stop"})

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        """Clients send a request again for an `overloaded_error` alone: that is what the loss of a
        replica is called.
        """
        return SSE.frame(error_body(error, request_id), "error")

    def keepalive(self) -> bytes:
        return PING

    def _start(self, events: list[Event]) -> bytes:
        self._begun = True
        # of the first event alone: how many come together with it depends on who reads
        n_tokens = sum(len(event.ids) for event in events[:1] if isinstance(event, Tokens))
        counts = {"usage": usage(self._head.prompt_tokens, 0, n_tokens)}
        return _frame({"type": "message_start", "message": self._head.message() | counts})

    def _parts(self, parts: Iterable[ReplyPart]) -> bytes:
        return b"".join(map(self._part, parts))

    def _part(self, part: ReplyPart) -> bytes:
        out = b""
        if begins_block(part, self._kind):
            out = self._closed() + self._opened(part)
        match part:
            case TextDelta(text):
                return out + self._delta(f'"text_delta","text":{encode(text)}')
            case ReasoningDelta(text):
                return out + self._delta(f'"thinking_delta","thinking":{encode(text)}')
            case ArgumentsDelta(text):
                return out + self._delta(f'"input_json_delta","partial_json":{encode(text)}')
            case CallStart():
                self._called = True
                return out

    def _opened(self, part: ReplyPart) -> bytes:
        block = opened_block(part, self._head.ids)
        self._index += 1
        self._kind = block["type"]
        return _frame({"type": "content_block_start", "index": self._index, "content_block": block})

    def _closed(self) -> bytes:
        if self._kind is None:
            return b""
        signed = self._delta(f'"signature_delta","signature":{encode(SIGNATURE)}') if self._kind == "thinking" else b""
        self._kind = None
        return signed + _frame({"type": "content_block_stop", "index": self._index})

    def _delta(self, rest: str) -> bytes:
        """The one event of which there are many: joined as text."""
        data = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":{rest}}}}}'
        return SSE.frame(data.encode(), "content_block_delta")
