"""Reads the value of one argument that is written between tags, without quotes: text as it is, or
JSON, as the argument's schema says.
"""

from __future__ import annotations

import json
import re
from typing import Any

from erllama.chat.tool_formats.literal import python_json
from erllama.chat.tool_formats.schema_types import Types, allows
from erllama.chat.tool_formats.splitter import held_prefix
from erllama.grammar.schema_root import json_type

TEXT: Types = frozenset({"string"})
_JSON_WORDS = ("true", "false", "null")
_N_BEGINNING = 64  # characters of a value that show whether it may be JSON
_NUMBER_BEGUN = re.compile(r"[-+0-9.eE\s]*")
_BEGINS = {"{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}


class ValueReader:
    """Reads the value that begins at `begin` of a growing text and ends before `closing`, with
    `padding` on both sides, which need not be there.

    A text is given out as it is made, JSON when it is complete. A closing inside of a JSON string
    is part of the string.
    """

    def __init__(self, begin: int, closing: str, types: Types, padding: str) -> None:
        self._closing = closing
        self._types = types
        self._padding = padding
        self._begin: int | None = None if padding else begin  # behind the padding
        self._at = begin
        self._is_text = False  # it is certain, and what is before `_at` has been given out
        self._scanner = _JsonEnd(closing, begin)

    def read(self, text: str, *, final: bool) -> tuple[str, int | None]:
        """JSON text of what became certain, and where the value's closing begins, None while it is
        not there.
        """
        if self._begin is None:
            if len(text) - self._at < len(self._padding) and not final:
                return "", None
            self._at += len(self._padding) if text.startswith(self._padding, self._at) else 0
            self._begin = self._at
        if self._is_text:
            return self._read_text(text, final)
        if not may_be_json(self._beginning(text), self._types):
            self._is_text = True
            piece, end = self._read_text(text, final)
            return '"' + piece, end
        end = self._scanner.end(text, final=final)
        return ("", None) if end is None else (json_of(self._unpadded(text, end), self._types), end)

    def _beginning(self, text: str) -> str:
        """The first characters of the value, without what may belong to its closing."""
        begun = text[self._begin : (self._begin or 0) + _N_BEGINNING]
        begun, found, _ = begun.partition(self._closing)
        return begun if found else begun[: len(begun) - held_prefix(begun, (self._closing,))]

    def _unpadded(self, text: str, end: int) -> str:
        value = text[self._begin : end]
        return value.removesuffix(self._padding) if self._padding else value

    def _read_text(self, text: str, final: bool) -> tuple[str, int | None]:
        end = text.find(self._closing, self._at)
        if end >= 0:
            whole = text[self._at : end]
            return _escaped(whole.removesuffix(self._padding) if self._padding else whole) + '"', end
        tail = text[max(self._at, len(text) - len(self._padding) - len(self._closing)) :]
        held = 0 if final else held_prefix(tail, (self._padding + self._closing, self._closing))
        piece = text[self._at : len(text) - held]
        self._at += len(piece)
        return _escaped(piece), None


class _JsonEnd:
    """Finds the closing of what may be JSON: the first one outside of strings, or the first one of
    all if this turns out to be no JSON.
    """

    def __init__(self, closing: str, begin: int) -> None:
        self._closing = closing
        # what no JSON string holds, and what changes the meaning of the next quote
        self._token = re.compile(r'\\.|"|[\x00-\x1f]|' + re.escape(closing), re.DOTALL)
        self._at = begin
        self._in_string = False
        self._is_broken = False
        self._inside: int | None = None  # the first closing inside of a string

    def end(self, text: str, *, final: bool) -> int | None:
        for match in self._token.finditer(text, self._at):
            self._at = match.end()
            token = match.group()
            if token == '"':
                self._in_string = not self._in_string
            elif token == self._closing:
                if not self._in_string or self._is_broken:
                    return match.start()
                self._inside = match.start() if self._inside is None else self._inside
            elif self._in_string and token[0] < " ":
                self._is_broken = True
            if self._is_broken and self._inside is not None:
                return self._inside
        self._at = max(self._at, len(text) - len(self._closing) + 1)
        return self._inside if final else None


def may_be_json(begun: str, types: Types) -> bool:
    """Whether a value that begins like this may be something else than the text that it is."""
    if types == TEXT:
        return False
    if types is not None and "string" not in types:
        return True
    begun = begun.lstrip()
    if not begun or begun[0] == '"':
        return True
    if begun[0] in "-0123456789":
        is_number = _NUMBER_BEGUN.fullmatch(begun) is not None
        return is_number and (allows(types, "integer") or allows(types, "number"))
    if begun[0] in "{[":
        return allows(types, _BEGINS[begun[0]])
    word = begun.rstrip()
    return any(one.startswith(word) and allows(types, _BEGINS[one[0]]) for one in _JSON_WORDS)


def json_of(text: str, types: Types) -> str:
    """The JSON text that a whole value means: itself if it is JSON of a right type, JSON that
    Python wrote, or the text as a string.
    """
    stripped = text.strip()
    value = _loads(stripped)
    is_text = types == TEXT
    if value is not _NO_JSON and not is_text:
        if isinstance(value, str) or types is None or "string" not in types or allows(types, json_type(value)):
            return stripped
    elif types is not None and not is_text:
        literal = python_json(stripped)
        if literal is not None and allows(types, json_type(json.loads(literal))):
            return literal
    return json.dumps(text, ensure_ascii=False)


_NO_JSON = object()


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NO_JSON


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
