"""Families that write the arguments of a call between tags. Each is a value; `TaggedFormat` is what
they share. See `ToolFormat`.

What none of them can express: a text in which the tag that ends it occurs; a key with a quote, an
angle bracket or a line break in it. Where nothing says that an argument is a text, one that reads as
JSON is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter, ToolCall, ToolSpec
from erllama.chat.tool_formats.json_format import THINK
from erllama.chat.tool_formats.schema_types import (
    Types,
    allows,
    arguments_object,
    json_type,
    json_types,
    lark_pattern,
    properties,
    resolved,
    schema_values,
    standalone,
)
from erllama.chat.tool_formats.splitter import FramedReader, Splitter
from erllama.chat.tool_formats.tagged_call import TaggedReader, TaggedShape

_TEXT, _TEXT_OR_NULL = frozenset({"string"}), frozenset({"string", "null"})
_JSON_TYPES = ("array", "boolean", "null", "number", "object")


@dataclass(frozen=True, slots=True)
class TaggedFormat:
    """`separator` stands between several calls, or several sections. `layout` are marks around the
    text of a reply, which are dropped, and may stand before calls.
    """

    name: str
    shape: TaggedShape
    separator: str = "\n"
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = THINK
    layout: tuple[str, ...] = ()

    @property
    def opening(self) -> str:
        return self.shape.openings[0]

    @property
    def groups_calls(self) -> bool:
        return self.shape.grouped

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> Splitter:
        return Splitter(
            (*self.layout, *self.shape.openings),
            lambda: FramedReader(self.layout, TaggedReader(self.shape, tools)),
            reasoning=self.reasoning,
            in_reasoning=in_reasoning,
        )

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        """Patterns and lengths that a schema demands of a text are not enforced: between tags,
        texts stand as they are.
        """
        begin, end = self._around()
        grouped = self.shape.grouped
        grammar = _Grammar(self.shape, write, *(("", "") if grouped else (begin, end)))
        one = f"({' | '.join(grammar.call(tool) for tool in tools)})"
        more = f" ({write.text(self.separator) + ' ' if self.separator else ''}{one})*" if parallel else ""
        calls = f"{one}{more}"
        if grouped:
            calls = f"{write.text(begin)} {calls} {write.text(end)}"
        marks = f"({' | '.join(map(write.text, self.layout))})* " if self.layout else ""
        return f"calls: {marks}{calls}\n" + grammar.rules()

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        begin, end = self._around()
        if self.shape.grouped:
            return begin + self.separator.join(map(self._written, calls, count(1))) + end
        return self.separator.join(begin + self._written(call, 1) + end for call in calls)

    def system_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write_calls([ToolCall("function_name", '{"key_1": "value_1", "key_2": "value_2"}')])
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>"
            f"\n\nCall a function in exactly this form; texts stand as they are, all other values as JSON:\n{example}"
        )

    def _around(self) -> tuple[str, str]:
        return self.shape.section or ("", "")

    def _written(self, call: ToolCall, number: int) -> str:
        shape = self.shape
        arguments = "".join(self._written_argument(*item) for item in arguments_object(call.arguments_json).items())
        behind = shape.call[1].replace("{n}", str(number))
        return shape.call[0] + shape.attribute(call.name) + behind + arguments + shape.call_end

    def _written_argument(self, key: str, value: Any) -> str:
        shape = self.shape
        if isinstance(value, str):
            begin, end = shape.quotes if shape.quotes and any(char in value for char in shape.quoted) else ("", "")
            behind, written = shape.key[1], begin + shape.padding + value + shape.padding + end
        else:
            closing = shape.value_end.strip()
            written = json.dumps(value, ensure_ascii=False).replace(closing, f"\\u{ord(closing[0]):04x}{closing[1:]}")
            behind = (shape.json_key or shape.key[1]).replace("{type}", _type_written(json_type(value)))
            written = shape.padding + written + shape.padding
        return shape.key[0] + shape.attribute(key) + behind + written + shape.value_end


def _type_written(name: str) -> str:
    return "number" if name == "integer" else name


class _Grammar:
    """Writes the calls of one reply as Lark, each between `begin` and `end`. The texts that all of
    them share are rules, so that many tools fit into a grammar.
    """

    def __init__(self, shape: TaggedShape, write: LarkWriter, begin: str, end: str) -> None:
        self._shape = shape
        self._write = write
        self._begin, self._end = begin, end
        self._tags: dict[str, str] = {}  # rules of what stands before JSON

    def rules(self) -> str:
        shape, text = self._shape, self._write.text
        closing = shape.value_end.strip()
        items, plain = text(closing), json.dumps(closing, ensure_ascii=False)
        layout = text(shape.value_end.removeprefix(closing))
        # the tag spelled out is read as the tag is, so that a text must not hold it
        texts = f"any_text: spelled_text {layout}" + (f" | TEXT {items} {layout}" if items != plain else "")
        bodies = {
            "call_tag": text(self._begin + shape.call[0]),
            "call_end": text(shape.call_end + self._end),
            "key_tag": text(shape.key[0]),
            "text_tag": text(shape.key[1] + shape.padding),
            "json_end": text(shape.padding + shape.value_end),
            f"spelled_text[suffix={plain}]": "/(?s:.*)/",
        }
        if items != plain:
            bodies["TEXT"] = f"/(?s:.*)/ & ~/(?s:.*){lark_pattern(closing)}(?s:.*)/"
        bodies |= self._tags
        if "{n}" in shape.call[1]:
            bodies["NUMBER"] = "/[1-9][0-9]{0,3}/"
        return "".join(f"{name}: {body}\n" for name, body in bodies.items()) + texts + "\n"

    def call(self, tool: ToolSpec) -> str:
        shape, write = self._shape, self._write
        name, *behind = (shape.attribute(tool.name) + shape.call[1]).split("{n}")
        items = ["call_tag", write.text(name), *(f"NUMBER {write.text(one)}" for one in behind)]
        for key, schema, required in properties(tool.parameters):
            argument = f"key_tag {write.text(shape.attribute(key))} {self._value(schema, tool.parameters)}"
            items.append(argument if required else f"({argument})?")
        return " ".join([*items, "call_end"])

    def _value(self, schema: Any, root: Mapping[str, Any]) -> str:
        """A text, JSON, or either where the tag of the key says which it is."""
        types, values = json_types(schema, root), schema_values(resolved(schema, root))
        says = self._shape.json_key is not None
        may_be_text = allows(types, "string") if says else types in (_TEXT, _TEXT_OR_NULL)
        if not may_be_text or (values is not None and types != _TEXT and not says):
            return self._json(schema, root, types)
        text = self._text(values)
        others = frozenset(types or _JSON_TYPES) - _TEXT
        if not says or not others:
            return text or self._json(schema, root, types)
        json_value = self._json({"allOf": [schema, {"type": sorted(others)}]}, root, others)
        return f"({text} | {json_value})" if text else json_value

    def _text(self, values: Sequence[Any] | None) -> str:
        """Any text, or one of those among `values`; "" if there is none."""
        shape, closing = self._shape, self._shape.value_end.strip()
        if values is None:
            return "text_tag any_text"
        texts = [value for value in values if isinstance(value, str) and closing not in value]
        written = [self._write.text(one + shape.padding + shape.value_end) for one in texts]
        return f"text_tag ({' | '.join(written)})" if written else ""

    def _json(self, schema: Any, root: Mapping[str, Any], types: Types) -> str:
        return f"{self._json_tag(types)} {self._write.schema(standalone(schema, root))} json_end"

    def _json_tag(self, types: Types) -> str:
        """The rule of what stands before a value in JSON, which may name its type."""
        shape, text = self._shape, self._write.text
        before, slot, behind = (shape.json_key or shape.key[1]).partition("{type}")
        names = sorted({_type_written(name) for name in types or _JSON_TYPES}) if slot else []
        tag = f"json_tag_{'_'.join(names)}" if slot else "json_tag"
        choice = [f"({' | '.join(map(json.dumps, names))})"] if slot else []
        self._tags[tag] = " ".join([text(before), *choice, text(behind + shape.padding)])
        return tag


_QWEN = TaggedShape(
    section=("<tool_call>\n", "\n</tool_call>"),
    call=("<function=", ">\n"),
    call_end="</function>",
    key=("<parameter=", ">"),
    padding="\n",
    value_end="</parameter>\n",
)
QWEN3_CODER = TaggedFormat("qwen3-coder", _QWEN, markers=("<tool_call>", "</tool_call>"))
"""Qwen3-Coder, Qwen 3.5, Nemotron 3:
`<tool_call>\\n<function=f>\\n<parameter=k>\\nv\\n</parameter>\\n</function>\\n</tool_call>`.
"""
STEP = TaggedFormat("step-3.5", _QWEN, separator="", markers=QWEN3_CODER.markers)
"""StepFun 3.5: as Qwen3-Coder, with nothing between calls."""

SEED = TaggedFormat(
    "seed-oss",
    TaggedShape(
        section=("<seed:tool_call>\n", "\n</seed:tool_call>"),
        call=("<function=", ">\n"),
        call_end="</function>",
        key=("<parameter=", ">"),
        value_end="</parameter>\n",
    ),
    markers=("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
    reasoning=("<seed:think>", "</seed:think>"),
)
"""Seed-OSS: `<seed:tool_call>\\n<function=f>\\n<parameter=k>v</parameter>\\n</function>` and
`\\n</seed:tool_call>`.
"""

_GLM_MARKERS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
GLM = TaggedFormat(
    "glm-4.5",
    TaggedShape(
        call=("<tool_call>", "\n"),
        call_end="</tool_call>",
        key=("<arg_key>", "</arg_key>\n<arg_value>"),
        value_end="</arg_value>\n",
    ),
    markers=_GLM_MARKERS,
)
"""GLM 4.5 and 4.6, Laguna XS:
`<tool_call>f\\n<arg_key>k</arg_key>\\n<arg_value>v</arg_value>\\n</tool_call>`.
"""
GLM_FLAT = TaggedFormat(
    "glm-4.7",
    TaggedShape(
        call=("<tool_call>", ""),
        call_end="</tool_call>",
        key=("<arg_key>", "</arg_key><arg_value>"),
        value_end="</arg_value>",
    ),
    separator="",
    markers=_GLM_MARKERS,
)
"""GLM 4.7, Laguna S, Spark 2.5: GLM 4.5's tags without line breaks."""
LING = TaggedFormat(
    "ling-3",
    TaggedShape(
        call=("<tool_call>", "\n"),
        call_end="\n</tool_call>",
        key=("<arg_key>", "</arg_key>\n<arg_value>"),
        value_end="</arg_value>",
    ),
    markers=_GLM_MARKERS,
)
"""Ling 3: GLM 4.5's tags with line breaks in other places."""

