# ruff: noqa: RUF001  (markers of DeepSeek's have fullwidth bars)
"""Families that write a call as the function's name, a separator and the JSON object of its
arguments.

    <opening> f <separator> {...} <closing>

Each is a value here; `NamedFormat` is what they share, `NamedReader` reads them. See `ToolFormat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    LarkWriter,
    ReplyPart,
    ReplySplitter,
    ToolCall,
    ToolSpec,
    lark_pattern,
)
from erllama.chat.tool_formats.json_call import JsonScanner, read_closing
from erllama.chat.tool_formats.json_format import THINK
from erllama.chat.tool_formats.splitter import CallReader, FramedReader, NotACall, Splitter

_MAX_HEAD = 512  # characters from an opening to the arguments; more is text
_SLOT = re.compile(r"(\{name\}|\{n\}|\{id\})")
_SLOT_PATTERNS = {
    "{name}": r"(?P<name>[^\s<>{}\[\]|｜]+?)",
    "{n}": "[0-9]+",
    "{id}": r"[^\s<>{}\[\]|｜]*",
}


@dataclass(frozen=True, slots=True)
class NamedShape:
    """Each of `heads` is what stands before the arguments, with `{name}` for the function's name,
    `{n}` for the number of the call and `{id}` for an id of it; the first one is written. Each of
    `tails` follows the arguments.

    `group` are the texts around all calls, ("", "") for none. `joint` stands between calls. `weak`:
    a head is little more than a name, which must therefore be that of an offered tool.
    """

    heads: tuple[str, ...]
    tails: tuple[str, ...] = ()
    group: tuple[str, str] = ("", "")
    joint: str = ""
    weak: bool = False

    @property
    def call_opening(self) -> str:
        """The literal text that all heads begin with."""
        return _SLOT.split(self.heads[0])[0]

    @property
    def openings(self) -> tuple[str, ...]:
        """What a call may begin with in a reply."""
        return tuple(opening for opening in (self.group[0], self.call_opening) if opening)

    def head_pattern(self, head: str) -> HeadPattern:
        """Of one of the heads, behind the opening of the group or without it. Any white space may
        stand where a head has some, and before the arguments.
        """
        group = [re.escape(char) for char in self.group[0]]
        atoms = [atom for piece in _SLOT.split(head) for atom in _atoms(piece)]
        whole = (f"(?:{''.join(group)}{_SPACE})?" if group else "") + "".join(atoms) + _SPACE
        begun = _begun(atoms) if not group else f"(?:{_begun([*group, _SPACE, *atoms])}|{_begun(atoms)})"
        return HeadPattern(re.compile(whole + r"(?=\{)"), re.compile(begun.replace("?P<name>", "?:")))


@dataclass(frozen=True, slots=True)
class HeadPattern:
    """`whole` matches a head up to the arguments, `begun` whatever may become one."""

    whole: re.Pattern[str]
    begun: re.Pattern[str]


_SPACE = r"\s*"


def _atoms(piece: str) -> list[str]:
    """A slot, or the characters and white spaces of a literal text, as regular expressions."""
    if piece in _SLOT_PATTERNS:
        return [_SLOT_PATTERNS[piece]]
    return [_SPACE if atom.isspace() else re.escape(atom) for atom in re.findall(r"\s+|\S", piece)]


def _begun(atoms: list[str]) -> str:
    """Matches the beginnings of what `atoms` match in a row."""
    pattern = _SPACE
    for atom in reversed(atoms):
        pattern = f"(?:{atom}{pattern})?"
    return pattern


class NamedReader:
    """See `CallReader`. One call; the next one has an opening of its own. `heads` are the patterns of
    the shape's, `names` those of the offered tools, empty if unknown.
    """

    def __init__(self, shape: NamedShape, heads: Sequence[HeadPattern], names: frozenset[str] = frozenset()) -> None:
        self._shape = shape
        self._heads = heads
        self._names = names if shape.weak else frozenset()
        self._arguments: JsonScanner | None = None

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        if self._arguments is None:
            head = self._head(text, final=final)
            if head is None:
                return out, None
            out.append(CallStart(head["name"]))
            self._arguments = JsonScanner(head.end())
        begin = self._arguments.at
        end = self._arguments.end(text)
        if self._arguments.at > begin:
            out.append(ArgumentsDelta(text[begin : self._arguments.at]))
        if end is None:
            return out, len(text) if final else None
        for tail in (*self._shape.tails, self._shape.group[1]):
            end = None if end is None else read_closing(text, end, tail.strip(), final=final)
        return out, end

    def _head(self, text: str, *, final: bool) -> re.Match[str] | None:
        """What stands before the arguments; None while it is open."""
        begun = text[:_MAX_HEAD]
        for pattern in self._heads:
            head = pattern.whole.match(begun)
            if head is not None and (not self._names or head["name"] in self._names):
                return head
        if final or begun != text or not any(pattern.begun.fullmatch(begun) for pattern in self._heads):
            raise NotACall
        return None


@dataclass(frozen=True, slots=True)
class NamedFormat:
    """`layout` are marks around the text of a reply, which are dropped. `prompted` is an opening of
    a call that the prompt ends with, so that the reply begins behind it; the head of a call is that
    and a name.
    """

    name: str
    shape: NamedShape
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = THINK
    layout: tuple[str, ...] = ()
    prompted: str = ""
    next_message: str = ""

    @property
    def opening(self) -> str:
        return "" if self.prompted else self.shape.openings[0]

    @property
    def groups_calls(self) -> bool:
        return bool(self.shape.group[0])

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> ReplySplitter:
        names = frozenset(tool.name for tool in tools)
        heads = [self.shape.head_pattern(head) for head in self.shape.heads]
        unread = [self.prompted] if self.prompted else []

        def reader() -> CallReader:
            reader = FramedReader(self.layout, NamedReader(self.shape, heads, names))
            return PromptedReader(unread.pop(), reader) if unread else reader

        openings = (*self.layout, *self.shape.openings)
        splitter = Splitter(openings, reader, reasoning=self.reasoning, in_reasoning=in_reasoning)
        splitter.push(self.prompted)
        return splitter

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        shape = self.shape
        begin = [write.text(shape.group[0])] if shape.group[0] else []
        opened = [] if self.prompted else [write.text(shape.call_opening)]
        joint = [write.text(text) for text in (shape.joint, shape.call_opening) if text]
        more = ["(", *joint, "call", ")*"] if parallel else []
        end = [write.text(shape.group[1])] if shape.group[1] else []
        calls = " ".join([*begin, *opened, "call", *more, *end])
        variants = [self._call_rule(tool, head, write) for tool in tools for head in shape.heads]
        slots = "NUMBER: /[0-9]{1,4}/\nID: /[0-9A-Za-z_-]{1,40}/\n"
        return f"calls: {calls}\ncall: {' | '.join(variants)}\n{slots}"

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """Where a call is prompted: the name of a tool and a line break open one, at the beginning of
        a reply or behind what is prompted, and nothing that the reader could take for one is left.
        """
        if not self.prompted:
            return None
        prompted, end = lark_pattern(self.prompted), self.shape.heads[0].partition("{name}")[2]
        begun = f"({'|'.join(lark_pattern(tool.name) for tool in tools)})({lark_pattern(end)}|\\s*\\{{)(?s:.*)"
        first, later, rules = [], [], ""
        for n, tool in enumerate(tools):
            arguments = " ".join([self._arguments(tool, write), *map(write.text, self.shape.tails)])
            opening = json.dumps(self.prompted + tool.name + end)
            first.append(f"({json.dumps(tool.name + end)} | begun{n}) {arguments}")
            later.append(f"before{n} {arguments}")
            rules += f"begun{n}[suffix={opening}]: FIRST\nbefore{n}[suffix={opening}]: /(?s:.*)/\n"
        more = f"({' | '.join(later)})* TEXT" if parallel else ""
        return (
            f"free: FIRST_TEXT | ({' | '.join(first)}) {more}\n{rules}FIRST: /(?s:.*)/ & ~/{begun}/{excluded}\n"
            f"FIRST_TEXT: /(?s:.*)/ & ~/{begun}/ & ~/(?s:.*){prompted}{begun}/{excluded}\n"
            f"TEXT: /(?s:.*)/ & ~/(?s:.*){prompted}{begun}/\n"
        )

    def _call_rule(self, tool: ToolSpec, head: str, write: LarkWriter) -> str:
        """One call behind its opening."""
        literals = {"{name}": json.dumps(tool.name), "{n}": "NUMBER", "{id}": "ID"}
        pieces = [piece for piece in _SLOT.split(head.removeprefix(self.shape.call_opening)) if piece]
        items = [literals.get(piece) or write.text(piece) for piece in pieces]
        return " ".join([*items, self._arguments(tool, write), *map(write.text, self.shape.tails)])

    def _arguments(self, tool: ToolSpec, write: LarkWriter) -> str:
        return write.schema({"type": "object"} | dict(tool.parameters))

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        shape = self.shape
        written = [
            self._head(call.name, number) + call.arguments_json + "".join(shape.tails)
            for number, call in enumerate(calls)
        ]
        return shape.group[0] + shape.joint.join(written) + shape.group[1]

    def _head(self, name: str, number: int) -> str:
        slots = {"{name}": name, "{n}": str(number), "{id}": f"call_{number}"}
        return "".join(slots.get(piece, piece) for piece in _SLOT.split(self.shape.heads[0]))

    def system_text(self, tools: Sequence[Mapping[str, object]]) -> str:
        """The tools as JSON Schema, one a line, and this family's form of a call."""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write_calls([ToolCall("<function-name>", "<args-json-object>")])
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query. "
            f"These are their signatures:\n{listed}\n\nWrite each function call like this:\n{example}"
        )


