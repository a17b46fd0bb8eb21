"""Older and shorter forms of a chat body, rewritten into the one form that is read from here on.
Pure.

    functions, function_call        tools, tool_choice
    a message's function_call       tool_calls with one call
    messages of the role function   messages of the role tool
    tool_choice "name"              the object that names the tool
    n_probs                         logprobs, top_logprobs
"""

from __future__ import annotations

from typing import Any

from deployments.dialects.openai.wire import ChatBody, CompletionBody
from deployments.dialects.openai.wire_messages import Message, ToolCallPart
from deployments.dialects.openai.wire_tools import NamedFunction, NamedTool, Tool
from erllama.errors import InvalidParameter

_CHOICES = ("none", "auto", "required")


def normal_chat(body: ChatBody) -> ChatBody:
    """The body in its newest form; `functions` stays, since the reply has to speak of it. Raises
    `InvalidParameter` for old and new together, or for a choice that is none.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, old) and getattr(body, new):
            raise InvalidParameter(f"{old} is the older name of {new}; send one of them", param=old)
    tools = [Tool(type="function", function=function) for function in body.functions or ()] or body.tools
    old_choice = body.function_call is not None
    choice = body.function_call if old_choice else body.tool_choice
    if isinstance(choice, str) and choice not in _CHOICES:
        choice = _named(choice, tools or [], "function_call" if old_choice else "tool_choice")
    update: dict[str, Any] = {"tools": tools, "tool_choice": choice, "messages": _messages(body.messages)}
    if body.n_probs and not body.logprobs:
        update |= {"logprobs": True, "top_logprobs": body.n_probs}
    return body.model_copy(update=update)


def normal_completion(body: CompletionBody) -> CompletionBody:
    """The same of the legacy endpoint's body, whose `logprobs` is a number."""
    return body.model_copy(update={"logprobs": body.n_probs}) if body.n_probs and body.logprobs is None else body


def _named(name: str, tools: list[Tool], param: str) -> NamedTool:
    if not any(tool.function.name == name for tool in tools):
        raise InvalidParameter(
            f"{param} must be {', '.join(_CHOICES)}, the name of a tool or an object that names one, got {name[:40]!r}",
            param=param,
        )
    return NamedTool(function=NamedFunction(name=name))


def _messages(messages: list[Message]) -> list[Message]:
    normal: list[Message] = []
    id: str | None = None  # of the call that was made last; these messages have none, a template may want one
    for number, message in enumerate(messages):
        if message.function_call is not None:
            id = f"call_{number}"
            call = ToolCallPart(id=id, function=message.function_call)
            update = {"function_call": None, "tool_calls": [*(message.tool_calls or ()), call]}
            normal.append(message.model_copy(update=update))
        elif message.role == "function":
            normal.append(message.model_copy(update={"role": "tool", "tool_call_id": id}))
        else:
            normal.append(message)
    return normal