MINIMAX_M2 = TaggedFormat(
    "minimax-m2",
    TaggedShape(
        section=("<minimax:tool_call>\n", "\n</minimax:tool_call>"),
        grouped=True,
        call=('<invoke name="', '">\n'),
        call_end="</invoke>",
        key=('<parameter name="', '">'),
        value_end="</parameter>\n",
    ),
    markers=("<minimax:tool_call>", "</minimax:tool_call>"),
)
"""MiniMax M2: `<invoke name="f">\\n<parameter name="k">v</parameter>\\n</invoke>`, all of them between
`<minimax:tool_call>\\n` and `\\n</minimax:tool_call>`.
"""


_DSML = "\uff5cDSML\uff5c"  # between the vertical bars that DeepSeek's control tokens have


def _dsml(name: str, section: str) -> TaggedFormat:
    shape = TaggedShape(
        section=(f"<{_DSML}{section}>\n", f"\n</{_DSML}{section}>"),
        grouped=True,
        call=(f'<{_DSML}invoke name="', '">\n'),
        call_end=f"</{_DSML}invoke>",
        key=(f'<{_DSML}parameter name="', '" string="true">'),
        json_key='" string="false">',
        value_end=f"</{_DSML}parameter>\n",
    )
    return TaggedFormat(name, shape, markers=(_DSML,))


