"""Gemma 4's calls: `<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,n:3}<tool_call|>`.

Strings stand between `<|"|>`, in which nothing is escaped; keys stand bare. A string that holds
`<|"|>` itself is written as JSON writes it, which is understood, too. See `ToolFormat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, LarkWriter, ReplyPart, ToolCall, ToolSpec
from erllama.chat.tool_formats.json_call import read_closing
from erllama.chat.tool_formats.literal import PYTHON, BadLiteral, Dialect, LiteralReader
from erllama.chat.tool_formats.schema_types import (
    SchemaGrammar,
    arguments_object,
    comma_list,
    properties,
    text_until,
)
from erllama.chat.tool_formats.splitter import NotACall, Splitter

_OPENING, _CLOSING, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = re.compile(re.escape(_OPENING) + r"\s*call:\s*([\w.:/$-]+)\s*(?=\{)")
_MAX_HEAD = 512  # characters up to the arguments; more is text
_BARE_KEY = re.compile(r"""[^\s:,{}\[\]()"'<>]+""")
_DIALECT = Dialect((_QUOTE, '"'), PYTHON.words, raw=(_QUOTE,), bare_key=_BARE_KEY)


class GemmaFormat:
    name = "gemma-4"
    opening = _OPENING
    markers = (_OPENING, _CLOSING, _QUOTE, "<|channel>", "<channel|>")
    reasoning = ("<|channel>thought\n", "<channel|>")
    layout = ()
    groups_calls = False
    next_message = ""

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> Splitter:
        return Splitter((_OPENING,), GemmaReader, reasoning=self.reasoning, in_reasoning=in_reasoning)

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """Patterns and lengths that a schema demands of a string are not enforced."""
        grammar = _Grammar(write)
        calls = " | ".join(grammar.call(tool) for tool in tools)
        opening = write.text(_OPENING + "call:")
        return f"calls: gemma_call{'+' if parallel else ''}\ngemma_call: {opening} ({calls})\n{grammar.rules()}"

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        return None

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return "".join(
            f"{_OPENING}call:{call.name}{gemma_literal(arguments_object(call.arguments_json))}{_CLOSING}"
            for call in calls
        )

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write_calls([ToolCall("function_name", '{"key_1": "value_1", "key_2": 2}')])
        return (
            "You may call one or more of these functions to assist with the user query:\n\n"
            f"{listed}\n\nCall a function in exactly this form, with texts between {_QUOTE}:\n{example}"
        )


def gemma_literal(value: Any) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False) if _QUOTE in value else _QUOTE + value + _QUOTE
        case list():
            return f"[{','.join(map(gemma_literal, value))}]"
        case dict():
            return f"{{{','.join(f'{_key(key)}:{gemma_literal(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else gemma_literal(key)


class GemmaReader:
    """See `CallReader`. One call; the next one has an opening of its own."""

    def __init__(self) -> None:
        self._arguments: LiteralReader | None = None
        self._is_broken = False

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        if self._arguments is None:
            head = _HEAD.match(text)
            if head is None:
                if final or len(text) > _MAX_HEAD:
                    raise NotACall
                return out, None
            out.append(CallStart(head[1]))
            self._arguments = LiteralReader(_DIALECT, head.end())
        self._read_arguments(self._arguments, out, text, final)
        if self._is_broken:
            return out, self._arguments.at
        if not self._arguments.ended:
            return out, len(text) if final else None
        return out, read_closing(text, self._arguments.at, _CLOSING, final=final)

    def _read_arguments(self, reader: LiteralReader, out: list[ReplyPart], text: str, final: bool) -> None:
        pieces: list[str] = []
        try:
            reader.read_into(pieces, text, final=final)
        except BadLiteral:
            self._is_broken = True
        if any(pieces):
            out.append(ArgumentsDelta("".join(pieces)))


class _Grammar(SchemaGrammar):
    def __init__(self, write: LarkWriter) -> None:
        super().__init__(write)
        self._number: str | None = None  # the rule of any number, once something refers to any value

    def rules(self) -> str:
        quote, plain = self.write.text(_QUOTE), json.dumps(_QUOTE)
        end = quote if quote == plain else f"({quote} | {plain})"  # spelled out, it is read as the token is
        referred = self.referred_rules()
        string = f"{referred}gemma_string: {quote} GEMMA_PIECE* {end}\nGEMMA_PIECE: {text_until(_QUOTE)}\n"
        if self._number is None:
            return string
        return string + (
            f'gemma_value: gemma_string | {self._number} | "true" | "false" | "null" | gemma_object | gemma_list\n'
            'gemma_object: "{" (gemma_pair ("," gemma_pair)*)? "}"\n'
            'gemma_list: "[" (gemma_value ("," gemma_value)*)? "]"\n'
            'gemma_pair: GEMMA_KEY ":" gemma_value\nGEMMA_KEY: /[A-Za-z_][A-Za-z0-9_]*/\n'
        )

    def call(self, tool: ToolSpec) -> str:
        """Behind its opening."""
        self.begin(tool.parameters)
        arguments = self._members(tool.parameters, 0)
        return f"{self.write.text(tool.name + '{')} {arguments} {self.write.text('}' + _CLOSING)}"

    def _members(self, schema: Mapping[str, Any], depth: int) -> str:
        required: list[str] = []
        optional: list[str] = []
        for key, member, is_required in properties(schema):
            rule = f"{self.write.text(_key(key) + ':')} {self.value(member, depth)}"
            (required if is_required else optional).append(rule)
        return comma_list(required, optional, '","')

    def constant(self, value: Any) -> str:
        return self.write.text(gemma_literal(value))

    def anything(self, schema: Mapping[str, Any]) -> str:
        return self._any("gemma_value")

    def typed(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        match name:
            case "string":
                return "gemma_string"
            case "array":
                return self._list(schema, depth)
            case "object" if schema.get("properties") or schema.get("required"):
                return f'"{{" {self._members(schema, depth)} "}}"'
            case "object":
                return self._any("gemma_object")
        return self.write.schema(self.alone(schema) | {"type": name})

    def _list(self, schema: Mapping[str, Any], depth: int) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        item = self.value(schema.get("items", {}), depth)
        items = f'{item} ("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {items if least else f"({items})?"} "]"'

    def _any(self, rule: str) -> str:
        self._number = self._number or self.write.schema({"type": "number"})
        return rule


GEMMA4 = GemmaFormat()
"""Gemma 4."""
