"""From what a body says of the form of its reply to a constraint. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deployments.dialects.openai.wire import GenerationBody
from deployments.dialects.openai.wire_structure import ResponseFormat
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import JSON_OBJECT, Constraint, ConstraintKind

_FIELDS = (
    "grammar", "ebnf", "guided_grammar", "regex", "guided_regex", "choice", "guided_choice", "json_schema",
    "guided_json", "structured_outputs",
)  # fmt: skip
_GBNF_RULE = re.compile(r"^[^\"/\n]*::=", re.MULTILINE)


def reply_constraint(body: GenerationBody) -> Constraint | None:
    """What the text of the reply must follow, or None for free text. Raises `InvalidParameter` for
    two forms at once.
    """
    wanted = list(_wanted(body))
    if len(wanted) > 1:
        raise InvalidParameter(f"{wanted[0].param} and {wanted[1].param} exclude each other", param=wanted[0].param)
    return wanted[0] if wanted else None


def asked_form(body: GenerationBody) -> str | None:
    """The field that asks for a form of the reply, None for free text. Never raises."""
    if body.response_format is not None and body.response_format.type != "text":
        return "response_format"
    return next((name for name in _FIELDS if getattr(body, name) is not None), None)


def _wanted(body: GenerationBody) -> Iterator[Constraint]:
    outputs = body.structured_outputs
    if body.grammar is not None:
        yield _grammar(body.grammar, "grammar")
    if body.response_format is not None and body.response_format.type != "text":
        yield _of_format(body.response_format)
    grammars = {"ebnf": body.ebnf, "guided_grammar": body.guided_grammar}
    patterns = {"regex": body.regex, "guided_regex": body.guided_regex}
    choices = {"choice": body.choice, "guided_choice": body.guided_choice}
    schemas = {"json_schema": body.json_schema, "guided_json": body.guided_json}
    if outputs is not None:
        grammars["structured_outputs.grammar"] = outputs.grammar
        patterns["structured_outputs.regex"] = outputs.regex
        choices["structured_outputs.choice"] = outputs.choice
        schemas["structured_outputs.json"] = outputs.json_form
        schemas["structured_outputs.json_object"] = dict(JSON_OBJECT) if outputs.json_object else None
    yield from (_grammar(text, param) for param, text in grammars.items() if text is not None)
    yield from (Constraint(ConstraintKind.REGEX, text, param) for param, text in patterns.items() if text is not None)
    yield from (Constraint.one_of(texts, param) for param, texts in choices.items() if texts is not None)
    yield from (Constraint.of_schema(schema, param) for param, schema in schemas.items() if schema is not None)


def _of_format(wanted: ResponseFormat) -> Constraint:
    match wanted.type:
        case "json_object":
            schema: Any = JSON_OBJECT if wanted.object_schema is None else wanted.object_schema
            return Constraint.of_schema(schema, "response_format")
        case "regex":
            return Constraint(ConstraintKind.REGEX, _needed(wanted.pattern, "pattern"), "response_format")
        case "grammar":
            return _grammar(_needed(wanted.grammar, "grammar"), "response_format")
    form = wanted.json_schema
    schema = _needed(None if form is None else form.json_schema, "json_schema.schema")
    return Constraint.of_schema(schema, "response_format", strict=form is None or form.strict is not False)


def _needed(value: Any, name: str) -> Any:
    if value is None:
        path = f"response_format.{name}"
        raise InvalidParameter(f"Missing required parameter: '{path}'.", param=path)
    return value


def _grammar(text: str, param: str) -> Constraint:
    """GBNF has `::=` in every rule, Lark in none."""
    kind = ConstraintKind.LARK if not _GBNF_RULE.search(text) and _is_lark(text) else ConstraintKind.GBNF
    return Constraint(kind, text, param)


def _is_lark(text: str) -> bool:
    return text.lstrip().startswith("%llguidance") or re.search(r"^[ \t]*[?!]?start\b[^:\n]*:", text, re.M) is not None
