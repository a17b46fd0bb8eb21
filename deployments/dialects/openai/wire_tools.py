"""Tools of a chat request and the choice among them, validated. `functions` and `function_call` are
their older names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from deployments.dialects.openai.wire_messages import OpenPart


class FunctionDef(OpenPart):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def _tool_type(value: Any) -> Any:
    if value != "function":
        raise ValueError(f"tools of type {str(value)[:40]!r} are not supported, only of type 'function'")
    return value


class Tool(OpenPart):
    type: Annotated[str, BeforeValidator(_tool_type)]
    function: FunctionDef


class NamedFunction(OpenPart):
    name: str


class NamedTool(OpenPart):
    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(OpenPart):
    """The tools that may be called; the model is told of all of them, so that its prompt stays the
    same.
    """

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedChoice(OpenPart):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _tool_choice(value: Any) -> Any:
    """A string is looked up later, where the tools are known: it may be the name of one."""
    if not isinstance(value, dict):
        return value
    kind = AllowedChoice if value.get("type") == "allowed_tools" else NamedTool
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(map(str, fault["loc"]))
        raise ValueError(f"an object that names a function, or allowed_tools: {path}: {fault['msg']}") from None


def _function_call(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("name"), str):
        raise ValueError("an object must have the name of a function")
    return NamedTool(function=NamedFunction(name=value["name"]))


ToolChoice = Annotated[str | NamedTool | AllowedChoice | None, BeforeValidator(_tool_choice)]
FunctionCall = Annotated[str | NamedTool | None, BeforeValidator(_function_call)]
