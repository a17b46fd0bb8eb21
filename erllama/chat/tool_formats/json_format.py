"""Families that write a call as a JSON object with the function's name and its arguments.

Each is a value here or in a file of its own; `JsonFormat` is what they share. See `ToolFormat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter, ToolCall, ToolSpec
from erllama.chat.tool_formats.json_call import ObjectReader, ObjectShape
from erllama.chat.tool_formats.splitter import Splitter

THINK = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """`shape` has the texts around a call, `separator` what stands between several; a list holds
    them all between one opening and one closing.
    """

    name: str
    shape: ObjectShape
    separator: str = "\n"
    markers: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = THINK

    @property
    def opening(self) -> str:
        return self.shape.opening.rstrip()

    @property
    def groups_calls(self) -> bool:
        return self.shape.in_list

    def splitter(self, tools: Sequence[ToolSpec] = (), *, in_reasoning: bool = False) -> Splitter:
        return Splitter(
            (self.opening,), lambda: ObjectReader(self.shape), reasoning=self.reasoning, in_reasoning=in_reasoning
        )

    def calls_rules(self, tools: Sequence[ToolSpec], write: LarkWriter, *, parallel: bool) -> str:
        schema = self._call_schema(tools)
        begin, end = write.text(self.shape.opening), write.text(self.shape.closing)
        if self.shape.in_list:
            listed = {"type": "array", "minItems": 1, "items": schema} | ({} if parallel else {"maxItems": 1})
            return f"calls: {begin} {write.schema(_lifted(listed))} {end}\n"
        one = f"{begin} {write.schema(schema)} {end}"
        more = f" ({write.text(self.separator)} {one})*" if parallel else ""
        return f"calls: {one}{more}\n"

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        shape = self.shape
        name, arguments = shape.name_keys[0], shape.arguments_keys[0]
        bodies = [f'{{"{name}": {json.dumps(one.name)}, "{arguments}": {one.arguments_json}}}' for one in calls]
        if shape.in_list:
            return f"{shape.opening}[{', '.join(bodies)}]{shape.closing}"
        return self.separator.join(shape.opening + body + shape.closing for body in bodies)

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
        name, arguments = self.shape.name_keys[0], self.shape.arguments_keys[0]
        variants = [
            {
                "type": "object",
                "properties": {name: {"const": tool.name}, arguments: {"$ref": f"#/$defs/tool{index}"}},
                "required": [name, arguments],
                "additionalProperties": False,
            }
            for index, tool in enumerate(tools)
        ]
        definitions = {
            f"tool{index}": rebased({"type": "object"} | dict(tool.parameters), f"#/$defs/tool{index}")
            for index, tool in enumerate(tools)
        }
        return (variants[0] if len(variants) == 1 else {"anyOf": variants}) | {"$defs": definitions}


def _lifted(schema: dict[str, Any]) -> dict[str, Any]:
    """A list of calls with the definitions of its items at the root, which they refer to."""
    items = dict(schema["items"])
    definitions = items.pop("$defs")
    return schema | {"items": items, "$defs": definitions}


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
