"""Regular expressions of requests: what would stall llguidance is refused before it compiles them.
Pure; errors are `RefusedText`.
"""

from __future__ import annotations

import re

from erllama.grammar.constraint import RefusedText

# Compiling takes time and memory that grow with the square of what may be left out: 0.1 s for so
# much, five minutes and 15 GB for a text of 60 kB. llguidance refuses half of it for its fuel.
MAX_OPTIONAL_PARTS = 1000
_TOKENS = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|(?P<open>\(\??)|(?P<or>\|)|(?P<close>\))|(?P<optional>[?*]|\{0)", re.DOTALL
)


def optional_parts(expression: str) -> int:
    """How many parts of a regular expression may be left out, one after another: of alternatives the
    one with the most counts.
    """
    groups = [[0, 0]]  # of each open group: the most of an alternative before, and those of the present one
    last = ("open", 0)  # the kind of the last token, and its end
    inner = 0  # parts of the last group: that it may itself be left out adds none
    for token in _TOKENS.finditer(expression):
        kind, beside = token.lastgroup or "", token.start() == last[1]
        if kind == "open":
            groups.append([0, 0])
        elif kind == "optional":
            groups[-1][1] += not (beside and last[0] == "close" and inner)
        elif kind in ("or", "close"):
            groups[-1][1] += beside and last[0] in ("open", "or")  # an empty alternative
            if kind == "or":
                groups[-1] = [max(groups[-1]), 0]
            elif len(groups) > 1:
                inner = max(groups.pop())
                groups[-1][1] += inner
        last = (kind, token.end())
    return sum(map(max, groups))


def check_optional_parts(n_parts: int) -> None:
    """Raises `RefusedText` for more than llguidance can take in one expression."""
    if n_parts > MAX_OPTIONAL_PARTS:
        raise RefusedText(f"more than {MAX_OPTIONAL_PARTS} parts of one expression may be left out")


def lark_expression(expression: str) -> str:
    """A regular expression, which may contain slashes and line ends, as a terminal of Lark."""
    check_optional_parts(optional_parts(expression))
    body = re.sub(r"\\?([/\n])|\\.", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[1], m[0]), expression)
    return f"/{body}/"
