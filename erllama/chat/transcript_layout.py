"""Where the replies of a chat stand in its rendered text. Pure.

    text      sys user |reply 1| user |reply 2| user ...        rendered once as it is, once with a
              sentinel for each reply
    segments  --------           ------         -----           the text between sentinels
    slots              ---------        ---------                what the template makes of the
                                        replies

A sentinel is a text. Where a template writes calls in another place than text, or refuses a result
that nobody called for, the sentinels of calls are calls of functions with such names; what the tool
format writes around a name is then no part of the segments.

Segments and slots together are the template's own text. When anything is odd (the template fails on
a sentinel, drops or moves one, or the alignment is ambiguous), there is no layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cache_store.format.keys import ChainKey
from erllama.chat.tool_formats.base import ToolCall, ToolFormat
from erllama.chat.transcript import message_signature
from erllama.errors import ErllamaError

Render = Callable[[Sequence[Mapping[str, Any]]], str]

_PIECES = re.compile(r"\d+|\S")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reply stands. `index` is its message, `text` what the template makes of it; `replaces`
    says whether sampled ids may take its place.
    """

    index: int
    text: str
    content: str
    has_calls: bool
    signature: ChainKey | None

    @property
    def replaces(self) -> bool:
        return self.signature is not None and (self.has_calls or self.text == self.content)


@dataclass(frozen=True, slots=True)
class Layout:
    """`segments` has one entry more than `slots`; interleaved they are the canonical text."""

    segments: tuple[str, ...]
    slots: tuple[Slot, ...]


def find_layout(
    text: str, messages: list[dict[str, Any]], render: Render, tool_format: ToolFormat, *, is_open: bool
) -> Layout | None:
    """The text cut at its replies; None when there are none, or when they cannot be told apart from
    the rest. `is_open`: the last message is no whole reply.
    """
    replies = [
        i
        for i, message in enumerate(messages[:-1] if is_open else messages)
        if message["role"] == "assistant" and (message["content"] or _calls(message))
    ]
    plain = [i for i in replies if not _calls(messages[i])]
    tries = [(replies, False)] if plain == replies else [(replies, False), (replies, True), (plain, False)]
    for chosen, by_name in tries:
        layout = _cut(text, messages, chosen, render, tool_format, by_name=by_name) if chosen else None
        if layout is not None and any(slot.replaces for slot in layout.slots):
            return layout
    return None


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


def _cut(
    text: str,
    messages: list[dict[str, Any]],
    chosen: list[int],
    render: Render,
    tool_format: ToolFormat,
    *,
    by_name: bool,
) -> Layout | None:
    """`by_name`: the sentinels of calls are names of functions."""
    word = _unused_word(text)
    replies = [messages[i] for i in chosen]
    marks = [_marks(reply, f"{word}{n}x", by_name=by_name) for n, reply in enumerate(replies)]
    shown = list(messages)
    for i, words in zip(chosen, marks, strict=True):
        shown[i] = _named(messages[i], words) if by_name and _calls(messages[i]) else _marked(messages[i], words)
    try:
        segments = _split(render(shown), [mark for words in marks for mark in words])
    except ErllamaError:  # the template accepts the messages as they are, and only that counts
        return None
    if segments is not None and by_name:
        segments = _without_calls(segments, replies, marks, tool_format)
    if segments is None:
        return None
    texts = _slot_texts(text, segments, [None if _calls(reply) else reply["content"] for reply in replies])
    if texts is None:
        return None
    for n, reply in enumerate(replies):
        if not _calls(reply):
            segments[n], texts[n], segments[n + 1] = _with_space(
                segments[n], texts[n], segments[n + 1], reply["content"]
            )
    slots = [
        Slot(i, slot, messages[i]["content"], _calls(messages[i]), message_signature(messages[i], tool_format))
        for i, slot in zip(chosen, texts, strict=True)
    ]
    return Layout(tuple(segments), tuple(slots))


def _with_space(before: str, slot: str, after: str, content: str) -> tuple[str, str, str]:
    """A template that trims a reply and writes a space of its own (Mistral's do) has written what
    the model said: the space goes with the reply. The three together stay the same text.
    """
    if not slot or slot != content.strip():
        return before, slot, after
    left, _, right = content.partition(slot)
    if before.endswith(left) and after.startswith(right):
        return before.removesuffix(left), content, after.removeprefix(right)
    return before, slot, after


