"""Where the replies of a rendered conversation stand in its text. Pure.

    text      sys user |reply 1| user |reply 2| user ...        rendered once as it is, once with a
              sentinel for each reply
    segments  --------           ------         -----           the text between sentinels
    slots              ---------        ---------                what the template makes of the
                                                                replies

Segments and slots together are the template's own text. A slot also says in which forms its reply
may have been sampled. One of them is with reasoning that the client left out, where that is kept: a
template that is given a sentinel as reasoning, and shows it, would have shown the reasoning here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cache_store.format.keys import ChainKey
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.traits import REASONING_FIELDS
from erllama.chat.transcript import message_signature, reasoned_signature, reply_signature
from erllama.errors import ErllamaError

Render = Callable[[Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class Form:
    """How a reply may have been sampled: `signature` names it. `in_reasoning` None: as its message
    says it; else with reasoning that the message lacks, and the prompt had opened that (True), by
    the text `opening` behind the segment, or not.
    """

    signature: ChainKey
    opening: str = ""
    in_reasoning: bool | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reply stands. `text` is what the template makes of it; `forms` are those in which
    sampled ids may take its place, none if they must not.
    """

    text: str
    content: str
    has_calls: bool
    forms: tuple[Form, ...]

    def is_said_by(self, text: str, form: Form, tool_format: ToolFormat) -> bool:
        """Whether a reply that was sampled as `text` says what stands here."""
        if form.in_reasoning is not None:
            return reasoned_signature(text, tool_format, in_reasoning=form.in_reasoning) == form.signature
        return reply_signature(text, tool_format) == form.signature if self.has_calls else text == self.content


@dataclass(frozen=True, slots=True)
class Layout:
    """`segments` has one entry more than `slots`; interleaved they are the canonical text."""

    segments: tuple[str, ...]
    slots: tuple[Slot, ...]


def reply_layout(
    text: str,
    messages: list[dict[str, Any]],
    render: Render,
    tool_format: ToolFormat,
    *,
    is_open: bool,
    speaks: str = "",
) -> Layout | None:
    """The text cut at its replies; None when there are none, or when they cannot be told apart from
    the rest. `is_open`: the last message is no whole reply. `speaks` is what the template writes
    where the assistant begins to speak, if sampled reasoning may stand where a message lacks it.
    """
    replies = [
        i
        for i, message in enumerate(messages[:-1] if is_open else messages)
        if message["role"] == "assistant" and (message["content"] or _calls(message))
    ]
    plain = [i for i in replies if not _calls(messages[i])]
    start = _Start.of(speaks, tool_format)
    thoughts = _shown_thoughts(text, messages, replies, render) if start is not None else ()
    # some templates refuse tool results without the call that asked for them
    tries = [replies, plain] if plain != replies else [replies]
    for chosen in tries:
        for begun in (start, None) if thoughts else (None,):
            layout = _cut(text, messages, chosen, thoughts if begun else (), render, tool_format, begun)
            if layout is not None and any(slot.forms for slot in layout.slots):
                return layout
    return None


@dataclass(frozen=True, slots=True)
class _Start:
    """How a reply with reasoning starts: behind `head`, of which `opened` is what the prompt has of
    it already, "" for nothing. `mark` opens the reasoning.
    """

    head: str
    opened: str
    mark: str

    @classmethod
    def of(cls, speaks: str, tool_format: ToolFormat) -> _Start | None:
        if tool_format.reasoning is None or not speaks:
            return None
        mark, closing = (text.strip() for text in tool_format.reasoning)
        head, found, more = speaks.partition(mark)
        closed = closing in more  # no reasoning this time; that of earlier times was the model's own
        return cls(head, "" if closed else found + more, mark)

    def cut(self, before: str) -> str | None:
        """Text that ends with the opening of the reasoning, up to where the reply starts."""
        at, found, rest = before.rpartition(self.head)
        return at + found if found and rest.strip() == self.mark else None


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


