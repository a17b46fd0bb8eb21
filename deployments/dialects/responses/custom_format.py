"""The form of a custom tool's input, and how it is enforced. Pure.

regex   a pattern of the argument `input`, wherever the model calls the tool
lark    the whole reply, where it has to be a call of this one tool: a grammar cannot be written
        into the JSON of a call, so the model writes the input alone, and `InputAsCall` makes
        the call of it. Where the model is free to call, the grammar is told to it, no more.
"""

from __future__ import annotations

import json
from typing import Any

from deployments.dialects.responses.wire_tools import CustomFormat
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReplyPart
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind

SYNTAXES = ("lark", "regex")


def check_format(form: CustomFormat | None, place: str) -> None:
    """Raises `InvalidParameter` for a grammar that is none."""
    if form is None or form.type != "grammar":
        return
    if form.syntax not in SYNTAXES:
        at = f"{place}.format.syntax"
        raise InvalidParameter(f"{at} must be {' or '.join(SYNTAXES)}, got {str(form.syntax)[:40]!r}", param=at)
    if not form.definition:
        at = f"{place}.format.definition"
        raise InvalidParameter(f"Missing required parameter: '{at}'.", param=at)


def input_schema(form: CustomFormat | None) -> dict[str, Any]:
    """The schema of the arguments of a call."""
    text: dict[str, Any] = {"type": "string"}
    if form is not None and form.type == "grammar" and form.syntax == "regex":
        text["pattern"] = f"^(?:{form.definition})$"
    return {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}


def input_grammar(form: CustomFormat | None, place: str) -> Constraint | None:
    """What the input must follow if it is the whole reply, None for free text. Raises
    `InvalidParameter`.
    """
    if form is None or form.type != "grammar" or form.syntax != "lark" or form.definition is None:
        return None
    return Constraint(ConstraintKind.LARK, form.definition, f"{place}.format.definition")


class InputAsCall:
    """A reply that is the input of one custom tool, as a call of it. See `ReplySplitter`."""

    thinks = None

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def push(self, text: str) -> list[ReplyPart]:
        if not text:
            return []
        return [*self._begin(), ArgumentsDelta(json.dumps(text, ensure_ascii=False)[1:-1])]

    def finish(self) -> list[ReplyPart]:
        return [*self._begin(), ArgumentsDelta('"}')]

    def _begin(self) -> list[ReplyPart]:
        if self._begun:
            return []
        self._begun = True
        return [CallStart(self._name), ArgumentsDelta('{"input":"')]
