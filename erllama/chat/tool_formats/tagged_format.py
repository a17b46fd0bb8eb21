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
from erllama.chat.tool_formats.schema_types import arguments_object
from erllama.chat.tool_formats.splitter import FramedReader, Splitter
from erllama.chat.tool_formats.tagged_call import TaggedGrammar, TaggedReader, TaggedShape, type_written
from erllama.chat.tool_formats.tagged_value import nested_text
from erllama.grammar.json_schema.root import json_type


@dataclass(frozen=True, slots=True)
class TaggedFormat:
    """`separator` stands between several calls, or several sections. `layout` are marks around the
    text of a reply, which are dropped.
    """

    name: str
    shape: TaggedShape
    separator: str = "\n"
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = THINK
    layout: tuple[str, ...] = ()
    next_message: str = ""

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
        begin, end = self.around
        grouped = self.shape.grouped
        grammar = TaggedGrammar(self.shape, write, *(("", "") if grouped else (begin, end)))
        one = " | ".join(grammar.call(tool) for tool in tools)
        more = f" ({write.text(self.separator) + ' ' if self.separator else ''}tagged_call)*" if parallel else ""
        calls = f"tagged_call{more}"
        if grouped:
            calls = f"{write.text(begin)} {calls} {write.text(end)}"
        return f"calls: {calls}\ntagged_call: {one}\n{grammar.rules()}"

    def free_rules(
        self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool, excluded: str = ""
    ) -> str | None:
        return None

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        begin, end = self.around
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

    @property
    def around(self) -> tuple[str, str]:
        """The texts around all calls, or around each."""
        return self.shape.section or ("", "")

    def _written(self, call: ToolCall, number: int) -> str:
        shape = self.shape
        arguments = "".join(self._written_argument(*item) for item in arguments_object(call.arguments_json).items())
        behind = shape.call[1].replace("{n}", str(number))
        return shape.call[0] + shape.attribute(call.name) + behind + arguments + shape.call_end

    def _written_argument(self, key: str, value: Any) -> str:
        shape = self.shape
        if shape.mark:
            return shape.key[0] + key + shape.key[1] + nested_text(shape.mark, value) + shape.closing(key)
        if isinstance(value, str):
            behind, written = shape.key[1], shape.text(value)
        else:
            closing = shape.value_end.strip()
            written = json.dumps(value, ensure_ascii=False).replace(closing, f"\\u{ord(closing[0]):04x}{closing[1:]}")
            behind = (shape.json_key or shape.key[1]).replace("{type}", type_written(json_type(value)))
            written = shape.padding + written + shape.padding
        return shape.key[0] + shape.attribute(key) + behind + written + shape.value_end


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

_M3 = "]<]minimax[>["
MINIMAX_M3 = TaggedFormat(
    "minimax-m3",
    TaggedShape(
        section=(f"{_M3}<tool_call>\n", f"\n{_M3}</tool_call>"),
        grouped=True,
        call=(f'{_M3}<invoke name="', '">'),
        call_end=f"{_M3}</invoke>",
        key=(f"{_M3}<", ">"),
        value_end=f"{_M3}</{{key}}>",
        mark=_M3,
    ),
    markers=(_M3, "<tool_call>", "</tool_call>"),
    reasoning=("<mm:think>", "</mm:think>"),
    layout=("</mm:think>",),
)
"""MiniMax M3: `<tool_call>\\n<invoke name="f"><k>v</k></invoke>\\n</tool_call>` with its mark before each
tag; members of objects and lists, which are each an `<item>`, have tags of their own. A reply
without reasoning may begin with the end of it.
"""

TAGGED_FORMATS = (
    QWEN3_CODER, STEP, SEED, GLM, GLM_FLAT, LING, MINIMAX_M2, DEEPSEEK_V3_2, DEEPSEEK_V4, MINICPM5, HUNYUAN3,
    KIMI_K3, MINIMAX_M3,
)  # fmt: skip
