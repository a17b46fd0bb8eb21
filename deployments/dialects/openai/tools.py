"""Tools of a chat request: which are offered to the template, and which of them may or must be
called.
"""

from __future__ import annotations

from deployments.dialects.openai.structure import asked_form
from deployments.dialects.openai.wire import ChatBody
from deployments.dialects.openai.wire_tools import AllowedChoice, NamedTool, Tool
from deployments.generation.chat import OfferedTool, ToolChoice
from erllama.errors import InvalidParameter


def offered_tools(body: ChatBody) -> tuple[OfferedTool, ...]:
    """Tools as the template shows them, also where `tool_choice` is "none": a conversation whose
    prompt lost its tools would be computed anew. `strict` is for us, not for the model.
    """
    return tuple(_offered(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ()))


def _offered(tool: Tool, place: str) -> OfferedTool:
    function = tool.function
    strict_at = f"{place}.function.parameters" if function.strict else None
    return OfferedTool.of(function.name, function.description, function.parameters, strict_at)


def tool_choice(body: ChatBody) -> ToolChoice:
    """What the body says of the choice, `functions` included, which call one at a time."""
    chosen = _chosen(body)
    single = body.parallel_tool_calls is False or bool(body.functions) or isinstance(body.tool_choice, NamedTool)
    names = None if chosen is None else tuple(chosen)
    if body.tool_choice == "none":
        return ToolChoice("none")
    return ToolChoice("required" if _must_call(body) else "auto", names, single)


def check_tools(body: ChatBody) -> None:
    """Raises `InvalidParameter` for a choice without tools, or of a tool that is not there."""
    choice, param = body.tool_choice, "function_call" if body.function_call else "tool_choice"
    if choice not in (None, "none") and not body.tools:
        needed = "functions" if body.function_call else "tools"
        raise InvalidParameter(f"{param} is only allowed when {needed} are specified", param=param)
    known = {tool.function.name for tool in body.tools or ()}
    for name in _chosen(body) or ():
        if name not in known:
            raise InvalidParameter(f"{param} names {name[:128]!r}, which is not in tools", param=param)
    other = asked_form(body)
    if _must_call(body) and other is not None:
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


def _must_call(body: ChatBody) -> bool:
    choice = body.tool_choice
    required = choice == "required" or (isinstance(choice, AllowedChoice) and choice.allowed_tools.mode == "required")
    return required or isinstance(choice, NamedTool)
