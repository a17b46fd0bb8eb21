"""Reads calls whose arguments stand between tags, each by itself:

    <tool_call>                          the section, which some families have
    <function=get_weather>               the call, with its name
    <parameter=city>                     an argument, with its key
    Paris                                its value, see `tagged_value.py`
    </parameter>
    </function>
    </tool_call>

They are given out as the JSON object that they mean. White space between tags has no meaning.
`TaggedReader` reads such calls, `TaggedGrammar` says what they look like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, LarkWriter, ReplyPart, ToolSpec
from erllama.chat.tool_formats.json_call import JsonScanner, read_closing, skip_space
from erllama.chat.tool_formats.schema_types import (
    Types,
    allows,
    json_types,
    properties,
    resolved,
    schema_values,
    standalone,
)
from erllama.chat.tool_formats.splitter import NotACall
from erllama.chat.tool_formats.tagged_value import TEXT, NestedGrammar, NestedReader, ValueReader, ended_text

_MAX_HEAD = 512  # characters from a tag to the end of its name; more is no tag
_NAME = r"\s*(?P<name>[\w.:/$-]+)\s*"
_KEY, _ESCAPED_KEY = r"(?P<key>[^<>\"\r\n]+)", r"(?P<key>[^\"]+)"
_SLOTS = {r"\{n\}": r"[0-9]+", r"\{type\}": r"[a-z]+"}
_ESCAPES = (("&", "&amp;"), ('"', "&quot;"))
_TEXT_OR_NULL = frozenset({"string", "null"})
_JSON_TYPES = ("array", "boolean", "null", "number", "object")


@dataclass(frozen=True, slots=True)
class TaggedShape:
    """The texts of one family, with their layout as its template writes it.

    `section` stands around a call, or around several where `grouped`. `call` are the texts before
    and behind a function's name, `key` those before and behind an argument's; `json_key` is what
    stands behind it instead where its value is JSON, in families that say so. `padding` is layout
    around a value. `quotes` stand around a text in which one of `quoted` occurs. In these texts
    `{n}` is the number of the call, `{type}` the JSON type of the value. `escaped`: quotes in names
    and keys are written as in XML. `whole` stands around all arguments as one JSON object, which a
    model may write instead. `mark` stands before each tag where members of objects and lists have
    tags of their own; `{key}` is then the key in `value_end`.
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
    mark: str = ""

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

    def closing(self, key: str) -> str:
        """What ends the value of an argument."""
        return self.value_end.replace("{key}", key).strip()

    def text(self, value: str) -> str:
        """A text as the value of an argument."""
        begin, end = self.quotes if self.quotes and any(char in value for char in self.quoted) else ("", "")
        return begin + self.padding + value + self.padding + end

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
        self._value: tuple[ValueReader | NestedReader, str] | None = None  # and its closing
        self._whole: JsonScanner | None = None  # of all arguments
        self._key = ""  # as it is written
        self._schema: Any = None
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
        self._key, self._schema = head["key"], self._declared(key)
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

    def _declared(self, key: str) -> Any:
        declared = self._tools.get(self._name, {}).get("properties")
        return declared.get(key) if isinstance(declared, dict) else None

    def _value_types(self, head: re.Match[str]) -> Types:
        if self._shape.json_key is not None:
            return TEXT if head["text"] is not None else _ANY_JSON
        return json_types(self._schema, self._tools.get(self._name, {}))

    def _begin_value(self, text: str, out: list[ReplyPart], final: bool) -> bool:
        begin, closing = self._at, self._shape.closing(self._key)
        if self._shape.mark:
            root = self._tools.get(self._name, {})
            self._value = NestedReader(begin, self._shape.mark, self._key, self._schema, root), closing
            self._stage = self._read_value
            return True
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
        self._at, self._stage = end + len(closing) * text.startswith(closing, end), self._read_key
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