DEEPSEEK_V3_2 = _dsml("deepseek-v3.2", "function_calls")
"""DeepSeek V3.2: `<invoke name="f">\\n<parameter name="k" string="true">v</parameter>\\n</invoke>` in
`<function_calls>`, with `DSML` before each tag's name. `string`: a text, or JSON.
"""
DEEPSEEK_V4 = _dsml("deepseek-v4", "tool_calls")
"""DeepSeek V4: as V3.2, with `tool_calls` around the calls."""

MINICPM5 = TaggedFormat(
    "minicpm5",
    TaggedShape(
        call=('<function name="', '">'),
        call_end="</function>",
        key=('<param name="', '">'),
        value_end="</param>",
        quotes=("<![CDATA[", "]]>"),
        quoted="<&\n",
    ),
    markers=("<function", "</function>", "<param", "</param>"),
)
"""MiniCPM 5: `<function name="f"><param name="k">v</param></function>`; a text with `<`, `&` or a
line break in it stands in `<![CDATA[` and `]]>`.
"""

HUNYUAN3 = TaggedFormat(
    "hunyuan-3",
    TaggedShape(
        section=("<tool_calls:opensource>\n", "\n</tool_calls:opensource>"),
        grouped=True,
        call=("<tool_call:opensource>", "<tool_sep:opensource>\n"),
        call_end="</tool_call:opensource>",
        key=("<arg_key:opensource>", "</arg_key:opensource>\n<arg_value:opensource>"),
        value_end="</arg_value:opensource>\n",
    ),
    markers=tuple(
        f"<{slash}{tag}:opensource>"
        for tag in ("tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value", "think")
        for slash in ("", "/")
        if (tag, slash) != ("tool_sep", "/")
    ),
    reasoning=("<think:opensource>", "</think:opensource>"),
)
"""Hunyuan 3: `<tool_calls:opensource>\\n<tool_call:opensource>f<tool_sep:opensource>\\n`, GLM's
tags for arguments with `:opensource` in each.
"""

