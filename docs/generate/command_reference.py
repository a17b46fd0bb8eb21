"""The reference of the commands, from typer's own description of them (its copy of click has no
public types)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from docs.generate.config_reference import cell
from erllama.cli.app import app


def command_reference() -> str:
    """A heading for each command."""
    return "\n".join(line for name, command in commands() for line in _section(name, command))


def commands() -> Iterator[tuple[str, Any]]:
    """Each command that does something, by its full name ("erllama key new")."""
    yield from _walk("erllama", typer.main.get_command(app))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, below in inner.items():
        if not below.hidden:
            yield from _walk(f"{name} {word}", below)


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_one_line(command.help)}\n"
    rows = [row for parameter in command.params if (row := _row(parameter))]
    if rows:
        yield "| | default | |"
        yield "|---|---|---|"
        yield from rows
        yield ""
    if command.epilog:
        yield f"{_one_line(command.epilog)}\n"


def _row(parameter: Any) -> str:
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return ""
    names = parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else []
    shown = ", ".join(f"`{name}`" for name in names) or f"`{str(parameter.name).upper()}`"
    default = parameter.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool)
    told = "required" if parameter.required else f"`{default}`" if plain else ""
    return f"| {shown} | {told} | {cell(_one_line(getattr(parameter, 'help', '')))} |"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
