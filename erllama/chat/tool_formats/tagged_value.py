"""The value of one argument that is written between tags, without quotes: text as it is, or JSON, as
the argument's schema says; or members, each between tags of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter, lark_pattern
from erllama.chat.tool_formats.json_call import skip_space
from erllama.chat.tool_formats.literal import python_json
from erllama.chat.tool_formats.schema_types import (
    SchemaGrammar,
    Types,
    allows,
    json_types,
    member_schema,
    properties,
)
from erllama.chat.tool_formats.splitter import held_prefix
from erllama.grammar.json_schema.root import json_type

TEXT = frozenset({"string"})
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


def ended_text(write: LarkWriter, closing: str) -> str:
    """Rules of which `ended_text` derives a text and the first `closing` behind it. Spelled out, it
    is read as the tag is, so that a text must not hold it.
    """
    items, plain = write.text(closing), json.dumps(closing, ensure_ascii=False)
    spelled = f"spelled_text[suffix={plain}]: /(?s:.*)/\n"
    if items == plain:
        return f"ended_text: spelled_text\n{spelled}"
    begins, token, behind = items.partition("<[")  # text before a control token is read with the value's
    ending = lark_pattern(json.loads(begins)) if begins else ""
    text = f"VALUE_TEXT: /(?s:.*){ending}/ & ~/(?s:.*){lark_pattern(closing)}(?s:.*)/\n"
    return f"ended_text: spelled_text | VALUE_TEXT {token}{behind}\n{spelled}{text}"


# --- members between tags of their own ------------------------------------------------------------

_MEMBER = r"(?!/)[^<>\r\n]+"
_ITEM = "item"
_MAX_TAG = 512  # characters; more is no tag
_MAX_OPEN = 100


@dataclass(slots=True)
class _Open:
    """A tag that is open, and the value in it: `bracket` is what closes that, "" unless it has
    members.
    """

    name: str
    schema: Any
    bracket: str = ""
    n_members: int = 0
    begun: bool = False


class NestedReader:
    """See `ValueReader`. `mark` stands before each tag. A value is text or JSON up to the next mark,
    unless a tag is what it begins with.
    """

    def __init__(self, begin: int, mark: str, key: str, schema: Any, root: Mapping[str, Any]) -> None:
        self._mark, self._root = mark, root
        self._tag = re.compile(re.escape(mark) + rf"<(?:(?P<name>{_MEMBER})|/(?P<end>[^<>\r\n]*))>")
        self._open = [_Open(key, schema)]
        self._at = begin
        self._leaf: ValueReader | None = None
        self._end: int | None = None

    def read(self, text: str, *, final: bool) -> tuple[str, int | None]:
        out: list[str] = []
        while self._end is None and self._step(out, text, final):
            pass
        return "".join(out), self._end

    def _step(self, out: list[str], text: str, final: bool) -> bool:
        """Whether more can be read."""
        if self._leaf is not None:
            piece, end = self._leaf.read(text, final=final)
            out.append(piece)
            if end is None:
                return False
            self._at, self._leaf = end, None
        begin = skip_space(text, self._at)
        tag = self._tag.match(text, begin)
        if tag is None and self._may_be_tag(text, begin):
            return False
        top = self._open[-1]
        if not top.begun and (tag is None or tag["name"] is None):
            return self._begin_leaf(out, text, begin, is_empty=tag is not None)
        if tag is None or len(self._open) > _MAX_OPEN:
            return self._close(out, 0, self._at)
        if tag["name"] is not None:
            return self._open_member(out, tag)
        names = [one.name for one in self._open]
        n = max((n for n, name in enumerate(names) if name == tag["end"]), default=0)
        return self._close(out, n, tag.end() if n else begin)

    def _may_be_tag(self, text: str, begin: int) -> bool:
        rest, opening = text[begin : begin + _MAX_TAG], self._mark + "<"
        goes_on = rest.startswith(opening) and ">" not in rest[len(opening) :] and len(rest) < _MAX_TAG
        return goes_on or opening.startswith(rest)

    def _begin_leaf(self, out: list[str], text: str, begin: int, *, is_empty: bool) -> bool:
        top = self._open[-1]
        top.begun = True
        types = json_types(top.schema, self._root)
        if is_empty and types is not None and "string" not in types:
            out.append("[]" if "array" in types else "{}" if "object" in types else "null")
            self._at = begin
        else:
            self._leaf = ValueReader(self._at, self._mark, types, "")
        return True

    def _open_member(self, out: list[str], tag: re.Match[str]) -> bool:
        if self._open[-1].begun and not self._open[-1].bracket:  # its own end is missing
            return self._close(out, len(self._open) - 1, self._at)
        top, name = self._open[-1], tag["name"]
        if not top.begun:
            types = json_types(top.schema, self._root)
            is_list = name == _ITEM if allows(types, "array") == allows(types, "object") else allows(types, "array")
            top.begun, top.bracket = True, "]" if is_list else "}"
            out.append("[" if is_list else "{")
        is_list = top.bracket == "]"
        out.append(", " * (top.n_members > 0) + ("" if is_list else json.dumps(name, ensure_ascii=False) + ": "))
        top.n_members += 1
        self._open.append(_Open(name, member_schema(top.schema, None if is_list else name, self._root)))
        self._at = tag.end()
        return True

    def _close(self, out: list[str], n: int, at: int) -> bool:
        """All from the `n`th open tag on is complete, up to `at`: what was not begun is empty."""
        out += [one.bracket if one.begun else '""' for one in reversed(self._open[n:])]
        del self._open[max(n, 1) :]
        self._at, self._end = at, None if n else at
        return True


def nested_text(mark: str, value: Any) -> str:
    """A value as members between tags; as JSON, if it has none, or some that tags cannot express."""
    match value:
        case str():
            return value
        case list() if value:
            return "".join(f"{mark}<{_ITEM}>{nested_text(mark, one)}{mark}</{_ITEM}>" for one in value)
        case dict() if value and next(iter(value)) != _ITEM and all(re.fullmatch(_MEMBER, key) for key in value):
            return "".join(f"{mark}<{key}>{nested_text(mark, one)}{mark}</{key}>" for key, one in value.items())
    return json.dumps(value, ensure_ascii=False).replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")


class NestedGrammar(SchemaGrammar):
    """Members of objects in their order, each value up to the mark of the tag that ends it."""

    def __init__(self, write: LarkWriter, mark: str) -> None:
        super().__init__(write)
        self._mark = mark
        self._lists: dict[str, str] = {}  # their bodies and rules

    def rules(self) -> str:
        lists = "".join(f"{name}: {body} value_end\n" for body, name in self._lists.items())
        # the mark by itself: as a part of longer texts, it would be taken for the longest of them
        marks = f'value_end: {self.write.text(self._mark)}\nmember_tag: value_end "<"\n'
        return marks + ended_text(self.write, self._mark) + lists + self.referred_rules()

    def member(self, key: str, schema: Any, depth: int = 0) -> str:
        """Behind the beginning of its tag."""
        return f"{self.write.text(key + '>')} {self.value(schema, depth)} {self.write.text(f'</{key}>')}"

    def constant(self, value: Any) -> str:
        return f"{self.write.text(nested_text(self._mark, value))} value_end"

    def anything(self, schema: Mapping[str, Any]) -> str:
        return "ended_text" if json_types(schema, schema) is None else self._json(schema)

    def _json(self, schema: Mapping[str, Any]) -> str:
        return f"{self.write.schema(schema)} value_end"

    def typed(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        members = properties(schema)
        match name:
            case "string":
                return "ended_text"
            case "array":
                least, most = schema.get("minItems", 0), schema.get("maxItems", "")
                item = f"member_tag {self.member(_ITEM, schema.get('items', {}), depth)}"
                return self._lists.setdefault(f"({item}){{{least},{most}}}", f"list{len(self._lists)}")
            case "object" if members:
                rules = [
                    f"(member_tag {self.member(key, one, depth)})" + "?" * (not must) for key, one, must in members
                ]
                return f"{' '.join(rules)} value_end"
        return self._json(self.alone(schema) | {"type": name})