def _shown_thoughts(
    text: str, messages: list[dict[str, Any]], replies: Sequence[int], render: Render
) -> tuple[int, ...]:
    """Those of `replies` that lack reasoning which the template would show."""
    word = _unused_word(text, "xThought")
    lacking = [i for i in replies if not any(messages[i].get(name) for name in REASONING_FIELDS)]
    marks = {i: f"{word}{n}x" for n, i in enumerate(lacking)}
    try:
        shown = render([_thinking(message, marks.get(i)) for i, message in enumerate(messages)])
    except ErllamaError:
        return ()
    return tuple(i for i, mark in marks.items() if mark in shown)


def _thinking(message: dict[str, Any], thought: str | None) -> dict[str, Any]:
    return message if thought is None else message | {REASONING_FIELDS[0]: thought}


def _cut(
    text: str,
    messages: list[dict[str, Any]],
    chosen: Sequence[int],
    thoughts: Sequence[int],
    render: Render,
    tool_format: ToolFormat,
    start: _Start | None,
) -> Layout | None:
    """`thoughts` are those whose slot begins where their reasoning would, as `start` says."""
    if not chosen:
        return None
    word, thought_word = _unused_word(text, "xReply"), _unused_word(text, "xThought")
    marks = {i: f"{word}{n}x" for n, i in enumerate(chosen)}
    thought_marks = {i: f"{thought_word}{n}x" for n, i in enumerate(chosen) if i in thoughts}
    shown = [
        _thinking(_marked(message, marks[i]), thought_marks.get(i)) if i in marks else message
        for i, message in enumerate(messages)
    ]
    order = [mark for i in chosen for mark in (thought_marks.get(i), marks[i]) if mark is not None]
    try:
        pieces = _split(render(shown), order)
    except ErllamaError:  # the template accepts the messages as they are, and only that counts
        return None
    if pieces is None:
        return None
    segments = _segments(pieces, [i in thought_marks for i in chosen], start)
    if segments is None:
        return None
    replies = [messages[i] for i in chosen]
    texts = _slot_texts(text, segments, [None if _calls(reply) else reply["content"] for reply in replies])
    if texts is None:
        return None
    for n, reply in enumerate(replies):
        if not _calls(reply) and chosen[n] not in thought_marks:
            segments[n], texts[n], segments[n + 1] = _with_space(
                segments[n], texts[n], segments[n + 1], reply["content"]
            )
    slots = [
        Slot(slot, reply["content"], _calls(reply), _forms(slot, reply, tool_format, start if i in thoughts else None))
        for i, slot, reply in zip(chosen, texts, replies, strict=True)
    ]
    return Layout(tuple(segments), tuple(slots))


def _segments(pieces: list[str], thoughts: Sequence[bool], start: _Start | None) -> list[str] | None:
    """The segments: neither the opening of a thought nor what stands between it and the rest of its
    reply belongs to any. None if a reply does not start as `start` says.
    """
    rest, segments = iter(pieces), []
    for has_thought in thoughts:
        before = next(rest)
        if has_thought:
            next(rest)
            cut = None if start is None else start.cut(before)
            if cut is None:
                return None
            before = cut
        segments.append(before)
    return [*segments, next(rest)]


def _forms(slot: str, reply: Mapping[str, Any], tool_format: ToolFormat, start: _Start | None) -> tuple[Form, ...]:
    """`start` is None for a reply whose reasoning would not be shown."""
    reasoned = None if start is None else message_signature(reply, tool_format, reasoned=True)
    plain = message_signature(reply, tool_format) if _calls(reply) or slot == reply["content"] else None
    forms = []
    if start is not None and reasoned is not None:
        forms.append(Form(reasoned, start.opened, in_reasoning=bool(start.opened)))
    return (*forms, *([] if plain is None else [Form(plain)]))


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


def _unused_word(text: str, stem: str) -> str:
    """A word that is not in `text`, of letters and digits only: templates trim, escape and quote
    other characters.
    """
    n = 0
    while f"{stem}{n}x" in text:
        n += 1
    return f"{stem}{n}x"


def _marked(message: dict[str, Any], mark: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": mark}


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