def _unused_word(text: str) -> str:
    """A word that is not in `text`, of letters and digits only: templates trim, escape and quote
    other characters.
    """
    n = 0
    while f"xReply{n}x" in text:
        n += 1
    return f"xReply{n}x"


def _marks(reply: dict[str, Any], mark: str, *, by_name: bool) -> list[str]:
    return [f"{mark}{n}x" for n in range(len(reply["tool_calls"]))] if by_name and _calls(reply) else [mark]


def _marked(message: dict[str, Any], words: list[str]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": words[0]}


def _named(message: dict[str, Any], words: list[str]) -> dict[str, Any]:
    calls = [
        call | {"function": {"name": word, "arguments": {}}}
        for call, word in zip(message["tool_calls"], words, strict=True)
    ]
    return message | {"content": "", "tool_calls": calls}


def _without_calls(
    segments: list[str], replies: list[dict[str, Any]], marks: list[list[str]], tool_format: ToolFormat
) -> list[str] | None:
    """The segments around whole calls, made of those around their names, if the template writes them
    as `tool_format` does. White space may be the template's own, and so may numbers.
    """
    out, rest = segments[:1], iter(segments[1:])
    names: dict[str, str] = {}
    for reply, words in zip(replies, marks, strict=True):
        after = [next(rest) for _ in words][-1]
        if _calls(reply):
            written = tool_format.write_calls([ToolCall(word, "{}") for word in words])
            opened = re.search(_loosely(written.partition(words[0])[0]) + r"\Z", out[-1])
            closed = re.match(_loosely(written.rpartition(words[-1])[2]), after)
            if opened is None or closed is None:
                return None
            out[-1], after = out[-1][: opened.start()], after[closed.end() :]
            names.update(zip(words, (call["function"]["name"] for call in reply["tool_calls"]), strict=True))
        out.append(after)
    again = re.compile("|".join(names))  # a result may tell who was called
    return [again.sub(lambda found: names[found[0]], segment) for segment in out]


def _loosely(text: str) -> str:
    return r"\s*".join(r"\w+" if piece.isdecimal() else re.escape(piece) for piece in _PIECES.findall(text))


def _split(text: str, marks: list[str]) -> list[str] | None:
    """The text between the marks, which must stand in it in order. One that stands there again
    spoils the match with the canonical text.
    """
    segments: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        segments.append(before)
    return [*segments, text]


def _slot_texts(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """What stands between the segments in `text`. First under the assumption that every content is
    there verbatim (None: a tool call, whose text is the template's affair), then without it.
    """
    return _match(text, segments, contents) or _match(text, segments, [None] * len(contents))


def _match(text: str, segments: list[str], contents: list[str | None]) -> list[str] | None:
    """The slots when those with a content hold exactly that; None when this is impossible or
    possible in more than one way.
    """
    literals = [segments[0]]
    for content, segment in zip(contents, segments[1:], strict=True):
        if content is None:
            literals.append(segment)
        else:
            literals[-1] += content + segment
    free = _between(text, literals)
    if free is None:
        return None
    rest = iter(free)
    return [next(rest) if content is None else content for content in contents]


def _between(text: str, literals: list[str]) -> list[str] | None:
    """What stands between literals that make up `text` with free text between them, if there is
    exactly one way to place them.
    """
    if len(literals) == 1:
        return [] if text == literals[0] else None
    if not text.startswith(literals[0]) or not text.endswith(literals[-1]):
        return None
    begin, end = len(literals[0]), len(text) - len(literals[-1])
    first = _placed(text, literals[1:-1], begin, end)
    if first is None or first != _placed_late(text, literals[1:-1], begin, end):
        return None
    cuts = [(begin, begin), *first, (end, end)]
    return [text[left:right] for (_, left), (right, _) in pairwise(cuts)]


def _placed(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    """Where each literal stands when all stand as early as possible."""
    places: list[tuple[int, int]] = []
    for literal in literals:
        start = text.find(literal, begin, end)
        if start < 0:
            return None
        begin = start + len(literal)
        places.append((start, begin))
    return places if begin <= end else None


def _placed_late(text: str, literals: list[str], begin: int, end: int) -> list[tuple[int, int]] | None:
    places: list[tuple[int, int]] = []
    for literal in reversed(literals):
        start = text.rfind(literal, begin, end)
        if start < 0:
            return None
        places.append((start, start + len(literal)))
        end = start
    return places[::-1]
