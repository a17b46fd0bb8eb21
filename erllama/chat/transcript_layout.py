"""Where the replies of a rendered conversation stand in its text. Pure.

    text      sys user |reply 1| user |reply 2| user ...        rendered once as it is, once with a
              sentinel for each reply
    segments  --------           ------         -----           the text between sentinels
    slots              ---------        ---------                what the template makes of the
                                                                replies

A sentinel is a text. Where a template writes calls in another place than text, or refuses a result
that nobody called for, the sentinels of calls are calls of functions with such names; what the tool
format writes around a name is then no part of the segments.

Segments and slots together are the template's own text. A slot also says in which forms its reply
may have been sampled. One of them is with reasoning, where a template that is given a sentinel as
reasoning shows it: what the client sent back, or what it left out, where that is kept, since the
template would have shown the reasoning here.

When anything is odd (the template fails on a sentinel, drops or moves one, or the alignment is
ambiguous), there is no layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache_store.format.keys import ChainKey
from erllama.chat.tool_formats.base import ToolCall, ToolFormat
from erllama.chat.traits import REASONING_FIELDS
from erllama.chat.transcript import (
    message_signature,
    message_told_signature,
    reasoned_signature,
    reply_signature,
    told_signature,
)
from erllama.chat.transcript_alignment import slot_texts, split_at, unused_word
from erllama.chat.transcript_opening import PRESENT, Opening
from erllama.chat.transcript_rows import end_of_call, has_rows
from erllama.errors import ErllamaError

Render = Callable[[Sequence[Mapping[str, Any]]], str]

_PIECES = re.compile(r"\d+|\S")


@dataclass(frozen=True, slots=True)
class Form:
    """How a reply may have been sampled: `signature` names it, `opening` is what stood before it.
    `in_reasoning` None: without reasoning; else with it, and the prompt had opened that (True) or
    not. `told` is the signature of all that the message says if it tells the reasoning, too.
    """

    signature: ChainKey
    opening: Opening = PRESENT
    in_reasoning: bool | None = None
    told: ChainKey | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reply stands. `index` is its message, `text` what the template makes of it; `forms`
    are those in which sampled ids may take its place, none if they must not.
    """

    index: int
    text: str
    content: str
    has_calls: bool
    forms: tuple[Form, ...]

    @property
    def has_thought(self) -> bool:
        """Whether it begins where the reasoning of the reply would."""
        return any(form.in_reasoning is not None for form in self.forms)

    def behind(self, opening: Opening) -> Iterator[Form]:
        """Its forms once more, behind another opening."""
        for form in self.forms:
            if form.opening != opening:
                yield replace(form, opening=opening)

    def is_said_by(self, text: str, form: Form, tool_format: ToolFormat) -> bool:
        """Whether a reply that was sampled as `text` says what stands here."""
        if form.in_reasoning is not None and form.told is not None:
            return told_signature(text, tool_format, in_reasoning=form.in_reasoning) == form.told
        if form.in_reasoning is not None:
            return reasoned_signature(text, tool_format, in_reasoning=form.in_reasoning) == form.signature
        if self.has_calls or has_rows(tool_format):
            return reply_signature(text, tool_format) == form.signature
        return text == self.content


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
    keeps_reasoning: bool = False,
) -> Layout | None:
    """The text cut at its replies; None when there are none, or when they cannot be told apart from
    the rest. `is_open`: the last message is no whole reply. `speaks` is what the template writes
    where the assistant begins to speak, "" if no sampled reasoning may stand here.
    `keeps_reasoning`: it may stand where a message lacks it.
    """
    replies = [
        i
        for i, message in enumerate(messages[:-1] if is_open else messages)
        if message["role"] == "assistant" and (message["content"] or _calls(message))
    ]
    plain = [i for i in replies if not _calls(messages[i])]
    start = _Start.of(speaks, tool_format)
    thinking = [i for i in replies if reasoning_of(messages[i]) or (keeps_reasoning and _lacks_reasoning(messages[i]))]
    thoughts = _shown_thoughts(text, messages, thinking, render) if start is not None and thinking else ()
    starts = (start, None) if thoughts else (None,)
    ways = (False,) if plain == replies else (False, True)
    tries = [(replies, begun, by_name) for begun in starts for by_name in ways]
    if plain != replies:  # some templates refuse tool results without the call that asked for them
        tries += [(plain, begun, False) for begun in starts]
    for chosen, begun, by_name in tries:
        stand_ins = _stand_ins(text, messages, chosen, () if begun is None else thoughts, by_name=by_name)
        layout = _cut(text, messages, stand_ins, render, tool_format, begun, keeps=keeps_reasoning)
        if layout is not None and any(slot.forms for slot in layout.slots):
            return layout
    return None


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What an assistant's message says that it thought, "" if it says nothing."""
    found = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    return found if isinstance(found, str) and found.strip() else ""


