"""A response that is being made: events of the engine in, the dialect's events out. A whole body is
the last snapshot of the same.

    created, in_progress             with the first piece, or when a stream was silent too long
    output_item.added ... .done      one item after another
    completed | incomplete | failed  the end
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from deployments.dialects.responses.head import ResponseHead, failure, usage
from deployments.dialects.responses.items import Event as OutEvent
from deployments.dialects.responses.items import OutputItem, ReasoningItem, TextItem, call_item
from deployments.dialects.responses.tools import Toolbox
from deployments.generation.logprobs import CoveredLogprobs, Placed, token_logprobs
from deployments.http.dialect import SSE
from erllama.chat.reasoning_counter import PieceOf, ReasoningCounter
from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    ReasoningDelta,
    ReplyPart,
    ReplySplitter,
    TextDelta,
)
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Completion, Done, Event, FinishReason, RequestStats, TokenLogprob, Tokens


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How the text of a reply becomes items. `splitter` makes what cuts it; `piece_of` gives the
    bytes of its tokens. `summary`: reasoning is shown as a summary; `sealed`: it comes sealed, too.
    """

    splitter: Callable[[], ReplySplitter | None]
    piece_of: PieceOf
    tools: Toolbox = field(default_factory=Toolbox)
    summary: bool = False
    sealed: bool = False


Told = Iterator[tuple[ReplyPart, list[dict[str, Any]]]]
"""Parts of a reply, each with the log probabilities of its tokens."""


class _Cut:
    """The parts of a reply. Log probabilities are told of text alone: those of tokens that make
    marks, reasoning and calls are dropped.
    """

    def __init__(self, splitter: ReplySplitter | None) -> None:
        self._splitter = splitter
        self._covered = CoveredLogprobs()
        self._pending: list[Placed] = []
        self._n_chars = 0

    def push(self, event: Tokens) -> Iterable[tuple[ReplyPart, list[dict[str, Any]]]]:
        if event.logprobs is None:  # of no token of the reply
            return [(part, []) for part in self._parts(event.text)]
        return self._with_their_tokens(event, event.logprobs)

    def _parts(self, text: str) -> list[ReplyPart]:
        if self._splitter is None:
            return [TextDelta(text)] if text else []
        return self._splitter.push(text)

    def _with_their_tokens(self, event: Tokens, logprobs: tuple[TokenLogprob, ...]) -> Told:
        start, self._n_chars = self._n_chars, self._n_chars + len(event.text)
        placed = self._covered.push(logprobs, event.text)
        begins = [0] + [max(offset - start, 0) for offset, _ in placed[1:]]
        ends = [*begins[1:], len(event.text)]
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            yield from self._told(event.text[begin:end], placed[number : number + 1])

    def finish(self, stats: RequestStats) -> Told:
        rest = [] if self._splitter is None else self._splitter.finish()
        self._pending += self._covered.finish(stats)
        yield from self._with_logprobs(rest)

    def _told(self, text: str, placed: list[Placed]) -> Told:
        self._pending += placed
        thought = self._thinks
        yield from self._with_logprobs(self._parts(text))
        if thought or self._thinks:
            self._pending = []

    @property
    def _thinks(self) -> bool:
        return bool(self._splitter and self._splitter.thinks)

    def _with_logprobs(self, parts: list[ReplyPart]) -> Told:
        for part in parts:
            told = token_logprobs(self._pending) if isinstance(part, TextDelta) else []
            self._pending = []
            yield part, told


Keep = Callable[[str, tuple[str, ...]], None]


