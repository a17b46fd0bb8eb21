"""The stream of a reply: pieces of candidates, each a whole JSON object as an event of its own. A
candidate's last piece has its reason to stop and what the reply has cost so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deployments.dialects.gemini.reply import PartWriter, ReplyHead, UsageMeter, candidate, error_body, finish_reason
from deployments.generation.chat import ReadyChat
from deployments.generation.logprobs import CoveredLogprobs, Placed
from deployments.http.dialect import SSE, Framing
from erllama.chat.tool_formats.base import ReplyPart, TextDelta
from erllama.errors import ErllamaError
from erllama.events import Done, Event, Tokens

FRAMING = Framing(SSE.media_type, SSE.frame, b"\n")
"""Google's client of JavaScript, which Gemini CLI has, reads nothing behind an event that begins with anything
but blank space and `data: `: no ids, and no comments that keep a stream alive.
"""


class _Candidate:
    """One candidate of a stream."""

    def __init__(self, head: ReplyHead, ready: ReadyChat) -> None:
        self.thought = ready.counter()
        self.logprobs = CoveredLogprobs()
        self._splitter = ready.splitter()
        self._writer = PartWriter(head.ids, shows_thoughts=head.shows_thoughts)

    def push(self, event: Tokens) -> list[dict[str, Any]]:
        self.thought.push(event.ids)
        parts: list[ReplyPart] = [TextDelta(event.text)] if event.text else []
        return self._writer.push(parts if self._splitter is None else self._splitter.push(event.text))

    def finish(self) -> list[dict[str, Any]]:
        rest = [] if self._splitter is None else self._splitter.finish()
        return self._writer.push(rest) + self._writer.finish()


class ContentWriter:
    """Writes the stream of `n` candidates of a reply to `ready`."""

    def __init__(self, head: ReplyHead, ready: ReadyChat, n: int) -> None:
        self._head = head
        self._meter = UsageMeter()
        self._candidates = [_Candidate(head, ready) for _ in range(n)]

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        one, out = self._candidates[index], b""
        for event in events:
            if isinstance(event, Tokens):
                parts = one.push(event)
                logprobs = one.logprobs.push(event.logprobs, event.text) if event.logprobs is not None else []
                if parts or logprobs:
                    out += self._piece(index, parts, logprobs=logprobs)
            elif isinstance(event, Done):
                self._meter.add(index, event.stats, one.thought.n_tokens)
                logprobs = one.logprobs.finish(event.stats)
                out += self._piece(index, one.finish(), finish_reason(event.stats), self._meter.usage(), logprobs)
        return out

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        return FRAMING.frame(error_body(error), "")

    def keepalive(self) -> bytes:
        return FRAMING.keepalive

    def _piece(
        self,
        index: int,
        parts: list[dict[str, Any]],
        reason: str | None = None,
        usage: dict[str, Any] | None = None,
        logprobs: list[Placed] | None = None,
    ) -> bytes:
        return FRAMING.frame(self._head.body([candidate(index, parts, reason, logprobs or ())], usage), "")