def _lacks_reasoning(message: Mapping[str, Any]) -> bool:
    return not any(message.get(name) for name in REASONING_FIELDS)


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


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


@dataclass(frozen=True, slots=True)
class _StandIn:
    """A reply of sentinels: `word` is its text, or begins the names of its calls if it is one
    `by_name`; `thought` is its reasoning, None where the template would show none.
    """

    reply: dict[str, Any]
    word: str
    thought: str | None
    by_name: bool

    @property
    def names(self) -> list[str]:
        return [f"{self.word}{n}x" for n in range(len(self.reply["tool_calls"]))] if self.by_name else []

    @property
    def marks(self) -> list[str]:
        """In the order in which a template writes them."""
        said = self.names or [self.word]
        return said if self.thought is None else [self.thought, *said]

    def message(self) -> dict[str, Any]:
        if self.by_name:
            calls = [
                call | {"function": {"name": name, "arguments": {}}}
                for call, name in zip(self.reply["tool_calls"], self.names, strict=True)
            ]
            shown = self.reply | {"content": "", "tool_calls": calls}
        else:
            shown = {key: value for key, value in self.reply.items() if key != "tool_calls"} | {"content": self.word}
        return shown if self.thought is None else _thinking(shown, self.thought)


def _stand_ins(
    text: str, messages: list[dict[str, Any]], chosen: Sequence[int], thoughts: Sequence[int], *, by_name: bool
) -> dict[int, _StandIn]:
    """Those of the `chosen` messages, by their places and in order. `thoughts` are those whose
    reasoning is shown, `by_name` is for those with calls.
    """
    word, thought = unused_word(text, "xReply"), unused_word(text, "xThought")
    return {
        i: _StandIn(
            messages[i],
            f"{word}{n}x",
            f"{thought}{n}x" if i in thoughts else None,
            by_name=by_name and _calls(messages[i]),
        )
        for n, i in enumerate(chosen)
    }


def _thinking(message: dict[str, Any], thought: str) -> dict[str, Any]:
    return message | {REASONING_FIELDS[0]: thought}


def _shown_thoughts(
    text: str, messages: list[dict[str, Any]], replies: Sequence[int], render: Render
) -> tuple[int, ...]:
    """Those of `replies` whose reasoning the template shows, or would show if they had one."""
    word = unused_word(text, "xThought")
    marks = {i: f"{word}{n}x" for n, i in enumerate(replies)}
    for calls_alone in (False, True):  # some templates refuse a thought where text stands before a call
        dropped = {"content": ""} if calls_alone else {}
        thinking = [
            _thinking(one | (dropped if _calls(one) else {}), marks[i]) if i in marks else one
            for i, one in enumerate(messages)
        ]
        try:
            shown = render(thinking)
        except ErllamaError:
            continue
        return tuple(i for i, mark in marks.items() if mark in shown)
    return ()


