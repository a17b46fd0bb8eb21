"""The `pattern` keyword of JSON Schema as GBNF: a regular expression over the characters of a JSON string.

Supported is the regular part of ECMA-262: literals, `.`, classes, the escapes \\d \\w \\s and their negations, control, \\xHH and \\uHHHH
escapes, groups (capturing, named or not), alternation, the quantifiers * + ? {m} {m,} {m,n}, and `^` `$` at the two ends. Look-around, back
references, word boundaries and anchors elsewhere are refused. A lazy quantifier accepts the same strings as a greedy one. Without `^` or
`$` a pattern matches anywhere, as the standard says.

The result matches the characters *between* the quotes, as they stand in JSON text: what must be escaped there (the quote, the backslash,
control characters) is written as its short escape.

Pure. Errors are `UnsupportedPattern`, to be given a parameter name by the caller.
"""

from __future__ import annotations

import re
from typing import NoReturn

MAX_NESTING = 32
MAX_CODE_POINT = 0x10FFFF
ANY_JSON_CHAR = "char"  # the rule of json_schema.py for one character of a string

_Ranges = list[tuple[int, int]]  # closed intervals of code points, sorted and disjoint

_DIGIT: _Ranges = [(0x30, 0x39)]
_WORD: _Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: _Ranges = [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
                   (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]  # fmt: skip
_LINE_ENDS: _Ranges = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
_CONTROL_ESCAPES = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
_QUANTIFIER = re.compile(r"\{([0-9]{1,9})(,([0-9]{0,9}))?\}")
# JSON's short escapes; all other control characters cannot be written and are dropped from classes.
_JSON_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}
_NOT_PLAIN: _Ranges = [(0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)]  # UTF-8 has no surrogates


class UnsupportedPattern(ValueError):
    """The pattern is malformed, or not regular, or matches nothing that JSON can hold. The message says which."""


def pattern_to_gbnf(pattern: str) -> str:
    """A GBNF expression for the strings that contain a match of `pattern`. It refers to the rule `char`. Raises `UnsupportedPattern`."""
    return _Translator(pattern).translate()


def char_class(ranges: _Ranges) -> str:
    """A GBNF expression for one character out of `ranges`, as JSON text holds it. Raises `UnsupportedPattern` for none."""
    plain = _subtract(ranges, _NOT_PLAIN)
    alternates = ["[" + "".join(_gbnf_range(low, high) for low, high in plain) + "]"] if plain else []
    alternates += [_escaped(code) for code in _JSON_ESCAPES if _contains(ranges, code)]
    if not alternates:
        raise UnsupportedPattern("a character class matches nothing")
    return alternates[0] if len(alternates) == 1 else "( " + " | ".join(alternates) + " )"