KIMI_K3 = TaggedFormat(
    "kimi-k3",
    TaggedShape(
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        grouped=True,
        call=('<|open|>call tool="', '" index="{n}"<|sep|>'),
        call_end="<|close|>call<|sep|>",
        key=('<|open|>argument key="', '" type="string"<|sep|>'),
        json_key='" type="{type}"<|sep|>',
        value_end="<|close|>argument<|sep|>",
        escaped=True,
        whole=('<|open|>json type="object"<|sep|>', "<|close|>json<|sep|>"),
    ),
    separator="",
    markers=("<|open|>", "<|close|>", "<|sep|>"),
    reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    layout=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
)
"""Kimi K3: `<|open|>call tool="f" index="1"<|sep|>` and for each argument
`<|open|>argument key="k" type="string"<|sep|>v<|close|>argument<|sep|>`, all calls in
`<|open|>tools<|sep|>`; the text of the reply in `<|open|>response<|sep|>`. Each `<|open|>` has its
`<|close|>`.
"""

TAGGED_FORMATS = (
    QWEN3_CODER, STEP, SEED, GLM, GLM_FLAT, LING, MINIMAX_M2, DEEPSEEK_V3_2, DEEPSEEK_V4, MINICPM5, HUNYUAN3,
    KIMI_K3,
)  # fmt: skip
