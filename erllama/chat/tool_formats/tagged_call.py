"""Reads calls whose arguments stand between tags, each by itself:

    <tool_call>                          the section, which some families have
    <function=get_weather>               the call, with its name
    <parameter=city>                     an argument, with its key
    Paris                                its value, see `tagged_value.py`
    </parameter>
    </function>
    </tool_call>

They are given out as the JSON object that they mean. White space between tags has no meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReplyPart, ToolSpec
from erllama.chat.tool_formats.json_call import JsonScanner, read_closing, skip_space
from erllama.chat.tool_formats.schema_types import Types, json_types
from erllama.chat.tool_formats.splitter import NotACall
from erllama.chat.tool_formats.tagged_value import TEXT, ValueReader

_MAX_HEAD = 512  # characters from a tag to the end of its name; more is no tag
_NAME = r"\s*(?P<name>[\w.:/$-]+)\s*"
_KEY, _ESCAPED_KEY = r"(?P<key>[^<>\"\r\n]+)", r"(?P<key>[^\"]+)"
_SLOTS = {r"\{n\}": r"[0-9]+", r"\{type\}": r"[a-z]+"}
_ESCAPES = (("&", "&amp;"), ('"', "&quot;"))


@dataclass(frozen=True, slots=True)
class TaggedShape:
    """The texts of one family, with their layout as its template writes it.

    `section` stands around a call, or around several where `grouped`. `call` are the texts before
    and behind a function's name, `key` those before and behind an argument's; `json_key` is what
    stands behind it instead where its value is JSON, in families that say so. `padding` is layout
    around a value. `quotes` stand around a text in which one of `quoted` occurs. In these texts
    `{n}` is the number of the call, `{type}` the JSON type of the value. `escaped`: quotes in names
    and keys are written as in XML. `whole` stands around all arguments as one JSON object, which a
    model may write instead.
    """

    call: tuple[str, str]
    call_end: str
    key: tuple[str, str]
    value_end: str
    section: tuple[str, str] | None = None
    grouped: bool = False
    json_key: str | None = None
    padding: str = ""
    quotes: tuple[str, str] | None = None
    quoted: str = ""
    escaped: bool = False
    whole: tuple[str, str] | None = None

    @property
    def openings(self) -> tuple[str, ...]:
        """What a call may begin with. A section's opening is sometimes left out."""
        return (*((self.section[0].strip(),) if self.section else ()), self.call[0].strip())

    def call_head(self) -> re.Pattern[str]:
        """A call up to its first argument, or to its end if it has none."""
        begins = (self.key[0], self.call_end, *(self.whole or ())[:1])
        first = f"(?={'|'.join(map(_loose, begins))})"
        return re.compile(_loose(self.call[0]) + _NAME + _loose(self.call[1]) + r"\s*" + first)

    def key_head(self) -> re.Pattern[str]:
        behind = f"(?:(?P<text>{_loose(self.key[1])})|(?P<json>{_loose(self.json_key or self.key[1])}))"
        return re.compile(_loose(self.key[0]) + (_ESCAPED_KEY if self.escaped else _KEY) + behind)

    def attribute(self, text: str) -> str:
        """A name or a key as it is written."""
        for char, escape in _ESCAPES if self.escaped else ():
            text = text.replace(char, escape)
        return text

    def attribute_text(self, written: str) -> str:
        """The name or key that is written so."""
        for char, escape in reversed(_ESCAPES) if self.escaped else ():
            written = written.replace(escape, char)
        return written


def _loose(literal: str) -> str:
    """A pattern for the text with any white space where it has some, and between its tags."""
    pieces = re.split(r"\s+|(?<=>)(?=<)", literal.strip())
    pattern = r"\s*".join(re.escape(piece) for piece in pieces)
    for slot, written in _SLOTS.items():
        pattern = pattern.replace(slot, written)
    return pattern