class _Translator:
    """Recursive descent: alternatives, sequences, quantified atoms."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def translate(self) -> str:
        anchored_start = self._pattern.startswith("^")
        if anchored_start:
            self._at = 1
        body, top_level = self._alternatives(0)
        if self._at < len(self._pattern):
            self._fail("unbalanced parenthesis")
        anchored_end = self._ends_anchored()
        if top_level > 1 and (anchored_start or anchored_end):
            self._fail("an anchor beside a top-level alternative; write ^(a|b)$")
        parts = [] if anchored_start else [f"{ANY_JSON_CHAR}*"]
        parts.append(body if top_level == 1 else f"( {body} )")
        if not anchored_end:
            parts.append(f"{ANY_JSON_CHAR}*")
        return " ".join(part for part in parts if part) or '""'

    def _ends_anchored(self) -> bool:
        stripped = self._pattern.rstrip("$")
        n_backslashes = len(stripped) - len(stripped.rstrip("\\"))
        return len(self._pattern) - len(stripped) == 1 and n_backslashes % 2 == 0

    def _fail(self, reason: str) -> NoReturn:
        raise UnsupportedPattern(f"{reason}, at position {self._at} of /{self._pattern}/")

    def _peek(self, offset: int = 0) -> str:
        at = self._at + offset
        return self._pattern[at] if at < len(self._pattern) else ""

    def _alternatives(self, depth: int) -> tuple[str, int]:
        if depth > MAX_NESTING:
            self._fail(f"groups nested more than {MAX_NESTING} deep")
        alternatives = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            alternatives.append(self._sequence(depth))
        return " | ".join(text or '""' for text in alternatives) if len(alternatives) > 1 else alternatives[0], len(alternatives)

    def _sequence(self, depth: int) -> str:
        items: list[str] = []
        while (char := self._peek()) and char not in "|)":
            if char == "$" and depth == 0 and self._at == len(self._pattern) - 1:
                self._at += 1
                break
            items.append(self._quantified(self._atom(char, depth)))
        return " ".join(items)

    def _atom(self, char: str, depth: int) -> str:
        if char == "(":
            return self._group(depth)
        if char == "[":
            return char_class(self._class())
        if char in "^$":
            self._fail("an anchor inside the pattern")
        if char in "*+?":
            self._fail("a quantifier without anything before it")
        if char == "{" and _QUANTIFIER.match(self._pattern, self._at):
            self._fail("a quantifier without anything before it")
        if char == ".":
            self._at += 1
            return char_class(_invert(_LINE_ENDS))
        if char == "\\":
            return char_class(self._escape())
        self._at += 1
        return char_class([(ord(char), ord(char))])

    def _group(self, depth: int) -> str:
        self._at += 1
        if self._peek() == "?":
            named = re.compile(r"\?<[A-Za-z_$][\w$]*>").match(self._pattern, self._at)
            if named:
                self._at = named.end()
            elif self._peek(1) == ":":
                self._at += 2
            else:
                self._fail("look-around or an unknown group")
        body, _ = self._alternatives(depth + 1)
        if self._peek() != ")":
            self._fail("unbalanced parenthesis")
        self._at += 1
        return f"( {body} )" if body else '""'

    def _quantified(self, atom: str) -> str:
        char = self._peek()
        match = _QUANTIFIER.match(self._pattern, self._at) if char == "{" else None
        if match:
            self._at = match.end()
            suffix = match.group()
        elif char and char in "*+?":
            self._at += 1
            suffix = char
        else:
            return atom
        if self._peek() == "?":  # lazy
            self._at += 1
        if self._peek() and self._peek() in "*+?":
            self._fail("a quantifier of a quantifier")
        return atom if atom == '""' else atom + suffix

    def _escape(self) -> _Ranges:
        """The characters that the escape at the cursor stands for, inside a class or outside."""
        char = self._peek(1)
        self._at += 2
        classes = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
        if char.lower() in classes:
            ranges = classes[char.lower()]
            return ranges if char.islower() else _invert(ranges)
        if char in _CONTROL_ESCAPES and char:
            code = _CONTROL_ESCAPES[char]
        elif char in ("x", "u"):
            n_digits = 2 if char == "x" else 4
            digits = self._pattern[self._at : self._at + n_digits]
            if not re.fullmatch(r"[0-9a-fA-F]+", digits) or len(digits) < n_digits:
                self._fail(f"\\{char} needs {n_digits} hexadecimal digits")
            self._at += n_digits
            code = int(digits, 16)
        elif char and not char.isalnum():
            code = ord(char)
        else:
            self._fail(f"\\{char} is not supported")
        return [(code, code)]

    def _class(self) -> _Ranges:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: _Ranges = []
        while self._peek() != "]":
            low = self._class_member()
            single = len(low) == 1 and low[0][0] == low[0][1]
            if single and self._peek() == "-" and self._peek(1) not in ("]", ""):
                self._at += 1
                high = self._class_member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    self._fail("a character range is reversed or has no end")
                low = [(low[0][0], high[0][0])]
            ranges += low
        self._at += 1
        ranges = _union(ranges)
        return _invert(ranges) if negated else ranges

    def _class_member(self) -> _Ranges:
        char = self._peek()
        if not char:
            self._fail("unbalanced square bracket")
        if char == "\\":
            if self._peek(1) == "b":  # a backspace here, not a word boundary
                self._at += 2
                return [(0x08, 0x08)]
            return self._escape()
        self._at += 1
        return [(ord(char), ord(char))]


def _union(ranges: _Ranges) -> _Ranges:
    merged: _Ranges = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _invert(ranges: _Ranges) -> _Ranges:
    inverted: _Ranges = []
    start = 0
    for low, high in _union(ranges):
        if low > start:
            inverted.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODE_POINT:
        inverted.append((start, MAX_CODE_POINT))
    return inverted


def _subtract(ranges: _Ranges, taken: _Ranges) -> _Ranges:
    return _invert(_union(_invert(ranges) + taken))


def _contains(ranges: _Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _gbnf_char(code: int) -> str:
    if 0x20 <= code < 0x7F and chr(code) not in '\\"[]^-':
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _gbnf_range(low: int, high: int) -> str:
    return _gbnf_char(low) if low == high else f"{_gbnf_char(low)}-{_gbnf_char(high)}"


def _escaped(code: int) -> str:
    letter = _JSON_ESCAPES[code]
    return '"\\\\' + ("\\" + letter if letter in '"\\' else letter) + '"'
