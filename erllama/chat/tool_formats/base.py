"""What a tool format is: how one model family writes tool calls and reasoning in the text of a
reply.

Three questions are asked of a format, and each family answers them in one file:

    the reply is streamed       `splitter()` cuts its text into text, reasoning and calls
    a call is to be enforced    `opening`, `call_schema()`, `closing` and `separator` say what a
                                grammar must allow
    the reply comes back        `strict_calls()` says what a transcript may be compared by

A format is immutable and may be used from any thread; a splitter belongs to one reply and one
thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
class ToolCall:
    """`arguments_json` is the JSON text of an object, ready for a wire format; its keys keep the
    order of the model.
    """

    name: str
    arguments_json: str


ReplyPart = TextDelta | ReasoningDelta | ToolCall


class ReplySplitter(Protocol):
    """Cuts a streamed reply into its parts. The result depends on the text only, not on how it was
    cut into pushes.
    """

    def push(self, text: str) -> list[ReplyPart]:
        """What became certain with `text`, in the order of the reply. What may still become a call
        is held back.
        """
        ...

    def finish(self) -> list[ReplyPart]:
        """The rest, at the end of the reply. Text is never lost because it resembles a call."""
        ...


class ToolFormat(Protocol):
    """One family's way. `name` is what a configuration calls it. A call is written `opening`, a
    body of JSON that follows `call_schema`, `closing`; between parallel calls stands `separator`.
    """

    @property
    def name(self) -> str: ...

    @property
    def opening(self) -> str: ...

    @property
    def closing(self) -> str: ...

    @property
    def separator(self) -> str: ...

    def call_schema(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON schema of the body of a call of function `name`, whose arguments follow the
        schema `arguments`.
        """
        ...

    def splitter(self) -> ReplySplitter:
        """For one reply, from its first character on."""
        ...

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model writes them: `splitter` reads the same calls out of it."""
        ...

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What tells a model of its tools, and how to call them, where its template does not."""
        ...

    def strict_calls(self, text: str) -> tuple[str, list[Call]] | None:
        """Content and calls of a whole reply that is its content, then its calls, and nothing else
        but layout.

        None for any other reply: comparing that by content and calls would hide something that the
        model wrote.
        """
        ...


@dataclass(frozen=True, slots=True)
class SplitReply:
    """A whole reply: the text around its calls, what the model thought (both may be ""), and the
    calls.
    """

    content: str
    reasoning: str
    calls: list[ToolCall]


def split_reply(tool_format: ToolFormat, text: str) -> SplitReply:
    """The parts of a whole reply, the same as a splitter gives over any cuts of `text`."""
    splitter = tool_format.splitter()
    parts = splitter.push(text) + splitter.finish()
    return SplitReply(
        "".join(part.text for part in parts if isinstance(part, TextDelta)),
        "".join(part.text for part in parts if isinstance(part, ReasoningDelta)),
        [part for part in parts if isinstance(part, ToolCall)],
    )
