"""GBNF as Lark for llguidance.

A rule that is regular (it refers to no recursive rule and to no token) becomes a Lark terminal, so
that it is matched as one regular expression, as precisely as llama.cpp matches it character by
character. The other rules stay rules; the regular parts between their references become terminals.
A terminal inside a recursive rule takes the longest text that it matches.

llguidance ships a converter of its own; it renames rules so that they may collide, knows neither
token references nor `\\U` escapes, and leaves regular rules apart, whose longest matches then
exclude sentences of the grammar.

Refused is what is so large or so deep that llguidance's recursive passes could run out of stack.
Pure; errors are `MalformedGrammar`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import groupby

from erllama.grammar.gbnf import (
    GbnfParser,
    Group,
    Item,
    MalformedGrammar,
    Ref,
    Repeat,
    Rule,
    Symbols,
    Text,
    Token,
    TokenId,
)

MAX_DEPTH = 800  # rules, and the parentheses in each: 8 MB of stack hold twice as many
# terminals in one regular expression, unless the whole text has more: compiling takes time
# quadratic in them
_MAX_EXPRESSION = 4000


def gbnf_to_lark(text: str, token_id: TokenId, start: str = "start") -> str:
    """Lark rules of which `start` derives what the rule `root` of `text` derives. All other names
    begin with `start`, too.

    Raises `MalformedGrammar`, with a line number where there is one.
    """
    rules = GbnfParser(text, token_id).parse()
    if sum(1 + rule.depth for rule in rules.values()) > MAX_DEPTH:
        raise MalformedGrammar(f"its rules and the parentheses in them are more than {MAX_DEPTH}")
    return _Writer(rules, start).write()


class _Writer:
    """Rules as Lark. Names are numbered, since Lark's decide by their case whether a rule is a
    terminal.

    Groups get names, too: llguidance's parser takes some thirty nested parentheses, people's
    grammars may have more.
    """

    def __init__(self, rules: dict[str, Rule], start: str) -> None:
        self._rules = rules
        self._start = start
        self._number = {name: number for number, name in enumerate(rules)}
        self._regular = _regular_rules(rules)
        self._named: dict[str, str] = {}  # the body of a terminal or rule of our own -> its name

    def write(self) -> str:
        lines = [f"{self._start}: {self._name('root')}"]
        lines += [f"{self._name(name)}: {self._body(name, rule)}" for name, rule in self._rules.items()]
        lines += [f"{name}: {body}" for body, name in self._named.items()]
        return "\n".join(lines) + "\n"

    def _name(self, rule: str) -> str:
        name = f"{self._start}_{self._number[rule]}"
        return name.upper() if rule in self._regular else name

    def _body(self, name: str, rule: Rule) -> str:
        if name not in self._regular:
            return self._choice(rule.alternates, self._mixed)
        again, ends = _split_tail_recursion(name, rule.alternates)
        end = self._choice(ends, self._plain)
        return f"({self._choice(again, self._plain)})* ({end})" if again else end

    def _choice(self, alternates: list[Symbols], write: Callable[[Symbols], str]) -> str:
        return " | ".join(write(symbols) for symbols in alternates)

    def _plain(self, symbols: Symbols) -> str:
        return " ".join(self._item(item, self._plain) for item in symbols) or '""'

    def _mixed(self, symbols: Symbols) -> str:
        """A sequence of a recursive rule: regular items in a row become one terminal."""
        parts: list[str] = []
        for regular, items in groupby(symbols, lambda item: _is_regular([item], self._regular)):
            if regular:
                parts.append(self._own(self._plain(list(items)), self._plain))
            else:
                parts += [self._item(item, self._mixed) for item in items]
        return " ".join(parts) or '""'

    def _own(self, body: str, write: Callable[[Symbols], str]) -> str:
        name = f"{self._start}_own{len(self._named)}"
        return self._named.setdefault(body, name.upper() if write == self._plain else name)

    def _item(self, item: Item, write: Callable[[Symbols], str]) -> str:
        match item:
            case Text(lark) | Token(lark):
                return lark
            case Ref(name):
                return self._name(name)
            case Group(alternates):
                return self._own(self._choice(alternates, write), write)
            case Repeat(_, _, 0):
                return '""'
            case Repeat(repeated, least, most):
                one = self._item(repeated, write)
                one = self._own(one, write) if isinstance(repeated, Repeat) else one
                return f"{one}{{{least},{'' if most is None else most}}}"


def _regular_rules(rules: dict[str, Rule]) -> set[str]:
    """The rules that a finite automaton can match, a rule that only ends with itself (`ws ::= ([
    \\t] ws)?`) among them.

    One whose expression would be huge (30 rules that each double the next) stays a rule: rules
    share what terminals repeat.
    """
    sizes: dict[str, int] = {}
    rest = {name: _items_but_tail(name, rule) for name, rule in rules.items()}
    most = max(_MAX_EXPRESSION, sum(_size(items, defaultdict(int)) for items in rest.values()))
    while found := {name: _size(items, sizes) for name, items in rest.items() if _is_regular(items, sizes)}:
        sizes |= {name: size for name, size in found.items() if size <= most}
        for name in found:
            del rest[name]
    return set(sizes)


def _items_but_tail(name: str, rule: Rule) -> Symbols:
    return [
        item
        for sequences in _split_tail_recursion(name, rule.alternates)
        for sequence in sequences
        for item in sequence
    ]


def _is_regular(items: Iterable[Item], regular: Container[str]) -> bool:
    for item in items:
        match item:
            case Token():
                return False
            case Ref(name) if name not in regular:
                return False
            case Group() | Repeat() if not _is_regular(_inner(item), regular):
                return False
    return True


def _size(items: Iterable[Item], sizes: Mapping[str, int]) -> int:
    """How many terminals an expression of regular items has, those of rules counted at each
    mention.
    """
    return sum(sizes[item.name] if isinstance(item, Ref) else 1 + _size(_inner(item), sizes) for item in items)


def _inner(item: Item) -> list[Item]:
    match item:
        case Group(alternates):
            return [inner for sequence in alternates for inner in sequence]
        case Repeat(repeated):
            return [repeated]
        case _:
            return []


def _split_tail_recursion(name: str, alternates: list[Symbols]) -> tuple[list[Symbols], list[Symbols]]:
    """Alternates that end with the rule itself, without that end, and the others."""
    again: list[Symbols] = []
    ends: list[Symbols] = []
    for sequence in _unwrapped(alternates):
        if len(sequence) > 1 and sequence[-1] == Ref(name):
            again.append(sequence[:-1])
        else:
            ends.append(sequence)
    return again, ends


def _unwrapped(alternates: list[Symbols]) -> Iterator[Symbols]:
    """The alternates, with those of a group (perhaps an optional one) that is all there is of
    one.
    """
    for sequence in alternates:
        match sequence:
            case [Group(inner)]:
                yield from _unwrapped(inner)
            case [Repeat(Group(inner), 0, 1)]:
                yield from _unwrapped(inner)
                yield []
            case _:
                yield sequence
