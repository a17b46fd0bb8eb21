"""Families that write calls as Python does: `[get_weather(city='Paris', n=3), get_time()]`.

Values are Python literals of JSON data; JSON's own words and strings are understood, too, and so
are quotes in a string that are not escaped, unless one looks like its end. Keys and names are words
of letters, digits, `_`, `.` and `-`; others cannot be expressed. See `ToolFormat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    LarkWriter,
    ReplyPart,
    ToolCall,
    ToolSpec,
    lark_pattern,
)
from erllama.chat.tool_formats.json_call import read_closing, skip_space
from erllama.chat.tool_formats.json_format import THINK
from erllama.chat.tool_formats.literal import LOOSE_PYTHON, BadLiteral, LiteralReader
from erllama.chat.tool_formats.schema_types import (
    arguments_object,
    comma_list,
    json_types,
    properties,
    resolved,
    schema_values,
    standalone,
)
from erllama.chat.tool_formats.splitter import NotACall, Splitter

_MAX_HEAD = 512  # characters from a name to its first argument; more is no call
_WORD = r"[^\W\d][\w.-]*"
_HEAD = re.compile(rf"\s*({_WORD})\s*\((?=\s*(?:\)|{_WORD}\s*=\s*[^=\s]))")
_HEAD_BEGUN = re.compile(rf"\s*(?:{_WORD}\s*(?:\(\s*(?:{_WORD}\s*(?:=\s*)?)?)?)?")
_KEY = re.compile(rf"\s*({_WORD})\s*=\s*(?=[^=\s])")
_KEY_BEGUN = re.compile(rf"\s*(?:{_WORD}\s*(?:=\s*)?)?")


@dataclass(frozen=True, slots=True)
class PythonicFormat:
    """`opening` and `closing` stand around the list; both may be "", and then only the names of
    offered tools are calls. `json_objects`: an argument that is an object is written as JSON.
    """

    name: str
    opening: str = ""
    closing: str = ""
    json_objects: bool = False
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = None
    layout: tuple[str, ...] = ()
    groups_calls: bool = True
    next_message: str = ""

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> Splitter:
        names = frozenset(tool.name for tool in tools) if not self.opening else frozenset()
        return Splitter(
            (self.opening or "[",),
            lambda: PythonicReader(self.opening, self.closing, names),
            reasoning=self.reasoning,
            in_reasoning=in_reasoning,
        )

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """Strings may be written as Python or as JSON writes them, unless a schema says more of
        them than that they are strings.
        """
        calls = " | ".join(f"{write.text(tool.name + '(')} {_arguments_rule(tool, write)}" for tool in tools)
        more = _MORE if parallel else ""
        around = [write.text(self.opening + "["), f"pythonic_call{more}", write.text("]" + self.closing)]
        return f"calls: {' '.join(around)}\npythonic_call: {calls}\nPYTHONIC_STRING: {_STRING}\n"

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """Without an opening: a bracket and the name of a tool open a call, and no text that the
        reader could take for one is left.
        """
        if self.opening:
            return None
        names = "|".join(lark_pattern(tool.name) for tool in tools)
        openings, arguments = "", ""
        for n, tool in enumerate(tools):
            openings += f"before{n}[suffix={json.dumps(f'[{tool.name}(')}]: BEFORE\n"
            arguments += f"arguments{n}: {_arguments_rule(tool, write)}\n"
        first = " | ".join(f"before{n} arguments{n}" for n in range(len(tools)))
        calls = " | ".join(f"{write.text(tool.name + '(')} arguments{n}" for n, tool in enumerate(tools))
        return (
            f"free: TEXT | ({first}){_MORE if parallel else ''} {write.text(']')}\npythonic_call: {calls}\n"
            f"{openings}{arguments}BEFORE: /(?s:.*)/{excluded}\nPYTHONIC_STRING: {_STRING}\n"
            f"TEXT: /(?s:.*)/ & ~/(?s:.*)\\[\\s*({names})\\s*\\((?s:.*)/{excluded}\n"
        )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return f"{self.opening}[{', '.join(map(self._written, calls))}]{self.closing}"

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write_calls([ToolCall("function_name", '{"key_1": "value_1", "key_2": 2}')])
        return (
            "You may call one or more of these functions to assist with the user query:\n\n"
            f"{listed}\n\nCall functions in exactly this form, with Python literals for values:\n{example}"
        )

    def _written(self, call: ToolCall) -> str:
        arguments = arguments_object(call.arguments_json)
        return f"{call.name}({', '.join(f'{key}={self._value(value)}' for key, value in arguments.items())})"

    def _value(self, value: Any) -> str:
        is_json = self.json_objects and isinstance(value, dict)
        return json.dumps(value, ensure_ascii=False) if is_json else python_literal(value)


def python_literal(value: Any) -> str:
    """JSON data as Python writes it, with single quotes."""
    match value:
        case str():
            return "'" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
        case list():
            return f"[{', '.join(map(python_literal, value))}]"
        case dict():
            return f"{{{', '.join(f'{python_literal(key)}: {python_literal(one)}' for key, one in value.items())}}}"
    return repr(value)


_STRING = r"""/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"""
_MORE = ' (", " pythonic_call)*'
_LITERALS = {"boolean": ("True", "False"), "null": ("None",)}


def _arguments_rule(tool: ToolSpec, write: LarkWriter) -> str:
    required: list[str] = []
    optional: list[str] = []
    for key, schema, is_required in properties(tool.parameters):
        (required if is_required else optional).append(_argument_rule(key, schema, tool.parameters, write))
    """Behind the bracket that opens them."""
    return f"{comma_list(required, optional, write.text(', '))} {write.text(')')}"


def _argument_rule(key: str, schema: Any, root: Mapping[str, Any], write: LarkWriter) -> str:
    options = [write.schema(standalone(schema, root))]
    known = resolved(schema, root)
    types = json_types(known, root)
    values = schema_values(known)
    options += [write.text(python_literal(value)) for value in values or () if isinstance(value, str)]
    if types is not None and values is None:
        options += [write.text(word) for name in sorted(types) for word in _LITERALS.get(name, ())]
        if types == {"string"} and set(known) <= {"type", "description", "title", "default"}:
            options.append("PYTHONIC_STRING")
    return f"{write.text(key + '=')} ({' | '.join(options)})"


class PythonicReader:
    """See `CallReader`. A list of calls; `names` are those that it may have, any if there are
    none.
    """

    def __init__(self, opening: str, closing: str, names: frozenset[str]) -> None:
        self._opening, self._closing, self._names = opening, closing, names
        self._at = len(opening)  # all before it is read
        self._stage: _Stage = self._read_list
        self._value: LiteralReader | None = None
        self._n_keys = 0
        self._given = False
        self._end: int | None = None

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        while self._end is None and self._stage(text, out, final):
            pass
        if self._end is None and final:
            if not self._given:
                raise NotACall
            return out, len(text)
        return out, self._end

    # Each stage says whether the next one can be tried with the text that there is.

    def _read_list(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        if begin == len(text):
            return False
        if text[begin] != "[":
            raise NotACall
        self._at, self._stage = begin + 1, self._read_call
        return True

    def _read_call(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        head = _HEAD.match(text, self._at)
        if head is None or (self._names and head[1] not in self._names):
            if head is None and not final and _begun(_HEAD_BEGUN, text, self._at):
                return False
            return self._finish(self._at)
        self._given, self._n_keys = True, 0
        out += [CallStart(head[1]), ArgumentsDelta("{")]
        self._at, self._stage = head.end(), self._read_key
        return True

    def _read_key(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        if text.startswith(")", begin):
            out.append(ArgumentsDelta("}"))
            self._at, self._stage = begin + 1, self._read_behind_call
            return True
        key = _KEY.match(text, self._at)
        if key is None:
            return False if not final and _begun(_KEY_BEGUN, text, self._at) else self._broken(text, final)
        comma = ", " if self._n_keys else ""
        out.append(ArgumentsDelta(f"{comma}{json.dumps(key[1], ensure_ascii=False)}: "))
        self._n_keys += 1
        self._value = LiteralReader(LOOSE_PYTHON, key.end())
        self._stage = self._read_value
        return True

    def _read_value(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        assert self._value is not None
        pieces: list[str] = []
        try:
            self._value.read_into(pieces, text, final=final)
        except BadLiteral:
            return self._finish(self._value.at)
        finally:
            if any(pieces):
                out.append(ArgumentsDelta("".join(pieces)))
        if not self._value.ended:
            return False
        self._at, self._stage = self._value.at, self._read_comma
        return True

    def _read_comma(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        if begin == len(text):
            return False
        if text[begin] not in ",)":
            return self._broken(text, final)
        self._at, self._stage = begin + (text[begin] == ","), self._read_key
        return True

    def _read_behind_call(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        if begin == len(text):
            return False
        if text[begin] == ",":
            self._at, self._stage = begin + 1, self._read_call
            return True
        self._at, self._stage = begin + 1 if text[begin] == "]" else self._at, self._read_closing
        return True

    def _read_closing(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        end = read_closing(text, self._at, self._closing, final=final) if self._closing else self._at
        return False if end is None else self._finish(end)

    def _broken(self, text: str, final: bool) -> bool:
        """What follows belongs to no call; the arguments stay as they are."""
        return self._finish(len(text) if final and _begun(_KEY_BEGUN, text, self._at) else self._at)

    def _finish(self, end: int) -> bool:
        if not self._given:
            raise NotACall
        self._end = end
        return False


_Stage = Callable[[str, list[ReplyPart], bool], bool]


def _begun(pattern: re.Pattern[str], text: str, at: int) -> bool:
    """Whether all that stands from `at` on may become what `pattern` is the beginning of."""
    return len(text) - at < _MAX_HEAD and pattern.fullmatch(text, at) is not None


LLAMA_PYTHONIC = PythonicFormat("llama-pythonic")
"""Llama 3.2 and 4: `[f(a='x', n=3), g()]`, told from text by the names of the tools."""

LFM2 = PythonicFormat(
    "lfm2",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    json_objects=True,
    markers=("<|tool_call_start|>", "<|tool_call_end|>"),
    reasoning=THINK,
)
"""LFM2 and 2.5: `<|tool_call_start|>[f(a='x', n=3)]<|tool_call_end|>`."""
