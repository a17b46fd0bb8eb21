"""Replies of `/v1/chat/completions`: streamed chunks and whole bodies, tool calls split out of the
text when tools were offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.dialects.openai.extras import NO_EXTRAS, ChunkEnd, Extras
from deployments.dialects.openai.logprobs import chat_logprobs
from deployments.dialects.openai.reply import ReplyHead, StreamWriter, finish_reason, whole_body
from deployments.generation.identity import ReplyIds
from deployments.generation.logprobs import CoveredLogprobs, Placed, covered
from deployments.http.body import encode
from erllama.chat.reasoning_counter import PieceOf, ReasoningCounter
from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    ReasoningDelta,
    ReplyPart,
    ReplySplitter,
    TextDelta,
    ToolCall,
    collect_parts,
)
from erllama.events import Completion, Done, Event, Progress, Tokens


def _call(call: ToolCall, ids: ReplyIds) -> dict[str, Any]:
    return {
        "id": f"call_{ids.new(24)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_json},
    }


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How the text of a reply becomes a message. `splitter` makes what cuts one choice's text into
    reasoning, text and calls; a None of it leaves the text as it is. `piece_of` gives the bytes of
    its tokens. `functions`: the request spoke of `functions`, the older name of tools, so a call
    comes as `function_call`. That holds one: what else the model calls is left out. `ids` are those
    of the calls.
    """

    splitter: Callable[[], ReplySplitter | None]
    piece_of: PieceOf
    functions: bool = False
    ids: ReplyIds = field(default_factory=ReplyIds)

    def counter(self) -> ReasoningCounter:
        """What counts the reasoning of one choice."""
        return ReasoningCounter(self.splitter(), self.piece_of)

    def ended(self, n_calls: int, reason: str) -> str:
        """The finish reason. A reply that was cut off says so, calls or none."""
        called = "function_call" if self.functions else "tool_calls"
        return called if n_calls and reason == "stop" else reason


@dataclass(slots=True)
class _Choice:
    """What the stream of one choice remembers."""

    prefix: str
    splitter: ReplySplitter | None
    thought: ReasoningCounter
    end: ChunkEnd
    logprobs: CoveredLogprobs = field(default_factory=CoveredLogprobs)
    n_calls: int = 0
    begun: bool = False


class ChatWriter(StreamWriter):
    """The stream of a chat reply. Per token it encodes the text and joins it with strings made
    once.

    Calls stream: a chunk with id and name, then chunks with pieces of the arguments.
    """

    kind = "chat.completion.chunk"
    counts_reasoning = True

    def __init__(
        self, head: ReplyHead, n: int, *, include_usage: bool, form: ReplyForm, extras: Extras = NO_EXTRAS
    ) -> None:
        super().__init__(head, n, include_usage=include_usage)
        self._form = form
        self._choices = [
            _Choice(f'{self._prefix}{{"index":{index},"delta":{{', form.splitter(), form.counter(), ChunkEnd(extras))
            for index in range(n)
        ]

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        choice = self._choices[index]
        prefix = choice.prefix
        out = ""
        if not choice.begun:
            choice.begun = True
            out = f'{prefix}"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'
        end = choice.end
        for event in events:
            if end.timed:
                end.push(event)
            if isinstance(event, Tokens):
                choice.thought.push(event.ids)
                if choice.splitter is not None or event.logprobs is not None:
                    out += self._rich(choice, event)
                elif event.text:
                    out += f'{prefix}"content":{encode(event.text)}}},"finish_reason":null{end.text}'
            elif isinstance(event, Progress):
                if told := end.progress(event):
                    out += f'{prefix}}},"finish_reason":null{told}'
            elif isinstance(event, Done):
                follows = self._ended(index, event.stats, len(self._choices), choice.thought.n_tokens)
                rest = [] if choice.splitter is None else choice.splitter.finish()
                out += self._parts(choice, rest, choice.logprobs.finish(event.stats))
                reason = self._form.ended(choice.n_calls, finish_reason(event.stats))
                out += f'{prefix}}},"finish_reason":"{reason}"{end.last(event.stats, usage_follows=follows)}'
        return out.encode()

    def _rich(self, choice: _Choice, event: Tokens) -> str:
        """The slow path. Logprobs go with the first chunk of their tokens, or alone when their text
        is held back.
        """
        parts: list[ReplyPart] = [TextDelta(event.text)] if event.text else []
        if choice.splitter is not None:
            parts = choice.splitter.push(event.text)
        placed = [] if event.logprobs is None else choice.logprobs.push(event.logprobs, event.text)
        return self._parts(choice, parts, placed)

    def _parts(self, choice: _Choice, parts: Iterable[ReplyPart], placed: list[Placed]) -> str:
        deltas = [delta for part in parts if (delta := self._delta(choice, part))]
        out, logprobs = "", ""
        if placed:
            logprobs = f'"logprobs":{encode(chat_logprobs(placed))},'
            deltas = deltas or ['"content":""']
        for delta in deltas:
            out += f'{choice.prefix}{delta}}},{logprobs}"finish_reason":null{choice.end.text}'
            logprobs = ""
        return out

    def _delta(self, choice: _Choice, part: ReplyPart) -> str:
        """The members of a chunk's `delta`, "" for none."""
        match part:
            case TextDelta(text):
                return f'"content":{encode(text)}'
            case ReasoningDelta(text):
                return f'"reasoning_content":{encode(text)}'
            case CallStart(name):
                choice.n_calls += 1
                call = _call(ToolCall(name, ""), self._form.ids)
            case ArgumentsDelta(text):
                call = {"function": {"arguments": text}}
        if self._form.functions:
            return f'"function_call":{encode(call["function"])}' if choice.n_calls == 1 else ""
        return f'"tool_calls":[{encode({"index": choice.n_calls - 1} | call)}]'


def chat_body(head: ReplyHead, replies: Sequence[Completion], *, form: ReplyForm, logprobs: bool) -> bytes:
    """A chat reply that is not streamed."""
    choices = [_whole_choice(index, reply, form, logprobs) for index, reply in enumerate(replies)]
    thoughts = [form.counter() for _ in replies]
    for thought, reply in zip(thoughts, replies, strict=True):
        thought.push(reply.tokens)
    return whole_body(
        head, "chat.completion", choices, replies, len(replies), [thought.n_tokens for thought in thoughts]
    )


def _whole_choice(index: int, whole: Completion, form: ReplyForm, logprobs: bool) -> dict[str, Any]:
    n_calls, splitter = 0, form.splitter()
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if splitter is not None:
        reply = collect_parts(splitter.push(whole.text) + splitter.finish())
        n_calls = len(reply.calls)
        message["content"] = reply.content
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            calls = [_call(call, form.ids) for call in reply.calls]
            told = {"function_call": calls[0]["function"]} if form.functions else {"tool_calls": calls}
            message |= {"content": reply.content or None} | told
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(covered(whole)) if logprobs else None,
        "finish_reason": form.ended(n_calls, finish_reason(whole.stats)),
    }