class PromptedReader:
    """See `CallReader`. The prompt ends with `opening`: if no call goes on from there, it is passed
    over, as no part of the reply.
    """

    def __init__(self, opening: str, reader: CallReader) -> None:
        self._opening = opening
        self._reader = reader

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        try:
            return self._reader.read(text, final=final)
        except NotACall:
            return [], len(self._opening)


MISTRAL = NamedFormat(
    "mistral",
    NamedShape(("[TOOL_CALLS]{name}[ARGS]", "[TOOL_CALLS]{name}[CALL_ID]{id}[ARGS]")),
    markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    reasoning=("[THINK]", "[/THINK]"),
)
"""Mistral from the tokenizer's version 11 on: `[TOOL_CALLS]f[ARGS]{...}`, some with an id:
`[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{...}`.
"""

_DEEPSEEK_GROUP = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_MARKERS = (*_DEEPSEEK_GROUP, "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")

DEEPSEEK_V3 = NamedFormat(
    "deepseek-v3",
    NamedShape(
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",),
        ("\n```", "<｜tool▁call▁end｜>"),
        _DEEPSEEK_GROUP,
        joint="\n",
    ),
    markers=_DEEPSEEK_MARKERS,
)
"""DeepSeek V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f`, the arguments as a block of JSON
and `<｜tool▁call▁end｜>`, all calls in `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`.
"""

