"""Ollama's Modelfile, as far as it means something here (its documentation: "Modelfile reference"). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from erllama.errors import InvalidParameter

_FENCE = '"""'
_LISTS = ("stop",)
_LINE = re.compile(r"\s*(\w+)\s+(.*)", re.DOTALL)


@dataclass(slots=True)
class Modelfile:
    base: str = ""
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def parse_modelfile(text: str) -> Modelfile:
    """Raises `InvalidParameter` for what is no instruction, or one that this server cannot follow."""
    found = Modelfile()
    for number, keyword, value in _instructions(text):
        match keyword:
            case "FROM":
                found.base = value
            case "SYSTEM":
                found.system = value
            case "TEMPLATE":
                found.template = value
            case "PARAMETER":
                name, _, given = value.partition(" ")
                _add(found.parameters, name, _value(given.strip()))
            case "LICENSE":
                pass
            case _:
                raise InvalidParameter(f"line {number} of the Modelfile: {keyword} is not supported")
    return found


def parse_parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Of `NAME=VALUE` each. Raises `InvalidParameter`."""
    found: dict[str, Any] = {}
    for name, value in named_values("--parameter", pairs):
        _add(found, name, value)
    return found


def named_values(option: str, pairs: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Of an option that is given as `NAME=VALUE`, perhaps several times. Raises `InvalidParameter`."""
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InvalidParameter(f"{option} must be NAME=VALUE, got {pair!r}")
        yield name, _value(value)


def _value(text: str) -> Any:
    """JSON, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _add(parameters: dict[str, Any], name: str, value: Any) -> None:
    if name in _LISTS:
        parameters.setdefault(name, []).append(value)
    else:
        parameters[name] = value


def _instructions(text: str) -> Iterable[tuple[int, str, str]]:
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise InvalidParameter(f"line {number} of the Modelfile is no instruction: {line[:60]!r}")
        keyword, value = match[1].upper(), match[2]
        if _FENCE in value:
            while value.count(_FENCE) < 2:
                if at == len(lines):
                    raise InvalidParameter(f'line {number} of the Modelfile begins a text that no """ ends')
                value += "\n" + lines[at]
                at += 1
            head, body, _ = value.split(_FENCE, 2)
            value = head + body
        yield number, keyword, _unquoted(value.strip()) if _FENCE not in value else value


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
