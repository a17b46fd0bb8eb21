"""What a reply with tools must follow, as one constraint. Pure.

    forced      the reply is calls, behind its reasoning if there is one
    free        text as the model likes; what begins as a call goes on as a call of one of the tools
    or a reply  calls, or what `response_format` asks for

In a free reply the opening of a call is found by the grammar itself: text up to it, then the call.
Where a call has no opening that is the same for all, `free_rules` of the format says how it begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter, ToolFormat, ToolSpec, lark_pattern
from erllama.grammar.constraint import Constraint, ConstraintKind

_PARAM = "tools"
_MAX_MARKS = 4  # before a forced call


@dataclass(slots=True)
class VocabLark:
    """See `LarkWriter`. `control_ids` are the control tokens of a vocabulary by their texts;
    `parts` gathers the schemas. `opened` is left out of the first text that begins with it: it has
    been read already.
    """

    control_ids: Mapping[str, int]
    opened: str = ""
    parts: list[tuple[str, Constraint]] = field(default_factory=list)

    def text(self, literal: str) -> str:
        if self.opened and literal.startswith(self.opened):
            literal, self.opened = literal.removeprefix(self.opened), ""
        items = []
        for piece in self._pieces(literal):
            token = self.control_ids.get(piece)
            items.append(_quoted(piece) if token is None else f"<[{token}]>")
        return " ".join(items) or '""'

    def schema(self, schema: Mapping[str, Any]) -> str:
        name = f"schema{len(self.parts)}"
        self.parts.append((name, Constraint.of_schema(schema, _PARAM, strict=False)))
        return name

    def _pieces(self, literal: str) -> list[str]:
        if not self.control_ids:
            return [literal] if literal else []
        names = sorted(self.control_ids, key=len, reverse=True)
        return [piece for piece in re.split(f"({'|'.join(map(re.escape, names))})", literal) if piece]


def _quoted(text: str) -> str:
    """A text as a string of Lark's. A per cent sign would be taken for a directive."""
    return json.dumps(text, ensure_ascii=False).replace("%", "\\u0025")


def forced_calls(
    tool_format: ToolFormat,
    tools: Sequence[ToolSpec],
    control_ids: Mapping[str, int],
    *,
    parallel: bool,
    in_reasoning: bool = False,
    reply: Constraint | None = None,
) -> Constraint:
    """Calls of `tools` and nothing else, or what `reply` allows. `in_reasoning`: the prompt has
    opened the reasoning, which therefore comes first.
    """
    write = VocabLark(control_ids)
    calls = tool_format.calls_rules(tools, write, parallel=parallel)
    parts = write.parts if reply is None else [*write.parts, ("reply", reply)]
    marks = _control_marks(tool_format, control_ids)
    before = f"({' | '.join(marks)}){{0,{_MAX_MARKS}}} " if marks and not tool_format.next_message else ""
    body = f"{before}calls" if reply is None else f"({before}calls | reply)"
    thought = _Reasoning.of(tool_format, control_ids, opened=True) if in_reasoning else _Reasoning()
    return Constraint(ConstraintKind.LARK, f"start: {thought.item}{body}\n{thought.rules}{calls}", _PARAM, tuple(parts))


def reasoned_reply(tool_format: ToolFormat, control_ids: Mapping[str, int], reply: Constraint) -> Constraint:
    """What `reply` allows, behind the reasoning that the prompt has opened."""
    thought = _Reasoning.of(tool_format, control_ids, opened=True)
    if not thought.item or reply.kind == ConstraintKind.LARK:
        return reply
    lark = f"start: {thought.item}reply\n{thought.rules}"
    return Constraint(ConstraintKind.LARK, lark, reply.param, (("reply", reply),))


def free_reply(
    tool_format: ToolFormat,
    tools: Sequence[ToolSpec],
    control_ids: Mapping[str, int],
    *,
    parallel: bool,
    in_reasoning: bool = False,
) -> Constraint | None:
    """Any text, in which a call of `tools` is well-formed from its opening on; None where the
    format does not allow that.
    """
    thought = _Reasoning.of(tool_format, control_ids, opened=in_reasoning)
    write, opening = VocabLark(control_ids), tool_format.opening
    own = tool_format.free_rules(tools, write, parallel=parallel, excluded=thought.excluded)
    if own is not None:
        lark = f"start: {thought.item}free\n{thought.rules}{own}"
        return Constraint(ConstraintKind.LARK, lark, _PARAM, tuple(write.parts))
    if not opening:
        return None
    begins, token, behind = write.text(opening).partition("<[")
    marks = " | ".join(_control_marks(tool_format, control_ids))
    write.opened = opening
    calls = tool_format.calls_rules(tools, write, parallel=parallel and tool_format.groups_calls)
    marked = f"(TEXT ({marks}))* " if marks else ""
    may_end = ""
    if token:  # what stands before the first control token is the end of the text
        ending = lark_pattern(json.loads(begins)) if begins else ""
        first, _, more = behind.partition("]>")
        may_end = f" | {marked}BEFORE {token}{first}]>" if more.strip() else ""  # GigaChat's ends a message
        before = f"{marked}BEFORE {token}{behind}"
        rules = f"TEXT: /(?s:.*)/{thought.excluded}\nBEFORE: /(?s:.*){ending}/{thought.excluded}\n"
    else:
        before = f"{marked}before"
        rules = (
            f"before[suffix={json.dumps(opening)}]: BEFORE\nBEFORE: /(?s:.*)/{thought.excluded}\n"
            f"TEXT: ~/(?s:.*){lark_pattern(opening)}(?s:.*)/{thought.excluded}\n"
        )
    several = parallel and not tool_format.groups_calls
    body = f"({before} calls)+ {marked}TEXT" if several else f"{before} calls"
    lark = f"start: {thought.item}({marked}TEXT | {body}{may_end})\n{thought.rules}{rules}{calls}"
    return Constraint(ConstraintKind.LARK, lark, _PARAM, tuple(write.parts))


