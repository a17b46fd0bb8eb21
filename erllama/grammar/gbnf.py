"""GBNF, the grammar language of llama.cpp, as rules of literals, classes, tokens and references.

Escapes, repetitions and white space follow `llama_grammar_parser` of llama.cpp. Pure; errors are
`MalformedGrammar`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

MAX_NESTING = 100  # of parentheses
MAX_REPETITIONS = 2000
_NAME = re.compile(r"[A-Za-z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_HEX = re.compile(r"[0-9a-fA-F]*")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_PLAIN_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}

TokenId = Callable[[str], int]
"""The id of a token reference, `<[id]>` or `<text>` with its brackets. Raises `MalformedGrammar` for
one that the vocabulary lacks.
"""


class MalformedGrammar(Exception):
    """A grammar that is refused; the message is a reason for its author."""


@dataclass(frozen=True, slots=True)
class Text:
    """A literal or a character class, as a Lark terminal."""

    lark: str


@dataclass(frozen=True, slots=True)
class Token:
    """A reference to tokens by id, as Lark writes it; allowed in rules only."""

    lark: str


@dataclass(frozen=True, slots=True)
class Ref:
    name: str


@dataclass(frozen=True, slots=True)
class Group:
    alternates: list[list[Item]]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Item
    least: int
    most: int | None


Item = Text | Token | Ref | Group | Repeat
Symbols = list[Item]


@dataclass(slots=True)
class Rule:
    """`depth` counts the parentheses around its innermost item."""

    alternates: list[Symbols] = field(default_factory=list)
    depth: int = 0


class GbnfParser:
    """GBNF to rules by name, following llama_grammar_parser statement by statement."""

    def __init__(self, text: str, token_id: TokenId) -> None:
        self._text = text
        self._token_id = token_id
        self._at = 0
        self._rules: dict[str, Rule] = {}
        self._rule = Rule()  # the one that is being parsed
        self._used: dict[str, None] = {}

    def parse(self) -> dict[str, Rule]:
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
        self._rule = self._rules[name] = Rule()
        self._rule.alternates = self._parse_alternates(depth=0)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            self._fail(f"expected a new line, got {self._peek()!r}")
        self._skip_space(newlines=True)

    def _parse_alternates(self, depth: int) -> list[Symbols]:
        if depth > MAX_NESTING:
            self._fail(f"parentheses are nested more than {MAX_NESTING} deep")
        self._rule.depth = max(self._rule.depth, depth)
        alternates = [self._parse_sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip_space(newlines=True)
            alternates.append(self._parse_sequence(depth))
        return alternates

    def _parse_sequence(self, depth: int) -> Symbols:
        sequence: Symbols = []
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

    def _repeat(self, item: Item, least: int, most: int | None) -> Repeat:
        nested, n_nested = item, 1
        while isinstance(nested, Repeat):
            nested, n_nested = nested.item, n_nested + 1
        self._rule.depth = max(self._rule.depth, n_nested)
        return Repeat(item, least, most)

    def _take_item(self, char: str, depth: int) -> Item | None:
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
                return Text("/(?s:.)/")
            case "(":
                return self._take_group(depth)
            case _ if _NAME.match(char):
                name = self._take(_NAME, "a rule name")
                self._used[name] = None
                return Ref(name)
            case _:
                return None

    def _take_literal(self) -> Item:
        self._at += 1
        chars = ""
        while self._peek() != '"':
            chars += _escaped(self._take_char())
        self._at += 1
        return Text(f"/{chars}/" if chars else '""')

    def _take_class(self) -> Item:
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
        return Text(f"/[{'^' if negated else ''}{ranges}]/")

    def _take_token(self) -> Item:
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
        return Token(f"<[{'^' if negated else ''}{token}]>")

    def _take_group(self, depth: int) -> Item:
        self._at += 1
        self._skip_space(newlines=True)
        alternates = self._parse_alternates(depth + 1)
        self._expect(")")
        return Group(alternates)

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
