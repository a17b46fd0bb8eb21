"""Replies of `/v1/chat/completions`: streamed chunks and whole bodies, tool calls split out of the
text when tools were offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from deployments.dialects.openai.reply import ReplyHead, StreamWriter, chat_logprobs, encode, finish_reason, whole_body
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
from erllama.events import Completion, Done, Event, Tokens

SplitterMaker = Callable[[], ReplySplitter | None]
"""Makes what cuts one choice's text into reasoning, text and calls; None leaves it as it is."""


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": _call_id(),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_json},
    }


def _call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


@dataclass(slots=True)
class _Choice:
    """What the stream of one choice remembers."""

    prefix: str
    splitter: ReplySplitter | None
    n_calls: int = 0
    begun: bool = False


class ChatWriter(StreamWriter):
    """The stream of a chat reply. Per token it encodes the text and joins it with strings made
    once.

    Calls stream: a chunk with id and name, then chunks with pieces of the arguments.
    """

    kind = "chat.completion.chunk"

    def __init__(self, head: ReplyHead, n: int, *, include_usage: bool, splitter: SplitterMaker) -> None:
        super().__init__(head, n, include_usage=include_usage)
        self._choices = [_Choice(f'{self._prefix}{{"index":{index},"delta":{{', splitter()) for index in range(n)]

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        choice = self._choices[index]
        prefix = choice.prefix
        out = ""
        if not choice.begun:
            choice.begun = True
            out = f'{prefix}"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'
        for event in events:
            if isinstance(event, Tokens):
                if choice.splitter is not None or event.logprobs is not None:
                    out += self._rich(choice, event)
                elif event.text:
                    out += f'{prefix}"content":{encode(event.text)}}},"finish_reason":null}}]}}\n\n'
            elif isinstance(event, Done):
                self._meter.add(index, event.stats)
                if choice.splitter is not None:
                    out += self._parts(choice, choice.splitter.finish())
                reason = finish_reason(event.stats)
                if choice.n_calls and reason == "stop":
                    reason = "tool_calls"
                out += f'{prefix}}},"finish_reason":"{reason}"}}]}}\n\n'
        return out.encode()

    def _rich(self, choice: _Choice, event: Tokens) -> str:
        """The slow path. Logprobs go with the text of their tokens, or alone when that is held back
        or belongs to a call.
        """
        out = ""
        text = event.text
        if choice.splitter is not None:
            parts = choice.splitter.push(text)
            if event.logprobs is not None:
                text = "".join(part.text for part in parts if isinstance(part, TextDelta))
                parts = [part for part in parts if not isinstance(part, TextDelta)]
            out = self._parts(choice, parts)
        if event.logprobs is not None:
            logprobs = encode({"content": chat_logprobs(event.logprobs), "refusal": None})
            out = f'{choice.prefix}"content":{encode(text)}}},"logprobs":{logprobs},"finish_reason":null}}]}}\n\n' + out
        return out

    def _parts(self, choice: _Choice, parts: Iterable[ReplyPart]) -> str:
        out = ""
        for part in parts:
            match part:
                case TextDelta(text):
                    delta = f'"content":{encode(text)}'
                case ReasoningDelta(text):
                    delta = f'"reasoning_content":{encode(text)}'
                case CallStart(name):
                    call = {"index": choice.n_calls} | _call(ToolCall(name, ""))
                    delta = f'"tool_calls":[{encode(call)}]'
                    choice.n_calls += 1
                case ArgumentsDelta(text):
                    call = {"index": choice.n_calls - 1, "function": {"arguments": text}}
                    delta = f'"tool_calls":[{encode(call)}]'
            out += f'{choice.prefix}{delta}}},"finish_reason":null}}]}}\n\n'
        return out


def chat_body(head: ReplyHead, replies: Sequence[Completion], *, splitter: SplitterMaker, logprobs: bool) -> bytes:
    """A chat reply that is not streamed."""
    choices = [_whole_choice(index, reply, splitter(), logprobs) for index, reply in enumerate(replies)]
    return whole_body(head, "chat.completion", choices, replies, len(replies))


def _whole_choice(index: int, whole: Completion, splitter: ReplySplitter | None, logprobs: bool) -> dict[str, Any]:
    reason = finish_reason(whole.stats)
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if splitter is not None:
        reply = collect_parts(splitter.push(whole.text) + splitter.finish())
        message["content"] = reply.content
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message |= {"content": reply.content or None, "tool_calls": [_call(call) for call in reply.calls]}
            reason = "tool_calls" if reason == "stop" else reason
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": chat_logprobs(whole.logprobs or ()), "refusal": None} if logprobs else None,
        "finish_reason": reason,
    }