def text_reply(
    tool_format: ToolFormat, control_ids: Mapping[str, int], *, in_reasoning: bool = False
) -> Constraint | None:
    """Any text without a call; None where no opening tells a call from text."""
    write, opening = VocabLark(control_ids), tool_format.opening
    if not opening:
        return None
    thought = _Reasoning.of(tool_format, control_ids, opened=in_reasoning)
    marks = " | ".join(_control_marks(tool_format, control_ids))
    marked = f"(TEXT ({marks}))* " if marks else ""
    but = "" if "<[" in write.text(opening) else f" & ~/(?s:.*){lark_pattern(opening)}(?s:.*)/"
    lark = f"start: {thought.item}{marked}TEXT\n{thought.rules}TEXT: /(?s:.*)/{thought.excluded}{but}\n"
    return Constraint(ConstraintKind.LARK, lark, _PARAM)


def _control_marks(tool_format: ToolFormat, control_ids: Mapping[str, int]) -> list[str]:
    """The items of the marks around text that hold control tokens, so that no text holds them."""
    items = map(VocabLark(control_ids).text, tool_format.layout)
    return [item for item in items if "<[" in item]


def message_calls(write: LarkWriter, call: str, thought: tuple[str, str], next_message: str, *, several: bool) -> str:
    """Rules of which `calls` derives a `call` as a message, or a row of them where `several`, behind
    a message that is a `thought` or none.
    """
    opening, end = thought
    joint = write.text(end + next_message)
    thinks = "(?s:.*)" if write.text(end).startswith("<[") else "[^<]*"  # text holds no control tokens
    more = f" ({joint} call)*" if several else ""
    return (
        f"calls: (thought)? call{more}\ncall: {call}\n"
        f"thought: {write.text(opening)} THINKS {joint}\nTHINKS: /{thinks}/\n"
    )


def message_rules(
    write: LarkWriter, call: str, message: str, end: str, next_message: str, *, several: bool, rules: str
) -> str | None:
    """Rules of which `free` derives a row of messages: any of `message`, and at last a `call`, or calls
    anywhere where `several`. They stand behind `end` and `next_message`. None unless these are
    control tokens: nothing else tells where a message ends.
    """
    ends, joint = write.text(end), write.text(end + next_message)
    if not ends.startswith("<["):
        return None
    before = "(message | call)" if several else "message"
    rows = f"({before} {joint})* (message ({ends})? | call) | BODY"
    return f"free: {rows}\nmessage: {message}\ncall: {call}\n{rules}"


@dataclass(frozen=True, slots=True)
class _Reasoning:
    """The reasoning at the beginning of a reply: its item in `start`, the rules of that, and what
    the text that follows, or stands in its place, may therefore not be.
    """

    item: str = ""
    rules: str = ""
    excluded: str = ""

    @classmethod
    def of(cls, tool_format: ToolFormat, control_ids: Mapping[str, int], *, opened: bool) -> _Reasoning:
        """`opened`: it has begun in the prompt, and has to end."""
        if tool_format.reasoning is None or (tool_format.next_message and not opened):
            return cls()  # a thought is a message like any other
        write = VocabLark(control_ids)
        opening, closing = tool_format.reasoning
        opens, closes = write.text(opening), write.text(closing)
        begins, excluded = "", ""
        if opened:
            item = f"reason {write.text(tool_format.next_message) if tool_format.next_message else 'BREAKS'}"
        elif opens.startswith("<["):
            item = f"({opens} reason BREAKS)?"
        else:
            begins = rf"\s*{lark_pattern(opening)}"
            item, excluded = "(reason BREAKS)?", f" & ~/{begins}(?s:.*)/"
        if closes.startswith("<["):
            rules = f"reason: REASON {closes}\nREASON: /{begins}(?s:.*)/\n"
        else:
            rules = f"reason[suffix={json.dumps(closing)}]: /{begins}(?s:.*)/\n"
        return cls(f"{item} ", rules + "BREAKS: /\\n{0,2}/\n", excluded)
