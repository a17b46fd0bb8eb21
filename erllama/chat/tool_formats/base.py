"""What a tool format is: how one model family writes tool calls and reasoning in the text of a
reply.

    the reply is streamed       `splitter()` cuts its text into text, reasoning and calls
    a call is to be enforced    `call_rule()` says in Lark what a call of a tool looks like
    the reply comes back        `strict_calls()` says what a transcript may be compared by
    a template knows no tools   `system_text()` and `write_calls()` stand in for it

A format is immutable and may be used from any thread; a splitter belongs to one reply and one
thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Call = tuple[str, Any]
"""Function name and arguments (any JSON value)."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply that belongs to no tool call. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of the function `name` begins; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of the JSON text of the arguments of the call that began last. Never empty."""

    text: str


ReplyPart = TextDelta | ReasoningDelta | CallStart | ArgumentsDelta


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call. `arguments_json` is JSON text as the model wrote it, of an object unless the
    reply was cut off.
    """

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a format needs to know it: `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class ReplySplitter(Protocol):
    """Cuts a streamed reply into its parts. The result depends on the text only, not on how it was
    cut into pushes.
    """

    @property
    def thinks(self) -> bool | None:
        """Whether what comes next belongs to the reasoning, as far as the pushes so far tell; None
        when no reasoning can come any more.
        """
        ...

    def push(self, text: str) -> list[ReplyPart]:
        """What became certain with `text`, in the order of the reply. What may still become a call
        is held back.
        """
        ...

    def finish(self) -> list[ReplyPart]:
        """The rest, at the end of the reply. Text is never lost because it resembles a call."""
        ...


class ToolFormat(Protocol):
    """One family's way.

    `name` is what a configuration calls it. `reasoning` are the texts around what the model thinks,
    None for a family that does not. `markers` are texts of the format that may be control tokens of
    a vocabulary, which then have to be shown in the text of a reply. `opening` is where a call
    begins, as a literal text: up to it a reply is free; "" for a format whose calls begin otherwise,
    see `free_rules`. `groups_calls`: several calls share one opening. `layout` are marks around the
    text of a reply, which are dropped. `next_message` is what a message begins with behind another
    one, "" for a family whose replies are not made of messages.
    """

    @property
    def name(self) -> str: ...

    @property
    def reasoning(self) -> tuple[str, str] | None: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def opening(self) -> str: ...

    @property
    def groups_calls(self) -> bool: ...

    @property
    def layout(self) -> tuple[str, ...]: ...

    @property
    def next_message(self) -> str: ...

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> ReplySplitter:
        """For one reply, from its first character on. `tools` tell how to read arguments that are
        written without their types. `in_reasoning`: the prompt has opened the reasoning.
        """
        ...

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """Lark rules of which `calls` derives one call of one of `tools`, or several where
        `parallel` and the format allow it.
        """
        ...

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """Lark rules of which `free` derives any reply in which what begins as a call goes on as one
        of `tools`; `excluded` ends the regular expression of a text at its beginning. None where
        `opening` says all, or where the vocabulary has none of the marks that it takes.
        """
        ...

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model writes them: `splitter` reads the same calls out of it."""
        ...

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What tells a model of its tools, and how to call them, where its template does not."""
        ...


class LarkWriter(Protocol):
    """How a format's texts and schemas are written in a grammar for one vocabulary."""

    def text(self, literal: str) -> str:
        """The Lark item for a text, in which the markers that are control tokens are such."""
        ...

    def schema(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule that derives the JSON texts which fit `schema`."""
        ...


def lark_pattern(text: str) -> str:
    """A text as a regular expression of Lark."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


@dataclass(frozen=True, slots=True)
class SplitReply:
    """A whole reply: the text around its calls, what the model thought (both may be ""), and the
    calls.
    """

    content: str
    reasoning: str
    calls: list[ToolCall]


def split_reply(
    tool_format: ToolFormat, text: str, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False
) -> SplitReply:
    """The parts of a whole reply, the same as a splitter gives over any cuts of `text`."""
    splitter = tool_format.splitter(tools, in_reasoning=in_reasoning)
    return collect_parts(splitter.push(text) + splitter.finish())


def collect_parts(parts: Sequence[ReplyPart]) -> SplitReply:
    content, reasoning, calls = "", "", []
    for part in parts:
        match part:
            case TextDelta(text):
                content += text
            case ReasoningDelta(text):
                reasoning += text
            case CallStart(name):
                calls.append(ToolCall(name, ""))
            case ArgumentsDelta(text):
                calls[-1] = ToolCall(calls[-1].name, calls[-1].arguments_json + text)
    return SplitReply(content, reasoning, calls)


_SPACE = re.compile(r"\s+")


def strict_calls(tool_format: ToolFormat, text: str) -> tuple[str, list[Call]] | None:
    """Content and calls of a whole reply that is its content, then its calls as `write_calls`
    writes them (what closes the last one may be missing: a stop string), and nothing else but white
    space.

    None for any other reply: comparing that by content and calls would hide something that the
    model wrote.
    """
    reply = split_reply(tool_format, text)
    written = reply.content + (tool_format.write_calls(reply.calls) if reply.calls else "")
    hides = not _SPACE.sub("", written).startswith(_SPACE.sub("", text))
    if hides or reply.reasoning or not text.startswith(reply.content):
        return None
    try:
        return reply.content, [(call.name, _arguments(call.arguments_json)) for call in reply.calls]
    except (ValueError, RecursionError):
        return None


def _arguments(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a repeated key")
    return found
