"""Reads values that are written nearly as JSON and gives them out as JSON text while they grow:
Python literals (`{'a': True, 'b': [None, 1]}`) and Gemma's (`{a:true,b:[null,1]}`).

Everything that is certain is given out at once, strings as they are made. What is given out depends
on the text only.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from enum import Enum, auto

from erllama.chat.tool_formats.splitter import held_prefix

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"""[^\s,:\[\](){}'"<>]+""")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(u[0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL)
_LONG_ESCAPES = {"x": 4, "u": 6, "U": 10} | dict.fromkeys("01234567", 4)  # characters; the others have two
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "\n": "", "\\": "\\", "'": "'",
           '"': '"'}  # fmt: skip
_BRACKETS = {"{": ("}", "}"), "[": ("]", "]"), "(": (")", "]")}  # opening: closing, and closing in JSON
_MAX_DEPTH = 100
_LONGEST_WORD = 512  # characters of a number


class BadLiteral(Exception):
    """The text is no literal of JSON data."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """`quotes` are the texts around a string, the longest first; between those of `raw`, nothing is
    escaped. `bare_key` matches a key without quotes, None where there is no such thing. `behind` are
    the characters one of which follows a string, "" for any: what ends none is part of it.
    """

    quotes: tuple[str, ...]
    words: tuple[tuple[str, str], ...]
    raw: tuple[str, ...] = ()
    bare_key: re.Pattern[str] | None = None
    behind: str = ""


_JSON_WORDS = (("true", "true"), ("false", "false"), ("null", "null"))
PYTHON = Dialect(
    ('"""', "'''", '"', "'"), (("True", "true"), ("False", "false"), ("None", "null"), *_JSON_WORDS)
)  # fmt: skip
"""Python's, and JSON's words, which some templates write inside of objects."""
LOOSE_PYTHON = replace(PYTHON, behind=",:)]}")
"""Python's, with quotes in strings that are not escaped, as some templates write them."""


class _Expects(Enum):
    VALUE = auto()
    ITEM = auto()  # of a list, or its end
    KEY = auto()  # of an object, or its end
    COLON = auto()
    NEXT = auto()  # a comma, or an end


