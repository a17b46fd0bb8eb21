"""Tools of a request and the choice among them, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    name: Name
    description: str | None = None


class FunctionTool(_Tool):
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(BaseModel):
    """Free text, or a text that follows a grammar, which the model is told of."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


class CustomTool(_Tool):
    """A tool whose argument is one text."""

    format: CustomFormat | None = None


class NamespaceTool(_Tool):
    """Tools that share a namespace, for which a call names both."""

    tools: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`given` is the object as it came, `kind` its type; `named` are the tools that it names, as
    (namespace or "", name). `mode` says whether one of them must be called. Built-in tools among
    those allowed are left out: none of them is offered.
    """

    kind: Literal["function", "custom", "allowed_tools"]
    mode: Literal["auto", "required"]
    named: tuple[tuple[str, str], ...]
    given: Mapping[str, Any]


_WORDS = ("auto", "none", "required")


def read_choice(value: Any) -> Any:
    """Validates a choice, whose object becomes a `ToolChoice`."""
    if value is None or value in _WORDS:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"must be {', '.join(_WORDS)} or an object, got {str(value)[:40]!r}")
    match value.get("type"):
        case "function" | "custom" as kind:
            return ToolChoice(kind, "required", (_named(value),), value)
        case "allowed_tools":
            return _allowed(value)
        case kind:
            raise ValueError(f"tools of type {str(kind)[:40]!r} are not offered here, only function and custom")


def _allowed(value: dict[str, Any]) -> ToolChoice:
    tools, mode = value.get("tools"), value.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise ValueError(f"the mode of allowed_tools must be auto or required, got {str(mode)[:40]!r}")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("allowed_tools must have a list of tools")
    named = tuple(_named(tool) for tool in tools if tool.get("type", "function") in ("function", "custom"))
    if not named:
        raise ValueError("allowed_tools must name at least one function or custom tool")
    return ToolChoice("allowed_tools", mode, named, value)


def _named(value: dict[str, Any]) -> tuple[str, str]:
    name, namespace = value.get("name"), value.get("namespace") or ""
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise ValueError("an object that names a tool must have its name as a string")
    return namespace, name
