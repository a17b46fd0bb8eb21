"""Which rule would have kept two prompts together. Pure.

Rules look at messages; here there are only the texts around the point where two prompts part. A rule
is to blame when it finds something at that point, and the texts go on alike behind what it found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from deployments.noise.rules import ReplaceRule, Rule, SortToolsRule, TextRule, compiled, packaged_rules
from erllama.diagnosis.cause import n_alike_chars

_SEARCHED_CHARS = 4096  # before the point, and behind it
_ALIKE_CHARS = 16
_TOOL_NAME = re.compile(r'"name": ?"([\w.:/-]{1,128})", ?"(?:description|parameters)"')

Span = tuple[int, int]


def blamed_rule(before: str, a: str, b: str, in_tools: bool, rules: Iterable[Rule] | None = None) -> str | None:
    """The name of the first rule that would have made `before + a` and `before + b` equal at the point
    where they part; None where none would. `before` is the text of the message up to there; `in_tools`:
    tools are listed there.
    """
    n_alike = n_alike_chars(a, b)
    before, a, b = (before + a[:n_alike])[-_SEARCHED_CHARS:], a[n_alike:], b[n_alike:]
    for rule in packaged_rules() if rules is None else rules:
        if isinstance(rule, SortToolsRule):
            if in_tools and _same_tools(before + a, before + b):
                return rule.name
        elif isinstance(rule, TextRule) and _joins(rule, before, a[:_SEARCHED_CHARS], b[:_SEARCHED_CHARS]):
            return rule.name
    return None


def _joins(rule: TextRule, before: str, a: str, b: str) -> bool:
    """Whether both sides are alike without what the rule finds where they part. One that has nothing
    there stays as it is, unless the rule would put something into its place on the other side.
    """
    at = len(before)
    text_a, text_b = before + a, before + b
    for span_a in (*_spans(rule, text_a, at), None):
        for span_b in (*_spans(rule, text_b, at), None):
            if span_a is None and span_b is None:
                continue
            if isinstance(rule, ReplaceRule) and None in (span_a, span_b):
                continue
            rest_a, rest_b = _rest(text_a, span_a, span_b), _rest(text_b, span_b, span_a)
            n = min(_ALIKE_CHARS, len(rest_a), len(rest_b))
            if n and rest_a[:n] == rest_b[:n]:
                return True
    return False


def _spans(rule: TextRule, text: str, at: int) -> Iterator[Span]:
    """What the rule finds around a place, or from there on."""
    for match in compiled(rule.pattern).finditer(text):
        start, end = match.span()
        if start <= at < end:
            yield start, end


def _rest(text: str, span: Span | None, other: Span | None) -> str:
    """What is left behind the place where something was, here or on the other side."""
    if span is not None:
        return text[span[1] :]
    assert other is not None
    return text[other[0] :]


def _same_tools(a: str, b: str) -> bool:
    """Whether both list the same tools in another order."""
    names_a, names_b = _TOOL_NAME.findall(a), _TOOL_NAME.findall(b)
    return names_a != names_b and len(names_a) > 1 and sorted(names_a) == sorted(names_b)