class ResponseWriter:
    """See `ReplyWriter`; there is one choice. `keep` is given the whole response and the ids of its
    items before its end leaves.
    """

    def __init__(self, head: ResponseHead, form: ReplyForm, keep: Keep = lambda response, ids: None) -> None:
        self._keep = keep
        self._head = head
        self._form = form
        self._cut = _Cut(form.splitter())
        self._thought = ReasoningCounter(form.splitter(), form.piece_of)
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._n_events = 0
        self._begun = False
        self._stats: RequestStats | None = None
        self._last: str | None = None  # the response, once it is complete

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        out = self.begin()
        for event in events:
            if isinstance(event, Tokens):
                self._thought.push(event.ids)
                for part, logprobs in self._cut.push(event):
                    if type(part) is TextDelta and isinstance(self._open, TextItem):  # most of a reply
                        out += self._frame(*self._open.delta(part.text, logprobs))
                    else:
                        out += self._frames(self._part(part, logprobs))
            elif isinstance(event, Done):
                out += self._frames(self._end(event.stats))
        return out

    def close(self) -> bytes:
        kind, response = self._final()
        return self._frame(f"response.{kind}", f'"response":{response}')

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        done = [item.body() for item in self._items if item is not self._open]
        response = self._head.snapshot("failed", done, error=failure(error, request_id))
        return self.begin() + self._frame("response.failed", f'"response":{response}')

    def keepalive(self) -> bytes:
        """Clients count events, not comments. It repeats the number of the event before it, so that
        those of a stream do not depend on how long it was silent.
        """
        if begun := self.begin():
            return begun
        snapshot = self._head.snapshot("in_progress")
        return self._frame("response.in_progress", f'"response":{snapshot}', self._n_events - 1)

    def body(self, reply: Completion) -> bytes:
        """The whole response to a reply that is complete. Use a fresh writer."""
        self.feed(0, [Tokens(reply.tokens, reply.text, reply.logprobs), Done(reply.stats, reply.finish_key)])
        return self._final()[1].encode()

    def _final(self) -> tuple[str, str]:
        """The last status, and the response."""
        assert self._stats is not None
        cut_off = self._stats.finish_reason is FinishReason.LENGTH
        status = "incomplete" if cut_off else "completed"
        spent = usage(self._stats, self._thought.n_tokens)
        output = [item.body() for item in self._items]
        reason = "max_output_tokens" if cut_off else None
        response = self._head.snapshot(status, output, usage=spent, incomplete=reason, seconds=_seconds(self._stats))
        self._last = response
        self._keep(response, tuple(item.id for item in self._items))
        return status, response

    def so_far(self, status: str) -> str:
        """The response as it stands: complete if it is, else what there is of it with that status."""
        return self._last or self._head.snapshot(status, [item.body() for item in self._items])

    def ended_as(self, status: str, error: ErllamaError | None = None, request_id: str = "") -> str:
        """A response that was cancelled or has failed. It is kept, unless the fault was a server's
        that went away: another one may go on with it.
        """
        if self._last is not None:
            return self._last
        told = None if error is None else failure(error, request_id)
        response = self._head.snapshot(status, [item.body() for item in self._items], error=told)
        if not isinstance(error, EngineStopped):
            self._keep(response, tuple(item.id for item in self._items))
        return response

    def begin(self) -> bytes:
        """The events before the first of the reply, once."""
        if self._begun:
            return b""
        self._begun = True
        return self._in_progress("response.created", "response.in_progress")

    def _in_progress(self, *kinds: str) -> bytes:
        snapshot = self._head.snapshot("in_progress")
        return b"".join(self._frame(kind, f'"response":{snapshot}') for kind in kinds)

    def _part(self, part: ReplyPart, logprobs: list[dict[str, Any]]) -> Iterator[OutEvent]:
        match part:
            case TextDelta(text):
                if not isinstance(self._open, TextItem):
                    yield from self._next(TextItem(*self._place))
            case ReasoningDelta(text):
                if not isinstance(self._open, ReasoningItem):
                    form = self._form
                    yield from self._next(ReasoningItem(*self._place, summary=form.summary, sealed=form.sealed))
            case CallStart(name):
                yield from self._next(call_item(*self._place, self._form.tools.client_tool(name)))
                return
            case ArgumentsDelta(text):
                pass
        assert self._open is not None
        yield from self._open.push(text, logprobs)

    @property
    def _place(self) -> tuple[int, str]:
        """Where the next item stands: its index, and the id of the response."""
        return len(self._items), self._head.id

    def _next(self, item: OutputItem) -> Iterator[OutEvent]:
        if self._open is not None:
            yield from self._open.close("completed")
        self._items.append(item)
        self._open = item
        yield from item.open()

    def _end(self, stats: RequestStats) -> Iterator[OutEvent]:
        self._stats = stats
        for part, logprobs in self._cut.finish(stats):
            yield from self._part(part, logprobs)
        if not self._items:  # a reply that says nothing is an empty message
            yield from self._next(TextItem(*self._place))
        assert self._open is not None
        yield from self._open.close("incomplete" if stats.finish_reason is FinishReason.LENGTH else "completed")
        self._open = None

    def _frames(self, events: Iterable[OutEvent]) -> bytes:
        return b"".join(self._frame(kind, members) for kind, members in events)

    def _frame(self, kind: str, members: str, number: int | None = None) -> bytes:
        """An event with the next number, or one that repeats `number`."""
        if number is None:
            number, self._n_events = self._n_events, self._n_events + 1
        return SSE.frame(f'{{"type":"{kind}","sequence_number":{number},{members}}}'.encode(), kind)


def _seconds(stats: RequestStats) -> float:
    """How long the reply took. A stream that is written again says the same."""
    return (stats.queue_ms + stats.prefill_ms + stats.generation_ms) / 1000
