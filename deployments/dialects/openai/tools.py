"""Tools of a chat request: which are offered to the template, and the grammar that makes the model
call one.

How a call is written, and what separates several, is the model's `ToolFormat`. A forced call
(`tool_choice` "required" or named) is enforced. When the model may choose ("auto") its reply is
free up to where a call opens, which then has to be one of a tool; with `response_format` it is
either calls or JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.dialects.openai.wire import ChatBody, NamedTool, Tool
from deployments.http.ports import PromptPort
from erllama.chat.tool_formats.base import ToolSpec
from erllama.chat.tool_formats.lark_writer import forced_calls, free_reply
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint


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


def tool_specs(body: ChatBody) -> list[ToolSpec]:
    """The offered tools as a tool format needs to know them."""
    return _specs(body.tools or []) if offered_tools(body) is not None else []


def _specs(tools: Sequence[Tool]) -> list[ToolSpec]:
    return [ToolSpec(tool.function.name, tool.function.parameters or {"type": "object"}) for tool in tools]


def chat_constraint(
    body: ChatBody, reply: Constraint | None, prompts: PromptPort, *, in_reasoning: bool = False
) -> Constraint | None:
    """What the whole reply must follow; `reply` constrains its text (`response_format`,
    `grammar`).
    """
    parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    tool_format, markers, forced = prompts.tool_format, prompts.marker_ids, _forced(body)
    if forced:
        return forced_calls(tool_format, _specs(forced), markers, parallel=parallel, in_reasoning=in_reasoning)
    if offered_tools(body) is None:
        return reply
    tools = _specs(body.tools or [])
    if reply is None and not prompts.constrains_calls:
        return None
    if reply is None:
        return free_reply(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning)
    return forced_calls(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning, reply=reply)
