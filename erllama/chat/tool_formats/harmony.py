"""Harmony, the format of gpt-oss: a reply is a row of messages, each with a channel, and calls are
messages to a function.

    <|channel|>analysis<|message|>...<|end|>                                   reasoning
    <|start|>assistant<|channel|>final<|message|>...<|return|>                 text
    <|start|>assistant<|channel|>commentary<|message|>...<|end|>               text before a call
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>
     to=functions.f<|channel|>commentary json<|message|>{...}<|call|>          calls

The prompt ends with `<|start|>assistant`, so that the first message begins behind it. Muse Glimmer
writes such messages, too, without channels and with calls between tags:

     to=self<|message|>...<|eom|>                                              reasoning
    <|start|>assistant to=user<|message|>...<|eot|>                            text
     to=f<|message|><atem:function_calls>...</atem:function_calls><|eot|>      a call
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    LarkWriter,
    ReasoningDelta,
    ReplyPart,
    TextDelta,
    ToolCall,
    ToolSpec,
    lark_pattern,
)
from erllama.chat.tool_formats.json_call import JsonScanner
from erllama.chat.tool_formats.lark_writer import message_calls, message_rules
from erllama.chat.tool_formats.splitter import held_prefix
from erllama.chat.tool_formats.tagged_call import TaggedGrammar, TaggedShape
from erllama.chat.tool_formats.tagged_format import TaggedFormat

_START, _END, _CALL, _RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
_CHANNEL, _CONSTRAIN, _MESSAGE = "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = (_END, _CALL, _RETURN)
_ASSISTANT = _START + "assistant"
_THOUGHT = (f"{_CHANNEL}analysis{_MESSAGE}", _END)
_MAX_HEAD = 512  # characters of a message before its body; more is text
_JOINT = "\n\n"  # between the texts of several messages of one kind

_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*([A-Za-z]+)")


class _Kind(Enum):
    TEXT = auto()
    REASONING = auto()
    CALL = auto()


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the body of a message; it has `n_chars`."""

    kind: _Kind
    n_chars: int
    name: str = ""  # of a function


class _NotAHead(Exception):
    """What looked like the head of a message is text."""


