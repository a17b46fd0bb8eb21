"""What a reply with tools must follow, as one constraint. Pure.

    forced      the reply is calls, behind its reasoning if there is one
    free        text as the model likes; what begins as a call goes on as a call of one of the tools
    or a reply  calls, or what `response_format` asks for

In a free reply the opening of a call is found by the grammar itself: text up to it, then the call.
A format without an opening (a bare JSON object) cannot be told from text so early; its free replies
are not constrained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from erllama.chat.tool_formats.base import ToolFormat, ToolSpec
from erllama.chat.tool_formats.schema_types import lark_pattern
from erllama.grammar.constraint import Constraint, ConstraintKind

_PARAM = "tools"


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
            items.append(json.dumps(piece) if token is None else f"<[{token}]>")
        return " ".join(items) or '""'

    def schema(self, schema: Mapping[str, Any]) -> str:
        name = f"schema{len(self.parts)}"
        self.parts.append((name, Constraint.of_schema(schema, _PARAM)))
        return name

    def _pieces(self, literal: str) -> list[str]:
        if not self.control_ids:
            return [literal] if literal else []
        names = sorted(self.control_ids, key=len, reverse=True)
        return [piece for piece in re.split(f"({'|'.join(map(re.escape, names))})", literal) if piece]


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
    body = "calls" if reply is None else "(calls | reply)"
    thought = _Reasoning.of(tool_format, control_ids, opened=True) if in_reasoning else _Reasoning()
    return Constraint(ConstraintKind.LARK, f"start: {thought.item}{body}\n{thought.rules}{calls}", _PARAM, tuple(parts))


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
    opening = tool_format.opening
    if not opening:
        return None
    write = VocabLark(control_ids, opened=opening)
    calls = tool_format.calls_rules(tools, write, parallel=parallel and tool_format.groups_calls)
    thought = _Reasoning.of(tool_format, control_ids, opened=in_reasoning)
    if opening in control_ids:
        before, rules = f"TEXT <[{control_ids[opening]}]>", f"TEXT: /(?s:.*)/{thought.excluded}\n"
    else:
        before = "before"
        rules = (
            f"before[suffix={json.dumps(opening)}]: BEFORE\nBEFORE: /(?s:.*)/{thought.excluded}\n"
            f"TEXT: ~/(?s:.*){lark_pattern(opening)}(?s:.*)/{thought.excluded}\n"
        )
    several = parallel and not tool_format.groups_calls
    body = f"(TEXT | ({before} calls)+ TEXT)" if several else f"(TEXT | {before} calls)"
    lark = f"start: {thought.item}{body}\n{thought.rules}{rules}{calls}"
    return Constraint(ConstraintKind.LARK, lark, _PARAM, tuple(write.parts))


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
        if tool_format.reasoning is None:
            return cls()
        opening, closing = tool_format.reasoning
        begins, excluded = "", ""
        if opened:
            item = "reason BREAKS "
        elif opening in control_ids:
            item = f"(<[{control_ids[opening]}]> reason BREAKS)? "
        else:
            begins = rf"\s*{lark_pattern(opening)}"
            item, excluded = "(reason BREAKS)? ", f" & ~/{begins}(?s:.*)/"
        if closing in control_ids:
            rules = f"reason: REASON <[{control_ids[closing]}]>\nREASON: /{begins}(?s:.*)/\n"
        else:
            rules = f"reason[suffix={json.dumps(closing)}]: /{begins}(?s:.*)/\n"
        return cls(item, rules + "BREAKS: /\\n{0,2}/\n", excluded)