class TaggedReader:
    """See `CallReader`. One call, or all of a section."""

    def __init__(self, shape: TaggedShape, tools: Sequence[ToolSpec]) -> None:
        self._shape = shape
        self._tools = {tool.name: tool.parameters for tool in tools}
        self._call_head, self._key_head = shape.call_head(), shape.key_head()
        self._section_end = shape.section[1].strip() if shape.section else None
        self._at = 0  # all before it is read
        self._stage: _Stage = self._read_section
        self._name = ""
        self._n_keys = 0
        self._given = False
        self._value: tuple[ValueReader, str] | None = None  # and its closing
        self._whole: JsonScanner | None = None  # of all arguments
        self._types: Types = None
        self._end: int | None = None

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        out: list[ReplyPart] = []
        while self._end is None and self._stage(text, out, final):
            pass
        if self._end is None and final:
            if not self._given:
                raise NotACall
            return out, len(text)
        return out, self._end

    # Each stage says whether the next one can be tried with the text that there is.

    def _read_section(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        section = self._shape.section
        if section and text.startswith(section[0].strip()):
            self._at = len(section[0].strip())
        self._stage = self._read_call
        return True

    def _read_call(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        head = self._call_head.match(text, begin)
        if head is None:
            if not final and _may_begin(text, begin, self._shape.call[0].strip()):
                return False
            return self._finish(self._at)
        self._name, self._n_keys, self._given = head["name"], 0, True
        out += [CallStart(self._name), ArgumentsDelta("{")]
        self._at, self._stage = head.end(), self._read_key
        return True

    def _read_key(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin = skip_space(text, self._at)
        call_end = self._shape.call_end.strip()
        if text.startswith(call_end, begin):
            out.append(ArgumentsDelta("}"))
            self._at, self._stage = begin + len(call_end), self._read_behind_call
            return True
        whole = self._shape.whole
        if whole is not None and not self._n_keys:
            if text.startswith(whole[0], begin):
                self._at, self._stage = begin + len(whole[0]), self._read_whole
                return True
            if whole[0].startswith(text[begin:]):
                return self._finish(len(text)) if final else False
        head = self._key_head.match(text, begin)
        if head is None:
            if _may_begin(text, begin, self._shape.key[0].strip()) or call_end.startswith(text[begin:]):
                return self._finish(len(text)) if final else False
            out.append(ArgumentsDelta("}"))  # something else ends the call
            self._stage = self._read_behind_call
            return True
        comma = ", " if self._n_keys else ""
        key = self._shape.attribute_text(head["key"])
        out.append(ArgumentsDelta(f"{comma}{json.dumps(key, ensure_ascii=False)}: "))
        self._n_keys += 1
        self._types = self._value_types(head)
        self._at, self._stage = head.end(), self._begin_value
        return True

    def _read_whole(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        """What stands between the braces of the object: they have been, or will be, given out."""
        assert self._shape.whole is not None
        if self._whole is None:
            begin = skip_space(text, self._at)
            if begin == len(text):
                return False
            if text[begin] != "{":
                out.append(ArgumentsDelta("}"))
                self._stage = self._read_behind_call
                return True
            self._whole, self._at = JsonScanner(begin), begin + 1
        end = self._whole.end(text)
        certain = self._whole.at - self._whole.ended
        if certain > self._at:
            out.append(ArgumentsDelta(text[self._at : certain]))
            self._at = certain
        if end is None:
            return False
        end = read_closing(text, end, self._shape.whole[1], final=final)
        if end is None:
            return False
        self._n_keys, self._at, self._whole, self._stage = 1, end, None, self._read_key
        return True

    def _value_types(self, head: re.Match[str]) -> Types:
        if self._shape.json_key is not None:
            return TEXT if head["text"] is not None else _ANY_JSON
        parameters = self._tools.get(self._name, {})
        declared = parameters.get("properties")
        schema = declared.get(self._shape.attribute_text(head["key"])) if isinstance(declared, dict) else None
        return json_types(schema, parameters)

    def _begin_value(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin, closing = self._at, self._shape.value_end.strip()
        if self._shape.quotes is not None:
            opening = self._shape.quotes[0]
            if text.startswith(opening, begin):
                begin, closing = begin + len(opening), self._shape.quotes[1] + closing
            elif opening.startswith(text[begin:]) and not final:
                return False
        self._value = ValueReader(begin, closing, self._types, self._shape.padding), closing
        self._stage = self._read_value
        return True

    def _read_value(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        assert self._value is not None
        value, closing = self._value
        piece, end = value.read(text, final=final)
        if piece:
            out.append(ArgumentsDelta(piece))
        if end is None:
            return False
        self._at, self._stage = end + len(closing), self._read_key
        return True

    def _read_behind_call(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        if self._section_end is None:
            return self._finish(self._at)
        begin = skip_space(text, self._at)
        opening = self._shape.call[0].strip()
        if text.startswith(opening, begin):
            self._stage = self._read_call
            return True
        if opening.startswith(text[begin:]) and not final:
            return False
        end = read_closing(text, self._at, self._section_end, final=final)
        return False if end is None else self._finish(end)

    def _finish(self, end: int) -> bool:
        if not self._given:
            raise NotACall
        self._end = end
        return False


_Stage = Callable[[str, list[ReplyPart], bool], bool]
_ANY_JSON: Types = frozenset({"object", "array", "number", "integer", "boolean", "null"})


def _may_begin(text: str, at: int, tag: str) -> bool:
    """Whether `tag` and a name may stand at `at` of a text that goes on."""
    rest = text[at : at + _MAX_HEAD]
    return tag.startswith(rest) or (rest.startswith(tag) and len(rest) < _MAX_HEAD)
