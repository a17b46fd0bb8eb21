"""Every kind of constraint as one Lark grammar, and what llguidance makes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from erllama.grammar.constraint import Constraint, ConstraintKind, RefusedText
from erllama.grammar.expression import lark_expression
from erllama.grammar.gbnf import gbnf_to_lark
from erllama.grammar.json_schema.schema import prepared_schema
from erllama.grammar.lark_text import checked_lark

_STACK_BYTES = 256 * 2**20  # more than twice what the deepest text takes; what is not touched costs nothing
_STACK_SIZE = threading.Lock()  # held while this process's threads start with another stack than usual
# Without forcing, every spelling of a text in tokens is allowed, as the model likes; with it,
# llguidance would ask for a tokenizer.
_HEAD = '%llguidance {"no_forcing": true}\n'


def complete_lark(constraint: Constraint, token_id: Callable[[str], int]) -> str:
    """The grammar of `constraint` with its options, whose rule `start` derives the whole reply.
    Raises `InvalidParameter`.
    """
    if constraint.kind != ConstraintKind.LARK:
        return _HEAD + _rules(constraint, token_id, "start")
    try:
        text = checked_lark(constraint.text)
    except RefusedText as error:
        raise constraint.refusal(str(error)) from None
    return _HEAD + text + "".join("\n" + _rules(part, token_id, name) for name, part in constraint.parts)


def _rules(constraint: Constraint, token_id: Callable[[str], int], start: str) -> str:
    """Rules of which `start` derives what `constraint` allows; the names of all others begin with
    it. Raises `InvalidParameter`.
    """
    try:
        match constraint.kind:
            case ConstraintKind.GBNF:
                return gbnf_to_lark(constraint.text, token_id, start)
            case ConstraintKind.JSON_SCHEMA:
                schema = prepared_schema(_loaded(constraint.text), strict=constraint.strict)
                return f"{start}: %json {json.dumps(schema)}\n"
            case _:
                return f"{start}: {lark_expression(constraint.text)}\n"
    except RefusedText as error:
        raise constraint.refusal(str(error)) from None
    except RecursionError:  # of JSON, read or written
        raise constraint.refusal("it is nested too deeply") from None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise RefusedText(f"it is not JSON: {error}") from None


def _no_constant(name: str) -> float:
    raise RefusedText(f"{name} is no JSON number")


def compile_lark(lark: str, tokenizer: LLTokenizer, limits: LLParserLimits) -> LLMatcher:
    """A matcher at the start of a reply, or in error. Any thread.

    llguidance follows rules and references by recursion, up to 5 kB of stack for each. What
    `MAX_RULES`, `MAX_VISITS` and the sizes of texts allow would overflow a usual stack, which ends
    the process; hence a thread. Later steps and the matcher's end do not recurse.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        with _STACK_SIZE:
            usual = threading.stack_size(_STACK_BYTES)
            try:
                made = pool.submit(LLMatcher, tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits)
            finally:
                threading.stack_size(usual)
        return made.result()
