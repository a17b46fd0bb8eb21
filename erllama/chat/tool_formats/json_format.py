"""Families that write a call as a JSON object with the function's name and its arguments.

Each is a value here or in a file of its own; `JsonFormat` is what they share. See `ToolFormat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter, ToolCall, ToolSpec, lark_pattern
from erllama.chat.tool_formats.json_call import ObjectReader, ObjectShape
from erllama.chat.tool_formats.splitter import FramedReader, Splitter

THINK = ("<think>", "</think>")
_COHERE_TEXT = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """`shape` has the texts around a call, `separator` what stands between several; a list, or
    another group, holds them all between one opening and one closing.

    `layout` are marks around the text of a reply, which are dropped. `parallel`: the family writes
    several calls in a reply. `calls_end_reasoning`: it calls in the midst of a thought, too.
    """

    name: str
    shape: ObjectShape
    separator: str = "\n"
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = THINK
    layout: tuple[str, ...] = ()
    parallel: bool = True
    calls_end_reasoning: bool = False
    next_message: str = ""

    @property
    def opening(self) -> str:
        return self.shape.opening.rstrip()

    @property
    def groups_calls(self) -> bool:
        return self.shape.several

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> Splitter:
        names = frozenset(tool.name for tool in tools)
        return Splitter(
            (*self.layout, *self.shape.openings),
            lambda: FramedReader(self.layout, ObjectReader(self.shape, names)),
            reasoning=self.reasoning,
            in_reasoning=in_reasoning,
            only_first=self.shape.bare,
            calls_end_reasoning=self.calls_end_reasoning,
        )

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        shape = self.shape
        begin, end, call = write.text(shape.opening), write.text(shape.closing), write.schema(self._call_schema(tools))
        several = parallel and self.parallel
        if shape.in_list:
            bracket = "" if shape.opening.endswith("[") else '"[" '
            more = f' (SPACE "," SPACE {call})*' if several else ""
            return f'calls: {begin} {bracket}SPACE {call}{more} SPACE "]" {end}\nSPACE: /[ \\n]{{0,8}}/\n'
        if shape.joint:
            more = f" ({write.text(shape.joint)} {call})*" if several else ""
            return f"calls: {begin} {call}{more} {end}\n"
        more = f" ({write.text(self.separator)} {write.text(shape.opening)} {call} {end})*" if several else ""
        return f"calls: {begin} {call} {end}{more}\n"

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        """For a bare object, which a reply begins with: `{` and the key of the name open a call, and
        no text that the reader could take for one is left.
        """
        shape = self.shape
        if not shape.bare:
            return None
        (name_key,), begin = shape.name_keys, r"\s*\{\s*"
        tags = [write.text(tag) for tag in shape.other_openings]
        plain = [lark_pattern(tag) for tag, item in zip(shape.other_openings, tags, strict=True) if "<[" not in item]
        begin = rf"\s*({'|'.join(plain)})?{begin}" if plain else begin
        opening = rf'{begin}("type"\s*:\s*"function"\s*,\s*)?"{name_key}"'
        names = "|".join(lark_pattern(tool.name) for tool in tools)
        texts = (
            f"{opening}(?s:.*)",
            rf'{begin}"({"|".join(shape.arguments_keys)})"(?s:.*)',
            rf'{begin}"({"|".join(shape.other_keys)})"(?s:.*)"{name_key}"\s*:\s*"({names})"(?s:.*)',
        )
        controls = "".join(f" | {item} (TEXT | OPENING call)" for item in tags if "<[" in item)
        calls = [
            f"{write.text(json.dumps(tool.name))} COMMA {write.text(json.dumps(shape.arguments_keys[0]))} COLON "
            f"{write.schema({'type': 'object'} | dict(tool.parameters))} CLOSING"
            for tool in tools
        ]
        return (
            f"free: TEXT | OPENING call{controls}\ncall: COLON ({' | '.join(calls)})\nOPENING: /{opening}/\n"
            f"TEXT: /(?s:.*)/{''.join(f' & ~/{text}/' for text in texts)}{excluded}\n"
            "COLON: /[ \\n]{0,4}:[ \\n]{0,4}/\nCOMMA: /[ \\n]{0,4},[ \\n]{0,4}/\nCLOSING: /[ \\n]{0,4}\\}/\n"
        )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        shape = self.shape
        bodies = [self._written(call, number) for number, call in enumerate(calls)]
        if shape.in_list:
            return f"{shape.opening.removesuffix('[')}[{', '.join(bodies)}]{shape.closing}"
        if shape.joint:
            return shape.opening + shape.joint.join(bodies) + shape.closing
        return self.separator.join(shape.opening + body + shape.closing for body in bodies)

    def _written(self, call: ToolCall, number: int) -> str:
        shape, name = self.shape, json.dumps(call.name)
        if not shape.name_keys:
            return f"{{{name}: {call.arguments_json}}}"
        body = f'"{shape.name_keys[0]}": {name}, "{shape.arguments_keys[0]}": {call.arguments_json}'
        if not shape.id_key:
            return f"{{{body}}}"
        written_id = f'"{shape.id_key}": "{number:0{shape.id_width}}"'
        return f"{{{written_id}, {body}}}" if shape.id_first else f"{{{body}, {written_id}}}"

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """As Qwen 2.5's template tells it, with this family's form of a call."""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write_calls([ToolCall("<function-name>", "<args-json-object>")])
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>"
            f"\n\nFor each function call, return a json object with function name and arguments like this:\n{example}"
        )

    def _call_schema(self, tools: Sequence[ToolSpec]) -> dict[str, Any]:
        """The JSON schema of one call of one of the tools."""
        variants = [self._variant(tool.name, {"$ref": f"#/$defs/tool{index}"}) for index, tool in enumerate(tools)]
        definitions = {
            f"tool{index}": rebased({"type": "object"} | dict(tool.parameters), f"#/$defs/tool{index}")
            for index, tool in enumerate(tools)
        }
        return (variants[0] if len(variants) == 1 else {"anyOf": variants}) | {"$defs": definitions}

    def _variant(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        shape = self.shape
        properties: dict[str, Any] = {name: arguments}
        if shape.name_keys:
            properties = {shape.name_keys[0]: {"const": name}, shape.arguments_keys[0]: arguments}
        if shape.id_key:
            written_id = {shape.id_key: {"type": "string", "pattern": f"^[0-9A-Za-z]{{{shape.id_width},9}}$"}}
            properties = written_id | properties if shape.id_first else properties | written_id
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def rebased(schema: Any, base: str) -> Any:
    """The schema with its own references (`#/...`) pointing to where it now hangs."""
    if isinstance(schema, dict):
        return {
            key: base + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else rebased(value, base)
            for key, value in schema.items()
        }
    return [rebased(item, base) for item in schema] if isinstance(schema, list) else schema


HERMES = JsonFormat("hermes", ObjectShape("<tool_call>\n", "\n</tool_call>"))
"""Hermes, Qwen 2.5 and 3, the demo model; and whatever template knows no tools."""

APRIEL = JsonFormat(
    "apriel",
    ObjectShape("<tool_calls>", "</tool_calls>", in_list=True),
    reasoning=("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
)
"""Apriel 1.5 and 1.6: `<tool_calls>[{"name": "f", "arguments": {...}}]</tool_calls>`. The mark
`[END FINAL RESPONSE]`, which 1.5 may write behind its answer, is left in the text.
"""

MINIMAX_M1 = JsonFormat("minimax-m1", ObjectShape("<tool_calls>\n", "\n</tool_calls>", joint="\n"))
"""MiniMax M1: the objects stand on lines of their own between `<tool_calls>` and `</tool_calls>`."""

COHERE = JsonFormat(
    "cohere",
    ObjectShape(
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        name_keys=("tool_name",),
        arguments_keys=("parameters",),
        in_list=True,
        id_key="tool_call_id",
        id_first=True,
    ),
    markers=("<|START_ACTION|>", "<|END_ACTION|>", *_COHERE_TEXT),
    reasoning=("<|START_THINKING|>", "<|END_THINKING|>"),
    layout=_COHERE_TEXT,
)
"""Command R7B and later:
`<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {...}}]<|END_ACTION|>`, or
the text of the reply between marks of its own.
"""

COMMAND_R_PLUS = JsonFormat(
    "command-r-plus",
    ObjectShape(
        "Action:\n```json\n",
        "```",
        name_keys=("tool_name",),
        arguments_keys=("parameters",),
        in_list=True,
        other_openings=("Action: ```json", "Action:```json"),
    ),
    reasoning=None,
)
"""Command R and R+: `Action:` and a list `[{"tool_name": "f", "parameters": {...}}]` as a block of
JSON. What calls no tool is a call of their tool `directly-answer`, if they were told of it.
"""

NEMOTRON_NANO_V2 = JsonFormat(
    "nemotron-nano-v2",
    ObjectShape("<TOOLCALL>", "</TOOLCALL>", in_list=True),
    markers=("<TOOLCALL>", "</TOOLCALL>"),
)
"""Nemotron Nano v2: `<TOOLCALL>[{"name": "f", "arguments": {...}}]</TOOLCALL>`."""

FIREFUNCTION = JsonFormat("firefunction", ObjectShape(" functools[", "", in_list=True), reasoning=None)
"""FireFunction v2: ` functools[{"name": "f", "arguments": {...}}]`."""

GIGACHAT_3 = JsonFormat(
    "gigachat-3",
    ObjectShape("<|message_sep|>\n\nfunction call<|role_sep|>\n", ""),
    separator="",
    markers=("<|message_sep|>", "<|role_sep|>"),
    reasoning=None,
    parallel=False,
)
"""GigaChat 3: a message of the role `function call`, `{"name": "f", "arguments": {...}}`."""

GIGACHAT_3_1 = JsonFormat(
    "gigachat-3.1",
    ObjectShape("<|function_call|>", ""),
    separator="",
    markers=("<|function_call|>",),
    reasoning=None,
    parallel=False,
)
"""GigaChat 3.1: `<|function_call|>{"name": "f", "arguments": {...}}`."""

MISTRAL_NEMO = JsonFormat(
    "mistral-nemo",
    ObjectShape("[TOOL_CALLS]", "", in_list=True, id_key="id", id_width=9),
    markers=("[TOOL_CALLS]",),
    reasoning=None,
)
"""Mistral up to the tokenizer's version 7:
`[TOOL_CALLS][{"name": "f", "arguments": {...}, "id": "123456789"}]`.
"""

GRANITE_3 = JsonFormat(
    "granite-3", ObjectShape("<|tool_call|>", "", in_list=True), markers=("<|tool_call|>",), reasoning=THINK
)
"""Granite 3: `<|tool_call|>[{"name": "f", "arguments": {...}}]`."""

PHI_4_MINI = JsonFormat(
    "phi-4-mini",
    ObjectShape("<|tool_call|>", "<|/tool_call|>", in_list=True),
    markers=("<|tool_call|>", "<|/tool_call|>"),
    reasoning=None,
)
"""Phi 4 mini: `<|tool_call|>[{"name": "f", "arguments": {...}}]<|/tool_call|>`."""

APERTUS = JsonFormat(
    "apertus",
    ObjectShape("<|tools_prefix|>", "<|tools_suffix|>", name_keys=(), in_list=True),
    markers=("<|tools_prefix|>", "<|tools_suffix|>"),
    reasoning=("<|inner_prefix|>", "<|inner_suffix|>"),
    calls_end_reasoning=True,
)
"""Apertus: `<|tools_prefix|>[{"f": {...}}]<|tools_suffix|>`."""

BARE_JSON = JsonFormat(
    "json",
    ObjectShape("", "", arguments_keys=("arguments",), joint="\n", bare=True),
    parallel=False,
)
"""A reply that begins with `{"name": "f", "arguments": {...}}`: the last resort."""

LLAMA_3 = JsonFormat(
    "llama-3",
    ObjectShape(
        "", "", arguments_keys=("parameters", "arguments"), joint="; ", other_openings=("<|python_tag|>",), bare=True
    ),
    markers=("<|python_tag|>",),
    reasoning=None,
    parallel=False,
)
"""Llama 3.1 to 3.3: a reply that begins with `{"name": "f", "parameters": {...}}`, sometimes behind
`<|python_tag|>`. Their calls of built-in tools, which are Python, are text.
"""
