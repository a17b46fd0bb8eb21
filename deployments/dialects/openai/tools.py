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

from deployments.dialects.openai.structure import asked_form
from deployments.dialects.openai.wire import ChatBody
from deployments.dialects.openai.wire_tools import AllowedChoice, NamedTool, Tool
from deployments.http.ports import PromptPort
from erllama.chat.tool_formats.base import ToolSpec
from erllama.chat.tool_formats.lark_writer import forced_calls, free_reply, reasoned_reply
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint
from erllama.grammar.schema import check_strict


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
    """Raises `InvalidParameter` for a choice without tools, or of a tool that is not there, and for a
    strict tool whose schema cannot be enforced.
    """
    for number, tool in enumerate(body.tools or ()):
        if tool.function.strict:
            check_strict(tool.function.parameters or {}, f"tools[{number}].function.parameters")
    choice, param = body.tool_choice, "function_call" if body.function_call else "tool_choice"
    if choice not in (None, "none") and not body.tools:
        needed = "functions" if body.function_call else "tools"
        raise InvalidParameter(f"{param} is only allowed when {needed} are specified", param=param)
    known = {tool.function.name for tool in body.tools or ()}
    for name in _chosen(body) or ():
        if name not in known:
            raise InvalidParameter(f"{param} names {name[:128]!r}, which is not in tools", param=param)
    other = asked_form(body)
    if _forced(body) and other is not None:
        raise InvalidParameter(f"{other} and a forced {param} exclude each other", param=param)


def _chosen(body: ChatBody) -> list[str] | None:
    """The names of the tools that the choice is limited to, None for all."""
    match body.tool_choice:
        case NamedTool():
            return [body.tool_choice.function.name]
        case AllowedChoice():
            return [tool.function.name for tool in body.tool_choice.allowed_tools.tools]
        case _:
            return None


def _callable(body: ChatBody) -> list[Tool]:
    """The tools that the model may call."""
    tools, chosen = body.tools or [], _chosen(body)
    return tools if chosen is None else [tool for tool in tools if tool.function.name in chosen]


def _forced(body: ChatBody) -> list[Tool]:
    """The tools one of which the model has to call."""
    choice = body.tool_choice
    required = choice == "required" or (isinstance(choice, AllowedChoice) and choice.allowed_tools.mode == "required")
    return _callable(body) if required or isinstance(choice, NamedTool) else []


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
    single = body.parallel_tool_calls is False or bool(body.functions) or isinstance(body.tool_choice, NamedTool)
    parallel, limited = not single, isinstance(body.tool_choice, AllowedChoice)
    tool_format, markers, forced = prompts.tool_format, prompts.marker_ids, _forced(body)
    if forced:
        return forced_calls(tool_format, _specs(forced), markers, parallel=parallel, in_reasoning=in_reasoning)
    if offered_tools(body) is None:
        if reply is None or not in_reasoning:
            return reply
        return reasoned_reply(tool_format, markers, reply)
    tools = _specs(_callable(body))
    if reply is None and not prompts.constrains_calls and not limited:
        return None
    if reply is None:
        return free_reply(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning)
    return forced_calls(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning, reply=reply)