DEEPSEEK_V3_1 = NamedFormat(
    "deepseek-v3.1",
    NamedShape(("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",), ("<｜tool▁call▁end｜>",), _DEEPSEEK_GROUP),
    markers=_DEEPSEEK_MARKERS,
)
"""DeepSeek V3.1: `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜>` in the group of V3."""

KIMI_K2 = NamedFormat(
    "kimi-k2",
    NamedShape(
        ("<|tool_call_begin|>functions.{name}:{n}<|tool_call_argument_begin|>",),
        ("<|tool_call_end|>",),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    markers=(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ),
)
"""Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>`, all
calls in a section.
"""

FUNCTIONARY_3_1 = NamedFormat("functionary-v3.1", NamedShape(("<function={name}>",), ("</function>",)), reasoning=None)
"""Functionary 3.1, and Llama 3.1 where its prompt says so: `<function=f>{...}</function>`. Python
behind `<|python_tag|>` is text.
"""

FUNCTIONARY_3_2 = NamedFormat(
    "functionary-v3.2",
    NamedShape((">>>{name}\n",), weak=True),
    reasoning=None,
    layout=(">>>all\n",),
    prompted=">>>",
)
"""Functionary 3.2: `>>>f`, a line break and the arguments; `>>>all` and a line break before text.
The prompt ends with the first `>>>`.
"""

_SOLAR_TEXT = ("<|begin|>assistant", "<|content|>", "<|calls|>")

SOLAR = NamedFormat(
    "solar",
    NamedShape(
        ("<|tool_call:begin|>{id}<|tool_call:name|>{name}<|tool_call:args|>",),
        ("<|tool_call:end|>",),
        ("<|tool_calls|>", ""),
    ),
    markers=(
        "<|tool_calls|>",
        "<|tool_call:begin|>",
        "<|tool_call:name|>",
        "<|tool_call:args|>",
        "<|tool_call:end|>",
        "<|begin|>",
        "<|content|>",
        "<|calls|>",
    ),
    reasoning=("<|think|>", "<|end|>"),
    layout=_SOLAR_TEXT,
)
"""Solar Open: `<|tool_calls|>` and for each call
`<|tool_call:begin|>id<|tool_call:name|>f<|tool_call:args|>{...}<|tool_call:end|>`. Reasoning is a
message of its own, so that another one of the assistant begins behind it.
"""
