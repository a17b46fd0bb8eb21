"""Tools of a request: what the template shows of them, which may be called, and how a call is named
to the client. Pure.

A template knows functions alone. A custom tool becomes a function with one text, `input`; the tools
of a namespace become functions with qualified names. Built-in tools (web search, ...) are those of
OpenAI's own servers: they are skipped, so that clients which always offer them work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.dialects.responses.custom_format import check_format, input_grammar, input_schema
from deployments.dialects.responses.wire import PromptBody
from deployments.dialects.responses.wire_tools import CustomTool, FunctionTool, NamespaceTool, ToolChoice
from deployments.generation.chat import OfferedTool
from deployments.generation.chat import ToolChoice as AskedChoice
from deployments.http.body import parse_value
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint

logger = logging.getLogger("deployments.http")


def qualified(namespace: str | None, name: str) -> str:
    """The name under which the template shows a tool."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith(("__", ".", "/")) else f"{namespace}__{name}"


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool as the client calls it. `grammar`: what the input of a custom one must follow, where
    the whole reply has to be that.
    """

    name: str
    namespace: str | None = None
    custom: bool = False
    grammar: Constraint | None = None

    @property
    def names(self) -> dict[str, str]:
        """What a call says of its tool."""
        return {"name": self.name} | ({"namespace": self.namespace} if self.namespace else {})


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request, and those of the client by the names that the template shows."""

    offered: tuple[OfferedTool, ...] = ()
    by_name: Mapping[str, ClientTool] = field(default_factory=dict)

    def client_tool(self, name: str) -> ClientTool:
        """The tool that a model's call means; a function of that name if it made one up."""
        return self.by_name.get(name) or ClientTool(name)


def toolbox(tools: Iterable[Mapping[str, Any]]) -> Toolbox:
    """Raises `InvalidParameter` for a tool that is malformed, for a name that comes twice and for a
    strict tool whose schema cannot be enforced.
    """
    offered: list[OfferedTool] = []
    by_name: dict[str, ClientTool] = {}
    for path, tool, shown in _flattened(tools, "tools", None):
        if shown.name in by_name:
            raise InvalidParameter(f"{path}: there are two tools of the name {shown.name!r}", param=f"{path}.name")
        by_name[shown.name] = tool
        offered.append(shown)
    return Toolbox(tuple(offered), by_name)


def _flattened(
    tools: Iterable[Mapping[str, Any]], path: str, namespace: str | None
) -> Iterator[tuple[str, ClientTool, OfferedTool]]:
    for number, tool in enumerate(tools):
        place = f"{path}[{number}]"
        match tool.get("type"):
            case "function":
                function = parse_value(FunctionTool, tool, place)
                yield place, ClientTool(function.name, namespace), _function(function, namespace, place)
            case "custom":
                custom = parse_value(CustomTool, tool, place)
                check_format(custom.format, place)
                grammar = input_grammar(custom.format, place)
                named = ClientTool(custom.name, namespace, custom=True, grammar=grammar)
                yield place, named, _custom(custom, namespace)
            case "namespace" if namespace is None:
                inner = parse_value(NamespaceTool, tool, place)
                yield from _flattened(inner.tools, f"{place}.tools", inner.name)
            case None:
                raise InvalidParameter(f"Missing required parameter: '{place}.type'.", param=f"{place}.type")
            case kind:
                logger.info("event=skipped_tool type=%.40r place=%s", kind, place)


def _function(tool: FunctionTool, namespace: str | None, place: str) -> OfferedTool:
    strict_at = f"{place}.parameters" if tool.strict else None
    return OfferedTool.of(qualified(namespace, tool.name), tool.description, tool.parameters, strict_at)


def _custom(tool: CustomTool, namespace: str | None) -> OfferedTool:
    description = tool.description
    if tool.format is not None and tool.format.type == "grammar":
        rule = f"The input follows this grammar ({tool.format.syntax}):\n{tool.format.definition}"
        description = f"{description}\n\n{rule}" if description else rule
    shown = OfferedTool.of(qualified(namespace, tool.name), description, input_schema(None))
    return replace(shown, parameters=input_schema(tool.format))


def forced_input(choice: AskedChoice, tools: Toolbox) -> tuple[str, Constraint] | None:
    """The one custom tool that must be called, by its name in the template, and the grammar that its
    input must follow; None where there is no such tool.
    """
    names = [tool.name for tool in tools.offered if choice.names is None or tool.name in choice.names]
    if choice.mode != "required" or len(names) != 1:
        return None
    grammar = tools.by_name[names[0]].grammar
    return None if grammar is None else (names[0], grammar)


def asked_choice(body: PromptBody, tools: Toolbox) -> AskedChoice:
    """What the body says of the choice. Raises `InvalidParameter` for a tool that is not there, and
    for a call that must be made where there is none, or beside another form of the reply.
    """
    choice, single = body.tool_choice, body.parallel_tool_calls is False
    if choice == "none":
        return AskedChoice("none")
    named = choice.named if isinstance(choice, ToolChoice) else ()
    names = tuple(qualified(namespace, name) for namespace, name in named)
    for name in names:
        if name not in tools.by_name:
            raise InvalidParameter(f"tool_choice names {name[:128]!r}, which is not in tools", param="tool_choice")
    must = choice == "required" or (isinstance(choice, ToolChoice) and choice.mode == "required")
    if must and not tools.offered:
        raise InvalidParameter("tool_choice asks for a call, but tools offers none", param="tool_choice")
    if must and body.format is not None:
        raise InvalidParameter("text.format and a forced tool_choice exclude each other", param="text.format")
    single = single or (isinstance(choice, ToolChoice) and choice.kind != "allowed_tools")
    return AskedChoice("required" if must else "auto", names or None, single)
