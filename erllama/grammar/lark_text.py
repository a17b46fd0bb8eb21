"""A grammar in Lark as a client writes it: which directives it may hold, and how much llguidance may
have to put into one regular expression. Pure; errors are `RefusedText`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from erllama.grammar.constraint import RefusedText
from erllama.grammar.expression import check_optional_parts, optional_parts

_DIRECTIVES = frozenset({"ignore", "import"})
_OPTIONS = re.compile(r"\A\s*%llguidance\s*(\{[^\n]*\})?[ \t]*\n")
_TOKENS = re.compile(
    r'//[^\n]*|"(?:\\.|[^"\\\n])*"i?|/(?P<expression>(?:\\.|[^/\\\n])+)/|%\s*(?P<directive>\w*)'
    r"|(?P<head>^[ \t]*[?!]?(?P<name>\w+)[^:\n\"/]*:)|(?P<word>\w+)|(?P<sign>[?*|()])",
    re.MULTILINE,
)


def checked_lark(text: str) -> str:
    """`text` without the line of options with which llama.cpp tells Lark from GBNF. Raises
    `RefusedText` for a directive that is not for clients, and for a terminal that would take minutes.
    """
    text = _OPTIONS.sub("", text)
    for token in _TOKENS.finditer(text):
        directive = token["directive"]
        if directive is not None and directive not in _DIRECTIVES:
            raise RefusedText(f"Lark may hold no %{directive}, only %{' and %'.join(sorted(_DIRECTIVES))}")
    _check_terminals(dict(_terminals(text)))
    return text


def _terminals(text: str) -> Iterator[tuple[str, tuple[int, list[str]]]]:
    """Of each terminal its name, how many of its own parts may be left out, and which others it
    holds.
    """
    name, own, words = "", 0, list[str]()
    for token in _TOKENS.finditer(text):
        if token["head"] is not None:
            if name.isupper():
                yield name, (own, words)
            name, own, words = token["name"], 0, []
        elif token["expression"] is not None:
            own += optional_parts(token["expression"])
        elif token["word"] is not None:
            words.append(token["word"])
        else:
            own += token["sign"] in ("?", "*")
    if name.isupper():
        yield name, (own, words)


def _check_terminals(terminals: dict[str, tuple[int, list[str]]]) -> None:
    order = TopologicalSorter({name: [w for w in words if w in terminals] for name, (_, words) in terminals.items()})
    sizes: dict[str, int] = {}
    try:
        for name in order.static_order():
            own, words = terminals[name]
            sizes[name] = own + sum(sizes.get(word, 0) for word in words)
            check_optional_parts(sizes[name])
    except CycleError:
        raise RefusedText("a terminal contains itself") from None
