"""Replies of `/v1/chat/completions`: streamed chunks and whole bodies, tool calls split out of the
text when tools were offered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from deployments.dialects.openai.reply import ReplyHead, StreamWriter, chat_logprobs, encode, finish_reason, whole_body
from erllama.chat.tool_formats.base import (
    ReasoningDelta,
    ReplyPart,
    ReplySplitter,
    TextDelta,
    ToolCall,
    ToolFormat,
    split_reply,
)
from erllama.events import Completion, Done, Event, Tokens


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_json},
    }


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

    `tool_format` splits calls and reasoning out of the text; None leaves the text as it is.
    """

    kind = "chat.completion.chunk"

    def __init__(self, head: ReplyHead, n: int, *, include_usage: bool, tool_format: ToolFormat | None) -> None:
        super().__init__(head, n, include_usage=include_usage)
        splitters = [None if tool_format is None else tool_format.splitter() for _ in range(n)]
        self._choices = [
            _Choice(f'{self._prefix}{{"index":{index},"delta":{{', splitter) for index, splitter in enumerate(splitters)
        ]

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
            if isinstance(part, TextDelta):
                delta = f'"content":{encode(part.text)}'
            elif isinstance(part, ReasoningDelta):
                delta = f'"reasoning_content":{encode(part.text)}'
            else:
                delta = f'"tool_calls":[{encode({"index": choice.n_calls} | _call(part))}]'
                choice.n_calls += 1
            out += f'{choice.prefix}{delta}}},"finish_reason":null}}]}}\n\n'
        return out


def chat_body(
    head: ReplyHead, replies: Sequence[Completion], *, tool_format: ToolFormat | None, logprobs: bool
) -> bytes:
    """A chat reply that is not streamed."""
    choices = [_whole_choice(index, reply, tool_format, logprobs) for index, reply in enumerate(replies)]
    return whole_body(head, "chat.completion", choices, replies, len(replies))


def _whole_choice(index: int, whole: Completion, tool_format: ToolFormat | None, logprobs: bool) -> dict[str, Any]:
    reason = finish_reason(whole.stats)
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if tool_format is not None:
        reply = split_reply(tool_format, whole.text)
        if reply.reasoning:
            message |= {"content": reply.content, "reasoning_content": reply.reasoning}
        if reply.calls:
            message |= {"content": reply.content or None, "tool_calls": [_call(call) for call in reply.calls]}
            reason = "tool_calls" if reason == "stop" else reason
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": chat_logprobs(whole.logprobs or ()), "refusal": None} if logprobs else None,
        "finish_reason": reason,
    }
