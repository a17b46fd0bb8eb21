"""GBNF, the grammar language of llama.cpp, as Lark for llguidance.

A rule that is regular (it refers to no recursive rule and to no token) becomes a Lark terminal, so that it is matched as one regular
expression, as precisely as llama.cpp matches it character by character. The other rules stay rules; the regular parts between their
references become terminals. A terminal inside a recursive rule takes the longest text that it matches.

llguidance ships a converter of its own; it renames rules so that they may collide, knows neither token references nor `\\U` escapes, and
leaves regular rules apart, whose longest matches then exclude sentences of the grammar.

The escapes, repetitions and white space follow `llama_grammar_parser` of llama.cpp. Refused beside what is malformed: whatever is so large
or so deep that llguidance's recursive passes could run out of stack. Pure; errors are `MalformedGrammar`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

MAX_NESTING = 100  # of parentheses
MAX_REPETITIONS = 2000
MAX_DEPTH = 800  # rules, and the parentheses in each: 8 MB of stack hold twice as many

_MAX_EXPRESSION = 4000  # terminals in one regular expression, unless the whole text has more: compiling takes time quadratic in them

_NAME = re.compile(r"[A-Za-z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_HEX = re.compile(r"[0-9a-fA-F]*")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_PLAIN_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}

TokenId = Callable[[str], int]
"""The id of a token reference, `<[id]>` or `<text>` with its brackets. Raises `MalformedGrammar` for none of the vocabulary."""


class MalformedGrammar(Exception):
    """A grammar that is refused; the message is a reason for its author."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A literal or a character class, as a Lark terminal."""

    lark: str


@dataclass(frozen=True, slots=True)
class _Token:
    """A reference to tokens by id, as Lark writes it; allowed in rules only."""

    lark: str


@dataclass(frozen=True, slots=True)
class _Ref:
    name: str


@dataclass(frozen=True, slots=True)
class _Group:
    alternates: list[list[_Item]]


@dataclass(frozen=True, slots=True)
class _Repeat:
    item: _Item
    least: int
    most: int | None


_Item = _Text | _Token | _Ref | _Group | _Repeat
_Sequence = list[_Item]


@dataclass(slots=True)
class _Rule:
    """`depth` counts the parentheses around its innermost item."""

    alternates: list[_Sequence] = field(default_factory=list)
    depth: int = 0


def gbnf_to_lark(text: str, token_id: TokenId, start: str = "start") -> str:
    """Lark rules of which `start` derives what the rule `root` of `text` derives. All other names begin with `start`, too.

    Raises `MalformedGrammar`, with a line number where there is one.
    """
    rules = _Parser(text, token_id).parse()
    if sum(1 + rule.depth for rule in rules.values()) > MAX_DEPTH:
        raise MalformedGrammar(f"its rules and the parentheses in them are more than {MAX_DEPTH}")
    return _Writer(rules, start).write()