class TaggedGrammar:
    """Writes the calls of one reply as Lark, each between `begin` and `end`. The texts that all of
    them share are rules, so that many tools fit into a grammar.
    """

    def __init__(self, shape: TaggedShape, write: LarkWriter, begin: str, end: str) -> None:
        self._shape = shape
        self._write = write
        self._begin, self._end = begin, end
        self._nested = NestedGrammar(write, shape.mark)
        self._tags: dict[str, str] = {}  # rules of what stands before JSON

    def rules(self) -> str:
        shape, text = self._shape, self._write.text
        bodies = {
            "call_tag": text(self._begin + shape.call[0]),
            "call_end": text(shape.call_end + self._end),
            "key_tag": text(shape.key[0]),
            **self._tags,
        }
        if "{n}" in shape.call[1]:
            bodies["NUMBER"] = "/[1-9][0-9]{0,3}/"
        if not shape.mark:
            closing = shape.value_end.strip()
            layout = text(shape.value_end.removeprefix(closing))
            bodies["any_text"] = f"ended_text {layout}"
            bodies["text_tag"] = text(shape.key[1] + shape.padding)
            bodies["json_end"] = text(shape.padding + shape.value_end)
        rules = "".join(f"{name}: {body}\n" for name, body in bodies.items())
        return rules + (self._nested.rules() if shape.mark else ended_text(self._write, shape.value_end.strip()))

    def call(self, tool: ToolSpec) -> str:
        shape, write = self._shape, self._write
        name, *behind = (shape.attribute(tool.name) + shape.call[1]).split("{n}")
        items = ["call_tag", write.text(name), *(f"NUMBER {write.text(one)}" for one in behind)]
        for key, schema, required in properties(tool.parameters):
            argument = f"key_tag {self._argument(key, schema, tool.parameters)}"
            items.append(argument if required else f"({argument})?")
        return " ".join([*items, "call_end"])

    def _argument(self, key: str, schema: Any, root: Mapping[str, Any]) -> str:
        if self._shape.mark:
            self._nested.begin(root)
            return self._nested.member(key, schema)
        return f"{self._write.text(self._shape.attribute(key))} {self._value(schema, root)}"

    def _value(self, schema: Any, root: Mapping[str, Any]) -> str:
        """A text, JSON, or either where the tag of the key says which it is."""
        types, values = json_types(schema, root), schema_values(resolved(schema, root))
        says = self._shape.json_key is not None
        may_be_text = allows(types, "string") if says else types in (TEXT, _TEXT_OR_NULL)
        if not may_be_text or (values is not None and types != TEXT and not says):
            return self._json(schema, root, types)
        text = self._text(values)
        others = frozenset(types or _JSON_TYPES) - TEXT
        if not says or not others:
            return text or self._json(schema, root, types)
        json_value = self._json({"allOf": [schema, {"type": sorted(others)}]}, root, others)
        return f"({text} | {json_value})" if text else json_value

    def _text(self, values: Sequence[Any] | None) -> str:
        """Any text, or one of those among `values`; "" if there is none."""
        shape, closing = self._shape, self._shape.value_end.strip()
        if values is None:
            return "text_tag any_text"
        texts = [value for value in values if isinstance(value, str) and closing not in value]
        written = [self._write.text(shape.text(one).removeprefix(shape.padding) + shape.value_end) for one in texts]
        return f"text_tag ({' | '.join(written)})" if written else ""

    def _json(self, schema: Any, root: Mapping[str, Any], types: Types) -> str:
        return f"{self._json_tag(types)} {self._write.schema(standalone(schema, root))} json_end"

    def _json_tag(self, types: Types) -> str:
        """The rule of what stands before a value in JSON, which may name its type."""
        shape, text = self._shape, self._write.text
        before, slot, behind = (shape.json_key or shape.key[1]).partition("{type}")
        names = sorted({type_written(name) for name in types or _JSON_TYPES}) if slot else []
        tag = f"json_tag_{'_'.join(names)}" if slot else "json_tag"
        choice = [f"({' | '.join(map(json.dumps, names))})"] if slot else []
        self._tags[tag] = " ".join([text(before), *choice, text(behind + shape.padding)])
        return tag


def type_written(name: str) -> str:
    return "number" if name == "integer" else name