class HarmonySplitter:
    """See `ReplySplitter`. A reply that is no Harmony is text, and so is a message to a function
    whose body is no object. A head that the end of the reply cuts off is dropped. `ends` are the
    marks behind a message.
    """

    def __init__(
        self, names: frozenset[str] = frozenset(), *, in_reasoning: bool = False, ends: tuple[str, ...] = _ENDS
    ) -> None:
        self._names = names
        self._marks = (_START, *ends)
        self._mark = re.compile("|".join(map(re.escape, self._marks)))
        self._buffer = ""
        self._kind = _Kind.REASONING if in_reasoning else None  # of the message; None before any
        self._arguments: JsonScanner | None = None
        self._skips_space = False  # what comes next is behind a call
        self._given: set[_Kind] = set()
        self._joint = ""  # to be written before the next text

    @property
    def thinks(self) -> bool | None:
        return self._kind == _Kind.REASONING and not self._buffer.startswith(self._marks)

    def push(self, text: str) -> list[ReplyPart]:
        self._buffer += text
        return self._drain(final=False)

    def finish(self) -> list[ReplyPart]:
        return self._drain(final=True)

    def _drain(self, *, final: bool) -> list[ReplyPart]:
        out: list[ReplyPart] = []
        while self._step(out, final=final):
            pass
        return out

    def _step(self, out: list[ReplyPart], *, final: bool) -> bool:
        """Whether there may be more to do."""
        if self._kind is None:
            return self._read_first_head(out, final=final)
        if self._kind == _Kind.CALL:
            return self._read_arguments(out)
        return self._read_body(out, final=final)

    def _read_first_head(self, out: list[ReplyPart], *, final: bool) -> bool:
        try:
            head = self._head(self._buffer, final=final, first=True)
        except _NotAHead:
            self._kind = _Kind.TEXT
            return True
        return head is not None and self._begin(out, head)

    def _begin(self, out: list[ReplyPart], head: _Head) -> bool:
        self._buffer = self._buffer[head.n_chars :]
        self._kind = head.kind
        self._skips_space = False
        if head.kind == _Kind.CALL:
            out.append(CallStart(head.name))
            self._arguments = JsonScanner(0)
            if not self._buffer.startswith("{"):
                out.append(ArgumentsDelta("{}"))
                self._end_call()
        else:
            self._joint = _JOINT if head.kind in self._given else ""
        return True

    def _read_arguments(self, out: list[ReplyPart]) -> bool:
        assert self._arguments is not None
        begin, end = self._arguments.at, self._arguments.end(self._buffer)
        if self._arguments.at > begin:
            out.append(ArgumentsDelta(self._buffer[begin : self._arguments.at]))
        if end is None:
            return False
        self._buffer = self._buffer[end:]
        self._end_call()
        return True

    def _end_call(self) -> None:
        """What follows a call, if it is no other message, is text."""
        self._kind, self._arguments, self._skips_space = _Kind.TEXT, None, True
        self._joint = _JOINT if _Kind.TEXT in self._given else ""

    def _read_body(self, out: list[ReplyPart], *, final: bool) -> bool:
        if self._skips_space:
            self._buffer = self._buffer.lstrip()
            self._skips_space = not self._buffer
        mark = self._mark.search(self._buffer)
        if mark is None:
            held = 0 if final else held_prefix(self._buffer, self._marks)
            self._emit(out, len(self._buffer) - held)
            return False
        self._emit(out, mark.start())
        n_end = len(mark.group()) if mark.group() != _START else 0
        rest = self._buffer[n_end:]
        begin = n_end + len(rest) - len(rest.lstrip())
        try:
            head = self._head(self._buffer[begin:], final=final, ended=n_end > 0)
        except _NotAHead:
            self._emit(out, len(mark.group()))
            return True
        if head is None:
            if final:
                self._buffer = ""
            return False
        self._buffer = self._buffer[begin:]
        return self._begin(out, head)

    def _emit(self, out: list[ReplyPart], n_chars: int) -> None:
        if not n_chars:
            return
        text, self._joint = self._joint + self._buffer[:n_chars], ""
        self._buffer = self._buffer[n_chars:]
        assert self._kind is not None
        self._given.add(self._kind)
        out.append(ReasoningDelta(text) if self._kind == _Kind.REASONING else TextDelta(text))

    def _head(self, text: str, *, final: bool, first: bool = False, ended: bool = False) -> _Head | None:
        """The head of a message that `text` begins with; None while it may become one, or was cut
        off. `first`: without its start; `ended`: behind the end of another message.

        Raises `_NotAHead`. What is in a head is looked at as far as a whole head can be long.
        """
        begun = text[:_MAX_HEAD]
        inner, found, _ = begun.removeprefix(_ASSISTANT).partition(_MESSAGE)
        if not self._may_be_head(begun, inner, first=first) or (not found and begun != text):
            raise _NotAHead
        if not found:
            if final and not (ended or (first and not text.strip())):
                raise _NotAHead
            return None
        return self._told(inner, text, begun.index(_MESSAGE) + len(_MESSAGE), final=final)

    def _told(self, inner: str, text: str, n_chars: int, *, final: bool) -> _Head | None:
        """What `inner` says of the message whose body begins behind `n_chars` of `text`."""
        recipient, channel = _RECIPIENT.search(inner), _CHANNEL_NAME.search(inner)
        name = recipient[1] if recipient is not None else ""
        if name.startswith("functions.") or name in self._names:
            return self._call_head(name.removeprefix("functions."), text, n_chars, final=final)
        analysis = channel is not None and channel[1] == "analysis"
        return _Head(_Kind.REASONING if analysis else _Kind.TEXT, n_chars)

    def _call_head(self, name: str, text: str, n_chars: int, *, final: bool) -> _Head | None:
        """Of a message to a function, which is a call if an object follows, or nothing."""
        body = text[n_chars:].lstrip()
        n_chars = len(text) - len(body)
        if not name:
            raise _NotAHead
        if body.startswith(("{", *_ENDS)) or (final and not body):
            return _Head(_Kind.CALL, n_chars, name)
        if final or not any(end.startswith(body) for end in _ENDS):
            raise _NotAHead
        return None

    def _may_be_head(self, text: str, inner: str, *, first: bool) -> bool:
        """Whether `text` is a head, or the beginning of one, of which `inner` are the contents."""
        if _ASSISTANT.startswith(text):
            return True
        if (not first and not text.startswith(_ASSISTANT)) or self._mark.search(inner):
            return False
        said = text.removeprefix(_ASSISTANT).lstrip()
        return any(said.startswith(one) or one.startswith(said) for one in ("to=", _CHANNEL, _MESSAGE))


