"""Readers of calls whose arguments are a JSON object, which is handed on as it is written.

    <opening> {"name": "f", "arguments": {...}} <closing>        `ObjectReader`, or a list of such
    <opening> f <separator> {...} <closing>                      `NamedReader`

Arguments stream: once the name and the beginning of the object are there, it is a call, and what
follows up to the end of the object belongs to it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReplyPart
from erllama.chat.tool_formats.splitter import NotACall

# an escaped character, a quote that begins or ends a string, or a bracket
_TOKEN = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_SPACE = re.compile(r"\s*")
_STRING = r'"(?:[^"\\]|\\.)*"'
_MAX_HEAD = 512  # characters from an opening to the arguments; more is text


class JsonScanner:
    """Finds the end of the JSON object or list that begins at `begin` of a growing text."""

    def __init__(self, begin: int) -> None:
        self.at = begin  # all before it is read
        self.ended = False
        self._depth = 0
        self._in_string = False

    def end(self, text: str) -> int | None:
        """Where the value ends in `text`; None while it has not. Goes on where it stopped."""
        if self.ended:
            return self.at
        for match in _TOKEN.finditer(text, self.at):
            self.at = match.end()
            token = match.group()
            if token == '"':
                self._in_string = not self._in_string
            elif not self._in_string and token in "{[":
                self._depth += 1
            elif not self._in_string and token in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.ended = True
                    return self.at
        self.at = max(self.at, len(text) - text.endswith("\\"))  # half of an escape waits
        return None


def skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def read_closing(text: str, at: int, closing: str, *, final: bool) -> int | None:
    """Where a call ends whose arguments end at `at`: behind `closing`, or right there if something
    else follows. None while that is open.
    """
    begin = skip_space(text, at)
    if text.startswith(closing, begin):
        return begin + len(closing)
    return None if closing.startswith(text[begin:]) and not final else at


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """`{"name": ..., "arguments": {...}}` under a family's own names; `in_list` where the object
    stands in a list, of one or more.
    """

    opening: str
    closing: str
    name_keys: tuple[str, ...] = ("name",)
    arguments_keys: tuple[str, ...] = ("arguments", "parameters")
    in_list: bool = False

    def head(self) -> re.Pattern[str]:
        names, arguments = "|".join(self.name_keys), "|".join(self.arguments_keys)
        return re.compile(rf'\s*\{{\s*"(?:{names})"\s*:\s*({_STRING})\s*,\s*"(?:{arguments})"\s*:\s*(?=\{{)', re.DOTALL)


class ObjectReader:
    """See `CallReader`. Other orders of the keys, further keys and arguments quoted once more are
    understood, but do not stream.
    """

    def __init__(self, shape: ObjectShape) -> None:
        self._shape = shape
        self._head = shape.head()
        self._at = len(shape.opening.rstrip())  # where the next element, or its tail, begins
        self._begun = False  # inside the list
        self._given = False  # a call has been given out
        self._object: JsonScanner | None = None  # the whole element
        self._arguments: JsonScanner | None = None
        self._closing = False

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        if self._shape.in_list and not self._begun:
            begin = skip_space(text, self._at)
            if begin == len(text) and not final:
                return out, None
            if not text.startswith("[", begin):
                raise NotACall
            self._at, self._begun = begin + 1, True
        while not self._closing:
            if not self._read_element(text, out, final=final):
                return out, len(text) if final else None
            if not self._read_separator(text, final=final):
                return out, None
        return out, read_closing(text, self._at, self._shape.closing.strip(), final=final)

    def _read_element(self, text: str, out: list[ReplyPart], *, final: bool) -> bool:
        """Whether the element that begins at `_at` is complete; `_at` is behind it then."""
        begin = skip_space(text, self._at)
        if self._object is None:
            if begin == len(text):
                return self._incomplete(final)
            if text[begin] != "{":
                return self._refuse()
            self._object = JsonScanner(begin)
        if self._arguments is None and (head := self._head.match(text, self._at)) and (name := _loads(head[1])):
            self._arguments = JsonScanner(head.end())
            self._given = True
            out.append(CallStart(name))
        if self._arguments is not None:
            self._give_arguments(text, out)
        end = self._object.end(text)
        if end is None:
            return self._incomplete(final)
        if self._arguments is None:
            self._give_whole(text[begin:end], out)
        self._at, self._object, self._arguments = end, None, None
        return True

    def _give_arguments(self, text: str, out: list[ReplyPart]) -> None:
        assert self._arguments is not None
        begin = self._arguments.at
        self._arguments.end(text)
        if self._arguments.at > begin:
            out.append(ArgumentsDelta(text[begin : self._arguments.at]))

    def _give_whole(self, body: str, out: list[ReplyPart]) -> None:
        """A call that could not stream."""
        call = _loads(body)
        call = call if isinstance(call, dict) else {}
        name = next((call[key] for key in self._shape.name_keys if key in call), None)
        arguments = next((call[key] for key in self._shape.arguments_keys if key in call), None)
        if isinstance(arguments, str):  # some models quote the object once more
            arguments = _loads(arguments)
        elif arguments is None:
            arguments = {}
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            self._refuse()
            return
        self._given = True
        out += [CallStart(name), ArgumentsDelta(json.dumps(arguments, ensure_ascii=False))]

    def _read_separator(self, text: str, *, final: bool) -> bool:
        """Whether it is known what follows an element: another one, or the closing."""
        if not self._shape.in_list:
            self._closing = True
            return True
        begin = skip_space(text, self._at)
        if begin == len(text) and not final:
            return False
        self._closing = not text.startswith(",", begin)
        self._at = begin + (text[begin : begin + 1] in (",", "]"))
        return True

    def _incomplete(self, final: bool) -> bool:
        if final and not self._given:
            raise NotACall
        return False

    def _refuse(self) -> bool:
        if not self._given:
            raise NotACall
        self._closing = True
        return True


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class NamedShape:
    """`f<separator>{...}`: `head` matches from the opening to the arguments, with a group `name`;
    any of `tails`, the longest first, may stand behind them, or nothing.
    """

    head: re.Pattern[str]
    tails: tuple[str, ...]


class NamedReader:
    """See `CallReader`. One call; the next one has an opening of its own."""

    def __init__(self, shape: NamedShape) -> None:
        self._shape = shape
        self._arguments: JsonScanner | None = None

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        if self._arguments is None:
            head = self._shape.head.match(text)
            if head is None or not text.startswith("{", head.end()):
                if final or len(text) > _MAX_HEAD:
                    raise NotACall
                return out, None
            out.append(CallStart(head["name"]))
            self._arguments = JsonScanner(head.end())
        begin = self._arguments.at
        end = self._arguments.end(text)
        if self._arguments.at > begin:
            out.append(ArgumentsDelta(text[begin : self._arguments.at]))
        if end is None:
            return out, len(text) if final else None
        return out, self._tail(text, end, final=final)

    def _tail(self, text: str, at: int, *, final: bool) -> int | None:
        rest = text[skip_space(text, at) :]
        for tail in self._shape.tails:
            if rest.startswith(tail):
                return len(text) - len(rest) + len(tail)
            if tail.startswith(rest) and not final:
                return None
        return at