def _cut(
    text: str,
    messages: list[dict[str, Any]],
    stand_ins: Mapping[int, _StandIn],
    render: Render,
    tool_format: ToolFormat,
    start: _Start | None,
    *,
    keeps: bool,
) -> Layout | None:
    """The slot of a reply whose stand-in has a thought begins where its reasoning would, as `start`
    says.
    """
    if not stand_ins:
        return None
    shown = [stand_ins[i].message() if i in stand_ins else message for i, message in enumerate(messages)]
    try:
        pieces = split_at(render(shown), [mark for one in stand_ins.values() for mark in one.marks])
    except ErllamaError:  # the template accepts the messages as they are, and only that counts
        return None
    segments = None if pieces is None else _segments(pieces, list(stand_ins.values()), start, tool_format)
    if segments is None:
        return None
    told = [_calls(one.reply) or (one.thought is not None and reasoning_of(one.reply)) for one in stand_ins.values()]
    contents = [None if more else messages[i]["content"] for i, more in zip(stand_ins, told, strict=True)]
    texts = slot_texts(text, segments, contents)
    if texts is None:
        return None
    slots = []
    for n, (i, one) in enumerate(stand_ins.items()):
        reply = one.reply
        if not _calls(reply) and one.thought is None:
            segments[n], texts[n], segments[n + 1] = _with_space(
                segments[n], texts[n], segments[n + 1], reply["content"]
            )
        forms = _forms(texts[n], reply, tool_format, None if one.thought is None else start, keeps=keeps)
        slots.append(Slot(i, texts[n], reply["content"], _calls(reply), forms))
    return Layout(tuple(segments), tuple(slots))


def _segments(
    pieces: list[str], stand_ins: Sequence[_StandIn], start: _Start | None, tool_format: ToolFormat
) -> list[str] | None:
    """The segments around whole replies, made of those around their sentinels. None if a thought
    does not begin as `start` says, or calls are not written as `tool_format` does.
    """
    segments, rest = pieces[:1], iter(pieces[1:])
    names: dict[str, str] = {}
    for one in stand_ins:
        around = [segments[-1], *(next(rest) for _ in one.marks)]
        before: str | None = around[0]
        after = around[-1]
        if one.by_name:
            ends = _without_calls(around[-1 - len(one.names)], one.names, after, tool_format)
            if ends is None:
                return None
            before, after = ends
            names.update(zip(one.names, (call["function"]["name"] for call in one.reply["tool_calls"]), strict=True))
        if one.thought is not None:
            before = None if start is None else start.cut(around[0])
        if before is None:
            return None
        segments[-1:] = [before, after]
    if not names:
        return segments
    again = re.compile("|".join(names))  # a result may tell who was called
    return [again.sub(lambda found: names[found[0]], segment) for segment in segments]


def _without_calls(before: str, names: Sequence[str], after: str, tool_format: ToolFormat) -> tuple[str, str] | None:
    """The text around whole calls, made of that around their names, if the template writes them as
    `tool_format` does. White space may be the template's own, and so may numbers.
    """
    written = tool_format.write_calls([ToolCall(name, "{}") for name in names]).removesuffix(end_of_call(tool_format))
    begin = written.partition(names[0])[0]
    opened = re.search(r"\s*" * begin[:1].isspace() + _loosely(begin) + r"\Z", before)
    closed = re.match(_loosely(written.rpartition(names[-1])[2]), after)
    return None if opened is None or closed is None else (before[: opened.start()], after[closed.end() :])


def _loosely(text: str) -> str:
    return r"\s*".join(r"\w+" if piece.isdecimal() else re.escape(piece) for piece in _PIECES.findall(text))


def _forms(
    slot: str, reply: Mapping[str, Any], tool_format: ToolFormat, start: _Start | None, *, keeps: bool
) -> tuple[Form, ...]:
    """`start` is None for a reply whose reasoning would not be shown. `keeps`: replies with
    reasoning are named without it.
    """
    reasoning = reasoning_of(reply)
    told = message_told_signature(reply, tool_format, reasoning) if start is not None and reasoning else None
    reasoned = message_signature(reply, tool_format, reasoned=True) if start is not None and keeps else None
    plain = message_signature(reply, tool_format) if _calls(reply) or slot == reply["content"] else None
    forms = []
    if start is not None:
        names = [told, reasoned] if told is not None else [] if reasoning else [reasoned]
        opening = Opening(then=start.opened)
        forms = [Form(name, opening, bool(start.opened), told) for name in names if name is not None]
    return (*forms, *([] if plain is None or (start is not None and reasoning) else [Form(plain)]))


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