class LiteralReader:
    """Reads the one value that begins at `begin` of a growing text. `at` is behind what has been
    read; `ended` when the value is complete.
    """

    def __init__(self, dialect: Dialect, begin: int) -> None:
        self.at = begin
        self.ended = False
        self._dialect = dialect
        self._expects = _Expects.VALUE
        self._closings: list[tuple[str, str]] = []
        self._quote = ""  # of the string that is being read
        self._is_key = False
        self._comma = False  # one was read, and is given out if something follows

    def read(self, text: str, *, final: bool) -> str:
        """The JSON text of what became certain. Raises `BadLiteral`, with `at` where it is."""
        out: list[str] = []
        self.read_into(out, text, final=final)
        return "".join(out)

    def read_into(self, out: list[str], text: str, *, final: bool) -> None:
        """The same, and what was certain before a `BadLiteral` is in `out` all the same."""
        while not self.ended:
            step = self._read_string if self._quote else self._read_token
            if not step(out, text, final):
                break

    def _read_token(self, out: list[str], text: str, final: bool) -> bool:
        match = _SPACE.match(text, self.at)
        begin = self.at if match is None else match.end()
        if begin == len(text):
            return False
        char = text[begin]
        if self._expects in (_Expects.COLON, _Expects.NEXT):
            return self._read_mark(out, char, begin)
        if self._expects != _Expects.VALUE and self._closings and char == self._closings[-1][0]:
            return self._close(out, begin)
        if self._expects == _Expects.KEY:
            return self._read_key(out, text, begin, final)
        return self._read_value(out, text, begin, final)

    def _read_mark(self, out: list[str], char: str, begin: int) -> bool:
        if self._expects == _Expects.COLON and char == ":":
            out.append(": ")
            self._expects = _Expects.VALUE
        elif self._expects == _Expects.NEXT and char == ",":
            self._comma = True
            self._expects = _Expects.KEY if self._closings[-1][0] == "}" else _Expects.ITEM
        elif self._expects == _Expects.NEXT and char == self._closings[-1][0]:
            return self._close(out, begin)
        else:
            raise BadLiteral
        self.at = begin + 1
        return True

    def _close(self, out: list[str], begin: int) -> bool:
        self._comma = False
        out.append(self._closings.pop()[1])
        return self._complete(begin + 1)

    def _complete(self, end: int) -> bool:
        """A value ends here."""
        self.at, self._expects, self.ended = end, _Expects.NEXT, not self._closings
        return True

    def _give(self, out: list[str], piece: str) -> None:
        out.append(", " + piece if self._comma else piece)
        self._comma = False

    def _read_key(self, out: list[str], text: str, begin: int, final: bool) -> bool:
        quoted = self._read_quote(out, text, begin, final, is_key=True)
        bare = self._dialect.bare_key
        if quoted is not None:
            return quoted
        if bare is None:
            raise BadLiteral
        match = bare.match(text, begin)
        if match is None:
            raise BadLiteral
        if match.end() == len(text):
            return False
        self._give(out, json.dumps(match.group(), ensure_ascii=False))
        self.at, self._expects = match.end(), _Expects.COLON
        return True

    def _read_quote(self, out: list[str], text: str, begin: int, final: bool, *, is_key: bool) -> bool | None:
        """Whether a string begins; None if something else does."""
        for quote in self._dialect.quotes:
            if text.startswith(quote, begin):
                self._give(out, '"')
                self.at, self._quote, self._is_key = begin + len(quote), quote, is_key
                return True
            if not final and quote.startswith(text[begin:]):
                return False
        return None

    def _read_value(self, out: list[str], text: str, begin: int, final: bool) -> bool:
        char = text[begin]
        if char in _BRACKETS:
            if len(self._closings) == _MAX_DEPTH:
                raise BadLiteral
            self._give(out, "{" if char == "{" else "[")
            self._closings.append(_BRACKETS[char])
            self.at, self._expects = begin + 1, _Expects.KEY if char == "{" else _Expects.ITEM
            return True
        quoted = self._read_quote(out, text, begin, final, is_key=False)
        if quoted is not None:
            return quoted
        match = _WORD.match(text, begin)
        if match is None or len(match.group()) > _LONGEST_WORD:
            raise BadLiteral
        if match.end() == len(text):
            return False  # it may go on; if the reply is cut off, nobody knows how
        self._give(out, self._json_word(match.group()))
        return self._complete(match.end())

    def _json_word(self, word: str) -> str:
        for own, json_word in self._dialect.words:
            if word == own:
                return json_word
        return word if _NUMBER.fullmatch(word) else _number(word)

    def _read_string(self, out: list[str], text: str, final: bool) -> bool:
        """Whether more can be read: a string's end, an escape, or a piece of it."""
        quote = self._quote
        end = text.find(quote, self.at)
        settled = len(text) - held_prefix(text[max(self.at, len(text) - len(quote)) :], (quote,))
        stop = end if end >= 0 else len(text) if final else settled
        escape = -1 if quote in self._dialect.raw else text.find("\\", self.at, stop)
        if escape >= 0:
            stop = min(stop, escape)
        if stop > self.at:
            out.append(_escaped(text[self.at : stop]))
            self.at = stop
        if escape >= 0:
            return self._read_escape(out, text, final)
        if end < 0:
            return False
        if self._dialect.behind and not self._is_key:
            match = _SPACE.match(text, end + len(quote))
            follows = text[match.end() : match.end() + 1] if match is not None else ""
            if not follows and not final:
                return False
            if follows and follows not in self._dialect.behind:
                out.append(_escaped(quote))
                self.at = end + len(quote)
                return True
        out.append('"')
        self._quote = ""
        if not self._is_key:
            return self._complete(end + len(quote))
        self.at, self._expects = end + len(quote), _Expects.COLON
        return True

    def _read_escape(self, out: list[str], text: str, final: bool) -> bool:
        longest = _LONG_ESCAPES.get(text[self.at + 1 : self.at + 2], 2)
        if len(text) - self.at < longest and not final:
            return False
        match = _ESCAPE.match(text, self.at)
        if match is None:
            return False  # a backslash ends the reply
        out.append(_json_escape(match))
        self.at = match.end()
        return True


def _json_escape(match: re.Match[str]) -> str:
    byte, unit, point, octal, simple = match.groups()
    if unit:
        return "\\" + unit
    if simple is not None:
        return _escaped(_SIMPLE.get(simple, "\\" + simple))
    code = int(octal, 8) if octal else int(byte or point, 16)
    if code > 0x10FFFF:
        raise BadLiteral
    return json.dumps(chr(code))[1:-1]


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _number(word: str) -> str:
    """A number as Python writes it, and JSON does not: `1_000`, `.5`, `0x10`."""
    try:
        return json.dumps(int(word, 0))
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        raise BadLiteral from None
    if not math.isfinite(value):
        raise BadLiteral
    return json.dumps(value)


def python_json(text: str) -> str | None:
    """The JSON text of a whole Python literal, None if `text` is none."""
    reader = LiteralReader(PYTHON, 0)
    try:
        found = reader.read(text + "\n", final=True)
    except BadLiteral:
        return None
    return found if reader.ended and not text[reader.at :].strip() else None
