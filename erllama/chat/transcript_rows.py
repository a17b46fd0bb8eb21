"""Replies that are rows of messages (Harmony's), read strictly. Pure.

    <|channel|>analysis<|message|>...<|end|>                                  reasoning, any number
    <|start|>assistant<|channel|>commentary<|message|>...<|end|>              text before a call
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}
    <|start|>assistant to=functions.f<|channel|>commentary json<|message|>{...}
    <|start|>assistant<|channel|>final<|message|>...                          the last one of these

The first message lacks its start, which stands in the prompt. The last one lacks its end: the token
that ends the reply is none of the reply's, and the template writes what stands there in a history.

A row says its texts and its call. Between them it has nothing but layout, which is told apart from
what the model said by being spelled exactly so: a reply with any other head, order or mark is no
such row, and neither is one whose end is missing in the midst.
"""

from __future__ import annotations

import re

from erllama.chat.tool_formats.base import SplitReply, ToolCall, ToolFormat, split_reply
from erllama.chat.tool_formats.harmony import HarmonyFormat

_TO = r"to=functions\.([^\s<]+)"
_HEAD = re.compile(
    r"<\|channel\|>(analysis|commentary|final)<\|message\|>"
    rf"|<\|channel\|>commentary {_TO} ?(?:<\|constrain\|>)?json<\|message\|>"
    rf"| {_TO}<\|channel\|>commentary ?(?:<\|constrain\|>)?json<\|message\|>"
)
_END, _CALL = "<|end|>", "<|call|>"


def has_rows(tool_format: ToolFormat) -> bool:
    """Whether replies in this format are rows of messages."""
    return isinstance(tool_format, HarmonyFormat)


def end_of_call(tool_format: ToolFormat) -> str:
    """What `write_calls` writes behind the last call that is no part of a reply: its end token."""
    return _CALL if has_rows(tool_format) else ""


def read_row(tool_format: ToolFormat, text: str) -> SplitReply | None:
    """What a whole reply says that is a row of messages, or a text without any marks; None for any
    other.
    """
    marks = re.compile("|".join(map(re.escape, tool_format.markers)))
    if not marks.search(text) and " to=" not in text:
        return SplitReply(text, "", [])
    thoughts: list[str] = []
    content: str | None = None
    rest = text
    while True:
        head = _HEAD.match(rest)
        if head is None:
            return None
        channel, name = head[1], head[2] or head[3]
        body, ended, rest = _body(rest[head.end() :], tool_format)
        if marks.search(body):
            return None
        if name or channel == "final":
            break
        if not ended or content is not None:
            return None
        if channel == "analysis":
            thoughts.append(body)
        else:
            content = body
    if ended or (content is not None and not name):
        return None
    said = SplitReply(
        (content or "") if name else body, "\n\n".join(thoughts), [ToolCall(name, body.strip())] if name else []
    )
    return said if split_reply(tool_format, text) == said else None


def _body(text: str, tool_format: ToolFormat) -> tuple[str, bool, str]:
    """The body of a message that `text` begins with, whether another message follows, and that."""
    body, found, rest = text.partition(_END + tool_format.next_message)
    return body, bool(found), rest