@dataclass(frozen=True, slots=True)
class HarmonyFormat:
    """See `ToolFormat`. A reply has one call at most: `<|call|>` ends it."""

    name: str = "harmony"
    reasoning: tuple[str, str] | None = _THOUGHT
    markers: tuple[str, ...] = (_START, *_ENDS, _CHANNEL, _CONSTRAIN, _MESSAGE)
    opening: str = ""  # two forms, and marks around text that a free reply must be allowed
    groups_calls: bool = False
    layout: tuple[str, ...] = (_CHANNEL, _MESSAGE)
    next_message: str = _ASSISTANT

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> HarmonySplitter:
        return HarmonySplitter(frozenset(tool.name for tool in tools), in_reasoning=in_reasoning)

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """A call in either form, behind some reasoning or none."""
        return message_calls(write, _variants(tools, write), _THOUGHT, _ASSISTANT, several=False)

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """A message to a function is a call, and any other goes to none of them."""
        channel, constrain, message = map(write.text, (_CHANNEL, _CONSTRAIN, _MESSAGE))
        return message_rules(
            write,
            _variants(tools, write),
            f"HEAD ({channel} HEAD)? ({constrain} HEAD)? {message} BODY",
            _END,
            _ASSISTANT,
            several=False,
            rules=f"{_head_rule(['functions.', *(tool.name for tool in tools)])}BODY: /(?s:.*)/{excluded}\n",
        )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return _ASSISTANT.join(_written_head(call.name) + call.arguments_json + _CALL for call in calls)

    def system_text(self, tools: Sequence[Mapping[str, object]]) -> str:
        """The tools as JSON Schema, one a line, in a namespace as the family's template has it."""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return (
            f"# Tools\n\n## functions\n\nnamespace functions has these functions:\n{listed}\n\n"
            "Calls to these tools must go to the commentary channel: 'functions'."
        )


def _variants(tools: Sequence[ToolSpec], write: LarkWriter) -> str:
    """Calls in either form."""
    variants = []
    for tool in tools:
        arguments = write.schema({"type": "object"} | dict(tool.parameters))
        by_model = f"{_CHANNEL}commentary to=functions.{tool.name} {_CONSTRAIN}json{_MESSAGE}"
        variants += [f"{write.text(head)} {arguments}" for head in (by_model, _written_head(tool.name))]
    return " | ".join(variants)


def _head_rule(recipients: Sequence[str]) -> str:
    """What a head between its marks may be that goes to none of `recipients`."""
    return f"HEAD: /[^<]*/ & ~/(?s:.*)to=({'|'.join(map(lark_pattern, recipients))})(?s:.*)/\n"


def _written_head(name: str) -> str:
    return f" to=functions.{name}{_CHANNEL}commentary json{_MESSAGE}"


HARMONY = HarmonyFormat()
"""gpt-oss."""


# --- Muse Glimmer ---------------------------------------------------------------------------------

