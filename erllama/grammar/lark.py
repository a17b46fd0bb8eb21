"""Every kind of constraint as one Lark grammar, which is what llguidance compiles. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from erllama.grammar.constraint import Constraint, ConstraintKind
from erllama.grammar.gbnf import MalformedGrammar, TokenId
from erllama.grammar.gbnf_lark import MAX_DEPTH, gbnf_to_lark
from erllama.grammar.schema import RefusedSchema, prepared_schema

# Without forcing, every spelling of a text in tokens is allowed, as the model likes; with it,
# llguidance would ask for a tokenizer.
_HEAD = '%llguidance {"no_forcing": true}\n'
_RULE = re.compile(r"^[ \t]*[!?]?[A-Za-z_][\w-]*[^:\n]*:", re.MULTILINE)


def complete_lark(constraint: Constraint, token_id: TokenId) -> str:
    """The grammar of `constraint` with its options, whose rule `start` derives the whole reply.
    Raises `InvalidParameter`.
    """
    if constraint.kind != ConstraintKind.LARK:
        return _HEAD + _rules(constraint, token_id, "start")
    if "%" in constraint.text or len(_RULE.findall(constraint.text)) > MAX_DEPTH // 2:
        raise constraint.refusal(f"Lark may hold no directives (%), and at most {MAX_DEPTH // 2} rules")
    return _HEAD + constraint.text + "".join("\n" + _rules(part, token_id, name) for name, part in constraint.parts)


def _rules(constraint: Constraint, token_id: TokenId, start: str) -> str:
    """Rules of which `start` derives what `constraint` allows; the names of all others begin with
    it. Raises `InvalidParameter`.
    """
    try:
        match constraint.kind:
            case ConstraintKind.GBNF:
                return gbnf_to_lark(constraint.text, token_id, start)
            case ConstraintKind.JSON_SCHEMA:
                return f"{start}: %json {json.dumps(prepared_schema(_loaded(constraint.text)))}\n"
            case _:
                return f"{start}: {_regex_literal(constraint.text)}\n"
    except (MalformedGrammar, RefusedSchema) as error:
        raise constraint.refusal(str(error)) from None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise RefusedSchema("it is nested too deeply") from None
    except ValueError as error:
        raise RefusedSchema(f"it is not JSON: {error}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _regex_literal(pattern: str) -> str:
    """A regular expression between slashes, which it may contain in any form."""
    body = re.sub(r"\\(.)|(/)|(\n)", _regex_char, pattern, flags=re.DOTALL)
    return f"/{body}/"


def _regex_char(match: re.Match[str]) -> str:
    escaped, slash, _ = match.groups()
    if slash or escaped == "/":
        return r"\/"
    return r"\n" if escaped is None else r"\n" if escaped == "\n" else match.group()
