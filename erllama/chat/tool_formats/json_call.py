"""Reads calls that are a JSON object with the function's name and its arguments, which are handed on
as they are written.

    <opening> {"name": "f", "arguments": {...}} <closing>        or several of such objects

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
_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)


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
    if not closing:
        return at
    if text.startswith(closing, begin):
        return begin + len(closing)
    return None if closing.startswith(text[begin:]) and not final else at


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """`{"name": ..., "arguments": {...}}` under a family's own names, from `opening` to `closing`.

    The first of several keys is the one that is written. Without `name_keys` the function's name is
    itself the key: `{"f": {...}}`. `id_key` is a key for an id of the call, a number of at least
    `id_width` digits when written, before the name or behind the arguments. `joint` is what stands
    between several objects behind one opening, "" where there is but one; in a list, whose bracket
    may be part of the opening, it is a comma. `bare`: nothing but its form tells a call from
    another object, so it must have both keys and the name of an offered tool.
    """

    opening: str
    closing: str
    name_keys: tuple[str, ...] = ("name",)
    arguments_keys: tuple[str, ...] = ("arguments", "parameters")
    in_list: bool = False
    joint: str = ""
    id_key: str = ""
    id_first: bool = False
    id_width: int = 1
    other_openings: tuple[str, ...] = ()
    bare: bool = False

    @property
    def several(self) -> bool:
        """Whether calls share an opening."""
        return self.in_list or bool(self.joint)

    @property
    def openings(self) -> tuple[str, ...]:
        """What a call may begin with in a reply."""
        first = "{" if self.bare else self.opening.strip()
        return (first, *self.other_openings)

    def head(self) -> re.Pattern[str]:
        if not self.name_keys:
            return re.compile(rf"\s*\{{\s*({_STRING})\s*:\s*(?=\{{)", re.DOTALL)
        names, arguments = "|".join(self.name_keys), "|".join(self.arguments_keys)
        others = "|".join(self.other_keys)
        return re.compile(
            rf'\s*\{{\s*(?:"(?:{others})"\s*:\s*{_STRING}\s*,\s*)*'
            rf'"(?:{names})"\s*:\s*({_STRING})\s*,\s*"(?:{arguments})"\s*:\s*(?=\{{)',
            re.DOTALL,
        )

    @property
    def other_keys(self) -> tuple[str, ...]:
        """Keys whose texts may stand before the name."""
        return ("type", "id", *([self.id_key] if self.id_key else []))


class ObjectReader:
    """See `CallReader`. Other orders of the keys, further keys and arguments quoted once more are
    understood, but do not stream. `names` are those of the offered tools, empty if unknown.
    """

    def __init__(self, shape: ObjectShape, names: frozenset[str] = frozenset()) -> None:
        self._shape = shape
        self._names = names if shape.bare else frozenset()
        self._head = shape.head()
        self._at = -1  # where the next element, or its tail, begins; -1 before the opening is read
        self._end = 0  # of the last element that is a call
        self._given = False  # a call has been given out
        self._object: JsonScanner | None = None  # the whole element
        self._arguments: JsonScanner | None = None
        self._between = False  # behind an element
        self._closing = False  # behind the last one

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        if self._at < 0 and not self._read_opening(text, final=final):
            return out, None
        while not self._closing:
            if not self._between and not self._read_element(text, out, final=final):
                return out, (self._end if self._arguments is None else len(text)) if final else None
            if self._between and not self._read_separator(text, final=final):
                return out, None
        return out, read_closing(text, self._at, self._shape.closing.strip(), final=final)

    def _read_opening(self, text: str, *, final: bool) -> bool:
        """Whether all is there that stands before the first object."""
        opening = next(opening for opening in self._shape.openings if text.startswith(opening))
        if not self._shape.in_list:
            self._at = 0 if opening == "{" else len(opening)
            return True
        begin = skip_space(text, len(opening.removesuffix("[")))
        if begin == len(text) and not final:
            return False
        if not text.startswith("[", begin):
            raise NotACall
        self._at = begin + 1
        return True

    def _read_element(self, text: str, out: list[ReplyPart], *, final: bool) -> bool:
        """Whether the element that begins at `_at` is complete, or there is none; `_at` is behind it
        then.
        """
        begin = skip_space(text, self._at)
        if self._object is None:
            if begin == len(text):
                return self._incomplete(final)
            if text[begin] != "{":
                return self._refuse()
            self._object = JsonScanner(begin)
        if self._arguments is None:
            self._read_head(text, begin, out)
        if self._arguments is not None:
            self._give_arguments(text, out)
        end = self._object.end(text)
        if end is None:
            return self._incomplete(final)
        if self._arguments is None and not self._give_whole(text[begin:end], out):
            return self._refuse()
        self._at, self._end, self._object, self._arguments, self._between = end, end, None, None, True
        return True

    def _read_head(self, text: str, begin: int, out: list[ReplyPart]) -> None:
        if self._shape.bare and self._is_other(text, begin):
            raise NotACall
        head = self._head.match(text, begin)
        name = _loads(head[1]) if head is not None else None
        if head is not None and name and self._offered(name):
            self._arguments = JsonScanner(head.end())
            self._given = True
            out.append(CallStart(name))

    def _is_other(self, text: str, begin: int) -> bool:
        """Whether an object is seen to be no call, at its first key: a reply in JSON streams."""
        if self._given:
            return False
        key = _FIRST_KEY.match(text, begin)
        known = (*self._shape.name_keys, *self._shape.arguments_keys, *self._shape.other_keys)
        return key is not None and key[1] not in known

    def _offered(self, name: str) -> bool:
        return not self._names or name in self._names

    def _give_arguments(self, text: str, out: list[ReplyPart]) -> None:
        assert self._arguments is not None
        begin = self._arguments.at
        self._arguments.end(text)
        if self._arguments.at > begin:
            out.append(ArgumentsDelta(text[begin : self._arguments.at]))

    def _give_whole(self, body: str, out: list[ReplyPart]) -> bool:
        """Whether an object that could not stream is a call."""
        call = _loads(body)
        call = call if isinstance(call, dict) else {}
        if not self._shape.name_keys:
            name, arguments = next(iter(call.items())) if len(call) == 1 else (None, None)
        else:
            name = next((call[key] for key in self._shape.name_keys if key in call), None)
            arguments = next((call[key] for key in self._shape.arguments_keys if key in call), None)
        if isinstance(arguments, str):  # some models quote the object once more
            arguments = _loads(arguments)
        elif arguments is None and self._shape.name_keys and not self._shape.bare:
            arguments = {}
        if not isinstance(name, str) or not name or not isinstance(arguments, dict) or not self._offered(name):
            return False
        self._given = True
        out += [CallStart(name), ArgumentsDelta(json.dumps(arguments, ensure_ascii=False))]
        return True

    def _read_separator(self, text: str, *, final: bool) -> bool:
        """Whether it is known what follows an element: another one, or the closing."""
        if not self._shape.several:
            self._between, self._closing = False, True
            return True
        begin = skip_space(text, self._at)
        if begin == len(text) and not final:
            return False
        self._between = False
        joint = "," if self._shape.in_list else self._shape.joint.strip()
        self._closing = not text.startswith(joint or "{", begin)
        if not self._closing:
            self._at = begin + len(joint)
        elif self._shape.in_list and text.startswith("]", begin):
            self._at = begin + 1
        return True

    def _incomplete(self, final: bool) -> bool:
        if final and not self._given:
            raise NotACall
        return False

    def _refuse(self) -> bool:
        """What stands at `_at` is no call: the calls end before it and what led to it."""
        if not self._given:
            raise NotACall
        self._closing, self._at = True, self._end
        return True


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