class _Parser:
    """GBNF to rules by name, following llama_grammar_parser statement by statement."""

    def __init__(self, text: str, token_id: TokenId) -> None:
        self._text = text
        self._token_id = token_id
        self._at = 0
        self._rules: dict[str, _Rule] = {}
        self._rule = _Rule()  # the one that is being parsed
        self._used: dict[str, None] = {}

    def parse(self) -> dict[str, _Rule]:
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            self._parse_rule()
        if "root" not in self._rules:
            raise MalformedGrammar('it has no rule named "root"')
        missing = next((name for name in self._used if name not in self._rules), None)
        if missing is not None:
            raise MalformedGrammar(f'rule "{missing}" is used but not defined')
        return self._rules

    # -- lexical

    def _fail(self, reason: str) -> NoReturn:
        raise MalformedGrammar(f"{reason} (line {self._text.count(chr(10), 0, self._at) + 1})")

    def _peek(self, offset: int = 0) -> str:
        at = self._at + offset
        return self._text[at] if at < len(self._text) else ""

    def _skip_space(self, *, newlines: bool) -> None:
        blanks = " \t\r\n" if newlines else " \t"
        while (char := self._peek()) and (char in blanks or char == "#"):
            if char != "#":
                self._at += 1
                continue
            while self._peek() not in ("", "\r", "\n"):
                self._at += 1

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            self._fail(f"expected {what}")
        self._at = match.end()
        return match.group()

    def _expect(self, token: str) -> None:
        if not self._text.startswith(token, self._at):
            self._fail(f"expected {token!r}")
        self._at += len(token)

    def _take_char(self) -> int:
        """The code point of one character of a literal or a class, escaped or not."""
        char = self._peek()
        if not char:
            self._fail("unexpected end of the grammar")
        if char != "\\":
            self._at += 1
            return ord(char)
        escape = self._peek(1)
        if escape in _HEX_DIGITS:
            return self._take_hex(escape)
        if escape not in _PLAIN_ESCAPES:
            self._fail(f"unknown escape \\{escape}")
        self._at += 2
        return ord(_PLAIN_ESCAPES[escape])

    def _take_hex(self, escape: str) -> int:
        n_digits = _HEX_DIGITS[escape]
        digits = _HEX.match(self._text, self._at + 2, self._at + 2 + n_digits)
        if digits is None or len(digits.group()) < n_digits:
            self._fail(f"expected {n_digits} hexadecimal digits after \\{escape}")
        code = int(digits.group(), 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._fail(f"\\{escape}{digits.group()} is no character")
        self._at += 2 + n_digits
        return code

    # -- rules

    def _parse_rule(self) -> None:
        name = self._take(_NAME, "a rule name")
        self._skip_space(newlines=False)
        self._expect("::=")
        self._skip_space(newlines=True)
        self._rule = self._rules[name] = _Rule()
        self._rule.alternates = self._parse_alternates(depth=0)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            self._fail(f"expected a new line, got {self._peek()!r}")
        self._skip_space(newlines=True)

    def _parse_alternates(self, depth: int) -> list[_Sequence]:
        if depth > MAX_NESTING:
            self._fail(f"parentheses are nested more than {MAX_NESTING} deep")
        self._rule.depth = max(self._rule.depth, depth)
        alternates = [self._parse_sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip_space(newlines=True)
            alternates.append(self._parse_sequence(depth))
        return alternates

    def _parse_sequence(self, depth: int) -> _Sequence:
        sequence: _Sequence = []
        while char := self._peek():
            if char in "*+?{":
                least, most = self._take_bounds(nested=depth > 0)
                if not sequence:
                    self._fail("a repetition needs an item before it")
                sequence[-1] = self._repeat(sequence[-1], least, most)
                continue
            item = self._take_item(char, depth)
            if item is None:
                break
            sequence.append(item)
            self._skip_space(newlines=depth > 0)
        return sequence

    def _repeat(self, item: _Item, least: int, most: int | None) -> _Repeat:
        nested, n_nested = item, 1
        while isinstance(nested, _Repeat):
            nested, n_nested = nested.item, n_nested + 1
        self._rule.depth = max(self._rule.depth, n_nested)
        return _Repeat(item, least, most)

    def _take_item(self, char: str, depth: int) -> _Item | None:
        """The next item; None if what follows is none, i.e. ends the sequence."""
        match char:
            case '"':
                return self._take_literal()
            case "[":
                return self._take_class()
            case "<" | "!":
                return self._take_token()
            case ".":
                self._at += 1
                return _Text("/(?s:.)/")
            case "(":
                return self._take_group(depth)
            case _ if _NAME.match(char):
                name = self._take(_NAME, "a rule name")
                self._used[name] = None
                return _Ref(name)
            case _:
                return None

    def _take_literal(self) -> _Item:
        self._at += 1
        chars = ""
        while self._peek() != '"':
            chars += _escaped(self._take_char())
        self._at += 1
        return _Text(f"/{chars}/" if chars else '""')

    def _take_class(self) -> _Item:
        negated = self._peek(1) == "^"
        self._at += 2 if negated else 1
        if self._peek() == "]":
            self._fail("a character class is empty")
        ranges = ""
        while self._peek() != "]":
            low = high = self._take_char()
            if self._peek() == "-" and self._peek(1) != "]":
                self._at += 1
                high = self._take_char()
            if high < low:
                self._fail("a character range is reversed")
            ranges += _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"
        self._at += 1
        return _Text(f"/[{'^' if negated else ''}{ranges}]/")

    def _take_token(self) -> _Item:
        """<[id]>, or <text of one token> with its brackets; either negated with "!"."""
        negated = self._peek() == "!"
        self._at += negated
        begin = self._at
        self._expect("<")
        if self._peek() == "[":
            self._at += 1
            if int(self._take(_DIGITS, "a token id")[:11]) >= 2**31:
                self._fail("a token id is too large")
            self._expect("]>")
        else:
            self._at = self._text.find(">", self._at) + 1
            if not self._at:
                self._at = begin
                self._fail("expected '>'")
        token = self._token_id(self._text[begin : self._at])
        return _Token(f"<[{'^' if negated else ''}{token}]>")

    def _take_group(self, depth: int) -> _Item:
        self._at += 1
        self._skip_space(newlines=True)
        alternates = self._parse_alternates(depth + 1)
        self._expect(")")
        return _Group(alternates)

    def _take_bounds(self, *, nested: bool) -> tuple[int, int | None]:
        char = self._peek()
        self._at += 1
        self._skip_space(newlines=nested)
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        least = self._take_count(nested=nested)
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._skip_space(newlines=nested)
            most = self._take_count(nested=nested) if _DIGITS.match(self._peek()) else None
        self._expect("}")
        self._skip_space(newlines=nested)
        if most is not None and most < least:
            self._fail(f"repetition {{{least},{most}}} has its bounds reversed")
        return least, most

    def _take_count(self, *, nested: bool) -> int:
        count = int(self._take(_DIGITS, "a number of repetitions")[:10])
        if count > MAX_REPETITIONS:
            self._fail(f"more than {MAX_REPETITIONS} repetitions")
        self._skip_space(newlines=nested)
        return count


def _escaped(code: int) -> str:
    """A character in a regular expression, inside a class or outside."""
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"


class _Writer:
    """Rules as Lark. Names are numbered, since Lark's decide by their case whether a rule is a terminal."""

    def __init__(self, rules: dict[str, _Rule], start: str) -> None:
        self._rules = rules
        self._start = start
        self._number = {name: number for number, name in enumerate(rules)}
        self._regular = _regular_rules(rules)
        self._runs: dict[str, str] = {}  # what regular items in a row of a recursive rule match -> the name of its terminal

    def write(self) -> str:
        lines = [f"{self._start}: {self._name('root')}"]
        lines += [f"{self._name(name)}: {self._body(name, rule)}" for name, rule in self._rules.items()]
        lines += [f"{name}: {body}" for body, name in self._runs.items()]
        return "\n".join(lines) + "\n"

    def _name(self, rule: str) -> str:
        name = f"{self._start}_{self._number[rule]}"
        return name.upper() if rule in self._regular else name

    def _body(self, name: str, rule: _Rule) -> str:
        if name not in self._regular:
            return self._choice(rule.alternates, self._mixed)
        again, ends = _split_tail_recursion(name, rule.alternates)
        end = self._choice(ends, self._plain)
        return f"({self._choice(again, self._plain)})* ({end})" if again else end

    def _choice(self, alternates: list[_Sequence], write: Callable[[_Sequence], str]) -> str:
        return " | ".join(write(sequence) for sequence in alternates)

    def _plain(self, sequence: _Sequence) -> str:
        return " ".join(self._item(item, self._plain) for item in sequence) or '""'

    def _mixed(self, sequence: _Sequence) -> str:
        """A sequence of a recursive rule: regular items in a row become one terminal."""
        parts: list[str] = []
        run: _Sequence = []
        for item in [*sequence, None]:
            if item is not None and _is_regular([item], self._regular):
                run.append(item)
                continue
            if run:
                parts.append(self._run(self._plain(run)))
                run = []
            if item is not None:
                parts.append(self._item(item, self._mixed))
        return " ".join(parts) or '""'

    def _run(self, body: str) -> str:
        return self._runs.setdefault(body, f"{self._start.upper()}_T{len(self._runs)}")

    def _item(self, item: _Item, write: Callable[[_Sequence], str]) -> str:
        match item:
            case _Text(lark) | _Token(lark):
                return lark
            case _Ref(name):
                return self._name(name)
            case _Group(alternates):
                return f"({self._choice(alternates, write)})"
            case _Repeat(_, _, 0):
                return '""'
            case _Repeat(repeated, least, most):
                return f"({write([repeated])}){{{least},{'' if most is None else most}}}"


def _regular_rules(rules: dict[str, _Rule]) -> set[str]:
    """The rules that a finite automaton can match, a rule that only ends with itself (`ws ::= ([ \\t] ws)?`) among them.

    One whose expression would be huge (30 rules that each double the next) stays a rule: rules share what terminals repeat.
    """
    sizes: dict[str, int] = {}
    rest = {name: _items_but_tail(name, rule) for name, rule in rules.items()}
    most = max(_MAX_EXPRESSION, sum(_size(items, defaultdict(int)) for items in rest.values()))
    while found := {name: _size(items, sizes) for name, items in rest.items() if _is_regular(items, sizes)}:
        sizes |= {name: size for name, size in found.items() if size <= most}
        for name in found:
            del rest[name]
    return set(sizes)


def _items_but_tail(name: str, rule: _Rule) -> _Sequence:
    return [item for sequences in _split_tail_recursion(name, rule.alternates) for sequence in sequences for item in sequence]


def _is_regular(items: Iterable[_Item], regular: Container[str]) -> bool:
    for item in items:
        match item:
            case _Token():
                return False
            case _Ref(name) if name not in regular:
                return False
            case _Group() | _Repeat() if not _is_regular(_inner(item), regular):
                return False
    return True


def _size(items: Iterable[_Item], sizes: Mapping[str, int]) -> int:
    """How many terminals an expression of regular items has, those of rules counted at each mention."""
    return sum(sizes[item.name] if isinstance(item, _Ref) else 1 + _size(_inner(item), sizes) for item in items)


def _inner(item: _Item) -> list[_Item]:
    match item:
        case _Group(alternates):
            return [inner for sequence in alternates for inner in sequence]
        case _Repeat(repeated):
            return [repeated]
        case _:
            return []


def _split_tail_recursion(name: str, alternates: list[_Sequence]) -> tuple[list[_Sequence], list[_Sequence]]:
    """Alternates that end with the rule itself, without that end, and the others."""
    again: list[_Sequence] = []
    ends: list[_Sequence] = []
    for sequence in _unwrapped(alternates):
        if len(sequence) > 1 and sequence[-1] == _Ref(name):
            again.append(sequence[:-1])
        else:
            ends.append(sequence)
    return again, ends


def _unwrapped(alternates: list[_Sequence]) -> Iterator[_Sequence]:
    """The alternates, with those of a group (perhaps an optional one) that is all there is of one."""
    for sequence in alternates:
        match sequence:
            case [_Group(inner)]:
                yield from _unwrapped(inner)
            case [_Repeat(_Group(inner), 0, 1)]:
                yield from _unwrapped(inner)
                yield []
            case _:
                yield sequence