_EOM, _EOT = "<|eom|>", "<|eot|>"
_SELF = f" to=self{_MESSAGE}"
_ATEM = TaggedFormat(
    "muse-glimmer",
    TaggedShape(
        section=("<atem:function_calls>\n", "\n</atem:function_calls>"),
        call=('<atem:invoke name="', '">\n'),
        call_end="</atem:invoke>",
        key=('<atem:parameter name="', '">'),
        value_end="</atem:parameter>\n",
    ),
    reasoning=None,
)
"""The calls in the messages."""


class MuseSplitter(HarmonySplitter):
    """See `ReplySplitter`. Messages to whomever are text, and calls in it."""

    def __init__(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> None:
        super().__init__(in_reasoning=in_reasoning, ends=(_EOM, _EOT))
        self._text = _ATEM.splitter(tools)
        self._has_text = False

    def finish(self) -> list[ReplyPart]:
        return super().finish() + self._text.finish()

    def _told(self, inner: str, text: str, n_chars: int, *, final: bool) -> _Head:
        recipient = _RECIPIENT.search(inner)
        return _Head(_Kind.REASONING if recipient and recipient[1] == "self" else _Kind.TEXT, n_chars)

    def _emit(self, out: list[ReplyPart], n_chars: int) -> None:
        given: list[ReplyPart] = []
        super()._emit(given, n_chars)
        for part in given:
            out += self._text.push(part.text) if isinstance(part, TextDelta) else [part]
        self._has_text = self._has_text or any(isinstance(part, TextDelta) for part in out)
        if not self._has_text:
            self._given.discard(_Kind.TEXT)  # what was given is calls, from which text needs no parting


@dataclass(frozen=True, slots=True)
class MuseFormat:
    """See `ToolFormat`. Each call is a message to the function."""

    name: str = "muse-glimmer"
    reasoning: tuple[str, str] | None = (_SELF, _EOM)
    markers: tuple[str, ...] = (_START, _MESSAGE, _EOM, _EOT)
    opening: str = ""
    groups_calls: bool = False
    layout: tuple[str, ...] = (f" to=user{_MESSAGE}", _MESSAGE)
    next_message: str = _ASSISTANT

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> MuseSplitter:
        return MuseSplitter(tools, in_reasoning=in_reasoning)

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """Calls, behind some reasoning or none."""
        variants, rules = self._calls(tools, write)
        return message_calls(write, variants, (_SELF, _EOM), _ASSISTANT, several=parallel) + rules

    def _calls(self, tools: Sequence[ToolSpec], write: LarkWriter) -> tuple[str, str]:
        """Items and their rules."""
        grammar = TaggedGrammar(_ATEM.shape, write, *_ATEM.around)
        variants = [f"{write.text(f' to={tool.name}{_MESSAGE}')} {grammar.call(tool)}" for tool in tools]
        return " | ".join(variants), grammar.rules()

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """A message to a function is a call, and what begins as one stands in no other."""
        variants, rules = self._calls(tools, write)
        openings = "|".join(map(lark_pattern, _ATEM.shape.openings))
        return message_rules(
            write,
            variants,
            f"{write.text(_SELF)} THOUGHT | HEAD {write.text(_MESSAGE)} BODY",
            _EOM,
            _ASSISTANT,
            several=parallel,
            rules=f"{rules}{_head_rule(['self', *(tool.name for tool in tools)])}THOUGHT: /(?s:.*)/\n"
            f"BODY: /(?s:.*)/ & ~/(?s:.*)({openings})(?s:.*)/{excluded}\n",
        )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return (_EOM + _ASSISTANT).join(f" to={call.name}{_MESSAGE}" + _ATEM.write_calls([call]) for call in calls)

    def system_text(self, tools: Sequence[Mapping[str, object]]) -> str:
        return _ATEM.system_text(tools)


MUSE = MuseFormat()
"""Muse Glimmer."""
