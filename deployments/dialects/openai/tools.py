"""Tools of a chat request: which are offered to the template, and the grammar that makes the model
call one.

How a call is written, and what separates several, is the model's `ToolFormat`. A forced call
(`tool_choice` "required" or named) is enforced. When the model may choose ("auto") its reply is
free, unless `response_format` constrains it: then it is either calls or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deployments.dialects.openai.wire import ChatBody, NamedTool, Tool
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.json_format import HERMES
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind


def offered_tools(body: ChatBody) -> list[dict[str, Any]] | None:
    """Tools as the template shows them, None for none. With `tool_choice` "none" the model is not
    told of them, so it cannot call one.

    Keys come in one order whatever the client's, so that equal tools are equal tokens; `strict` is
    for us, not for the model.
    """
    if not body.tools or body.tool_choice == "none":
        return None
    return [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True, exclude={"strict"})}
        for tool in body.tools
    ]


def check_tools(body: ChatBody) -> None:
    """Raises `InvalidParameter` for a choice without tools, or of a tool that is not there."""
    choice = body.tool_choice
    if choice not in (None, "none") and not body.tools:
        raise InvalidParameter("tool_choice is only allowed when tools are specified", param="tool_choice")
    forced = _forced(body)
    if isinstance(choice, NamedTool) and not forced:
        raise InvalidParameter(
            f"tool_choice names {choice.function.name!r}, which is not in tools", param="tool_choice"
        )
    constrained = body.response_format is not None and body.response_format.type != "text"
    if forced and (constrained or body.grammar is not None):
        other = "grammar" if body.grammar is not None else "response_format"
        raise InvalidParameter(f"{other} and a forced tool_choice exclude each other", param="tool_choice")


def _forced(body: ChatBody) -> list[Tool]:
    choice, tools = body.tool_choice, body.tools or []
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name]
    return tools if choice == "required" else []


def chat_constraint(body: ChatBody, reply: Constraint | None, tool_format: ToolFormat = HERMES) -> Constraint | None:
    """What the whole reply must follow; `reply` constrains its text (`response_format`,
    `grammar`).
    """
    parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    forced = _forced(body)
    if forced:
        return _calls_or(None, forced, tool_format, parallel=parallel)
    if reply is not None and offered_tools(body) is not None:
        return _calls_or(reply, body.tools or [], tool_format, parallel=parallel)
    return reply


def _calls_or(
    reply: Constraint | None, tools: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool
) -> Constraint:
    opening, closing, separator = (
        json.dumps(text) for text in (tool_format.opening, tool_format.closing, tool_format.separator)
    )
    more = f" ({separator} CALL_BEGIN call CALL_END)*" if parallel else ""
    lark = f"""
start: calls{"" if reply is None else " | reply"}
calls: CALL_BEGIN call CALL_END{more}
CALL_BEGIN: {opening}
CALL_END: {closing}
"""
    call = ("call", Constraint.of_schema(calls_schema(tools, tool_format), "tools"))
    return Constraint(ConstraintKind.LARK, lark, "tools", (call,) if reply is None else (call, ("reply", reply)))


def calls_schema(tools: Sequence[Tool], tool_format: ToolFormat = HERMES) -> dict[str, Any]:
    """The JSON schema of one call of one of the tools."""
    variants: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        parameters = tool.function.parameters or {"type": "object"}
        definitions[f"tool{index}"] = _rebased({"type": "object"} | parameters, f"#/$defs/tool{index}")
        variants.append(tool_format.call_schema(tool.function.name, {"$ref": f"#/$defs/tool{index}"}))
    return (variants[0] if len(variants) == 1 else {"anyOf": variants}) | {"$defs": definitions}


def _rebased(schema: Any, base: str) -> Any:
    """The schema with its own references (`#/...`) pointing to where it now hangs."""
    if isinstance(schema, dict):
        return {
            key: base + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _rebased(value, base)
            for key, value in schema.items()
        }
    return [_rebased(item, base) for item in schema] if isinstance(schema, list) else schema
