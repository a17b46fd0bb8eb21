"""JSON Schema to GBNF: a grammar whose every sentence is JSON text that fits the schema.

Why not the converter inside llama-cpp-python: on ordinary schemas it is silently wrong. It escapes neither a backslash nor a quote in an
enum, spells emoji as surrogates that no token can produce, reuses the rule of a property for a `$ref` of the same name, writes class
names with an underscore as rule names that do not parse, drops `enum` and `properties` beside a list of types, and refuses `\\d` and `#`.

Enforced: type (one or a list), properties in the order of the schema, required, additionalProperties, items, prefixItems, minItems,
maxItems, enum, const, anyOf, oneOf (as anyOf), allOf (merged), local $ref (recursive ones too), pattern, minLength, maxLength, the formats
date, time, date-time and uuid, and for integers minimum and maximum where they admit at most 256 values or only forbid a sign.

Stricter than the standard: an object with properties but without `additionalProperties` takes no other keys (as in OpenAI's strict mode),
since a model that may add keys will; `prefixItems` must all be there.

Not enforced, for want of a context-free form: multipleOf, other numeric bounds, uniqueItems, contains, minProperties, maxProperties,
dependentRequired, other formats, lengths beside a pattern; and annotations such as title. Refused, because ignoring them would change
what the schema is about: see `REFUSED`. Remote references are refused and never fetched.

White space is bounded everywhere, so that a model cannot spend its budget on blanks. Pure; every failure is `InvalidParameter` with
param "response_format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from erllama.grammar.gbnf import check_gbnf
from erllama.grammar.keywords import (
    PARAM,
    bounds,
    common_types,
    item_list,
    limits,
    mapping,
    number,
    quantifier,
    refuse,
    strings,
    type_names,
)
from erllama.grammar.regex import UnsupportedPattern, pattern_to_gbnf

MAX_SCHEMA_BYTES = 256 * 1024  # the grammar, at most 64 KiB, is the tighter bound; this one keeps its making short
MAX_DEPTH = 64
MAX_VISITS = 20_000  # subschemas looked at, expanded unions and merges included
MAX_INTEGER_CHOICES = 256
REFUSED = frozenset(
    {"not", "if", "then", "else", "patternProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "dependentSchemas",
     "$dynamicRef", "$recursiveRef"}
)  # fmt: skip

_WS = r'( " " | "\n" [ \t]{0,20} )?'
_PRIMITIVES = {
    "value": 'object | array | string | number | boolean | null',
    "object": '"{" ws ( member ( "," ws member )* )? "}"',
    "member": 'string ":" ws value ws',
    "array": '"[" ws ( value ws ( "," ws value ws )* )? "]"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )',
    "number": 'integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?',
    "integer": '"-"? natural',
    "natural": '"0" | [1-9] [0-9]{0,15}',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "ws": _WS,
    "date": '[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )',
    "time": 'hour ":" sixty ":" sixty ( "." [0-9]{1,9} )? ( "Z" | [-+] hour ":" sixty )',
    "hour": '[01] [0-9] | "2" [0-3]',
    "sixty": "[0-5] [0-9]",
    "uuid": '[0-9a-fA-F]{8} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{12}',
}  # fmt: skip
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_WORD = re.compile(r"\b[a-z]+\b")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9]+")
# Keywords that tell the type of a schema that does not name one.
_IMPLIED_TYPES = (
    ("object", ("properties", "required", "additionalProperties")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("pattern", "minLength", "maxLength", "format")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)
_CONSTRAINTS = frozenset(
    {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"} | {name for _, names in _IMPLIED_TYPES for name in names}
)

_Schema = Mapping[str, Any] | bool


def schema_to_gbnf(schema: Mapping[str, Any] | str) -> str:
    """The grammar of the JSON texts that fit `schema` (an object, or its JSON text), with the rule `root`.

    The result has passed `grammar.check_gbnf`. Raises `InvalidParameter(param="response_format")` whose message names the place.
    """
    converter = _Converter(_load(schema))
    try:
        gbnf = converter.convert()
    except RecursionError:
        refuse("it is nested too deeply")
    check_gbnf(gbnf, param=PARAM)
    return gbnf


def _load(schema: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            refuse(f"it has {len(text)} bytes, at most {MAX_SCHEMA_BYTES}")
        loaded = json.loads(text)  # also of a Mapping: what follows may rely on plain JSON types
    except RecursionError:
        refuse("it is nested too deeply")
    except (ValueError, TypeError) as error:
        refuse(f"it is not JSON: {error}")
    if not isinstance(loaded, dict):
        refuse(f"it must be an object, got {type(loaded).__name__}")
    return loaded


def literal(text: str) -> str:
    """`text` as a GBNF string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _json_literal(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate exists only as an escape
        text = json.dumps(value)
    return literal(text)


class _Converter:
    """One conversion. `visit` turns a schema into the name of a rule; rules collect in `rules` in the order they are finished."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._taken = set(_PRIMITIVES) | {"root"}
        self._ref_rules: dict[str, str] = {}
        self._n_visits = 0
        self._visitors: dict[str, Callable[[Mapping[str, Any], str, int], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }

    def convert(self) -> str:
        root = self._visit(self._schema, "main", 0)
        lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        return "\n".join(lines) + "\n"

    # -- rules

    def _name(self, hint: str) -> str:
        base = _NOT_A_NAME.sub("-", hint).strip("-")[:48] or "x"
        name, n = base, 2
        while name in self._taken:
            name, n = f"{base}-{n}", n + 1
        self._taken.add(name)
        return name

    def _add(self, hint: str, body: str) -> str:
        name = self._name(hint)
        self._rules[name] = body
        return name

    def _primitive(self, name: str) -> str:
        if name not in self._rules:
            self._rules[name] = _PRIMITIVES[name]
            for used in _WORD.findall(_QUOTED.sub("", _PRIMITIVES[name])):
                self._primitive(used)
        return name

    def _use(self, body: str, *primitives: str) -> str:
        for name in primitives:
            self._primitive(name)
        return body

    # -- dispatch

    def _visit(self, schema: Any, where: str, depth: int) -> str:
        self._n_visits += 1
        if depth > MAX_DEPTH or self._n_visits > MAX_VISITS:
            refuse("it is nested too deeply" if depth > MAX_DEPTH else f"it expands to more than {MAX_VISITS} parts", where)
        if schema is True:
            return self._primitive("value")
        if not isinstance(schema, dict):
            refuse("false admits nothing" if schema is False else f"a schema must be an object, got {type(schema).__name__}", where)
        if refused := sorted(REFUSED & schema.keys()):
            refuse(f"{refused[0]!r} is not supported", where)
        constraints = _CONSTRAINTS & schema.keys()
        if "$ref" in constraints and len(constraints) == 1:
            return self._ref(schema["$ref"], where, depth)
        if constraints & {"$ref", "allOf"}:
            return self._visit(self._flatten(schema, where, depth), where, depth + 1)
        if constraints & {"anyOf", "oneOf"}:
            return self._union(schema, where, depth)
        if "const" in constraints:
            return self._choice([schema["const"]], schema.get("type"), where)
        if "enum" in constraints:
            return self._choice(schema["enum"], schema.get("type"), where)
        return self._typed(schema, where, depth)

    def _typed(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            if not kind:
                refuse("an empty list of types admits nothing", where)
            return self._alternatives(({**schema, "type": one} for one in kind), where, depth)
        if kind is None:
            kind = next((name for name, words in _IMPLIED_TYPES if schema.keys() & set(words)), "value")
        elif not isinstance(kind, str) or kind not in _TYPES:
            refuse(f"unknown type {kind!r}", where)
        visitor = self._visitors.get(kind)
        return visitor(schema, where, depth) if visitor else self._primitive(kind)

    # -- combinations

    def _alternatives(self, schemas: Iterable[Any], where: str, depth: int) -> str:
        names = [self._visit(schema, f"{where}-{i}", depth + 1) for i, schema in enumerate(schemas)]
        unique = list(dict.fromkeys(names))
        return unique[0] if len(unique) == 1 else self._add(where, " | ".join(unique))

    def _union(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            refuse(f"{keyword} must be a non-empty list", where)
        rest = {name: value for name, value in schema.items() if name != keyword}
        if _CONSTRAINTS & rest.keys():
            options = [self._merge(rest, self._flatten(option, where, depth), where, depth) for option in options]
        return self._alternatives(options, where, depth)

    def _flatten(self, schema: Any, where: str, depth: int) -> dict[str, Any]:
        """`schema` without `$ref` and `allOf` at its top: all that they demand merged into one object."""
        self._n_visits += 1
        if depth > MAX_DEPTH or self._n_visits > MAX_VISITS:
            refuse("its references never end, or it is nested too deeply", where)
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            refuse("a schema must be an object or true", where)
        merged = {name: value for name, value in schema.items() if name not in ("$ref", "allOf")}
        parts = [self._resolve(schema["$ref"], where)] if "$ref" in schema else []
        if "allOf" in schema:
            if not isinstance(schema["allOf"], list):
                refuse("allOf must be a list", where)
            parts += schema["allOf"]
        for part in parts:
            merged = self._merge(merged, self._flatten(part, where, depth + 1), where, depth)
        return merged

    def _merge(self, left: Mapping[str, Any], right: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
        """What fits both. Refuses combinations that would need more than a merge of keywords."""
        merged = dict(left)
        for name, value in right.items():
            if name not in merged or merged[name] == value or name not in _CONSTRAINTS:
                merged[name] = value
            elif name == "properties":
                merged[name] = self._merge_properties(merged[name], value, where, depth)
            elif name == "required":
                merged[name] = [*strings(merged[name], name, where), *strings(value, name, where)]
            elif name == "type":
                merged[name] = common_types(merged[name], value, where)
            elif name == "enum" and isinstance(value, list) and isinstance(merged[name], list):
                merged[name] = [item for item in merged[name] if item in value]
            elif name == "additionalProperties" and (value is False or merged[name] is False):
                merged[name] = False
            elif name in ("items", "additionalProperties"):
                merged[name] = {"allOf": [merged[name], value]}
            elif name in ("minItems", "minLength", "minimum", "exclusiveMinimum"):
                merged[name] = max(number(merged[name], name, where), number(value, name, where))
            elif name in ("maxItems", "maxLength", "maximum", "exclusiveMaximum"):
                merged[name] = min(number(merged[name], name, where), number(value, name, where))
            elif name != "multipleOf":
                refuse(f"two different {name!r} cannot be combined", where)
        return merged

    def _merge_properties(self, left: Any, right: Any, where: str, depth: int) -> dict[str, Any]:
        merged = dict(mapping(left, "properties", where))
        for name, schema in mapping(right, "properties", where).items():
            merged[name] = schema if name not in merged or merged[name] == schema else {"allOf": [merged[name], schema]}
        return merged

    # -- references

    def _ref(self, ref: Any, where: str, depth: int) -> str:
        """One rule per reference, named before it is visited: a recursive schema refers to the rule that is being made."""
        target = self._resolve(ref, where)
        if ref not in self._ref_rules:
            name = self._ref_rules[ref] = self._name(f"ref-{ref.rsplit('/', 1)[-1]}")
            self._rules[name] = self._visit(target, name, depth + 1)
        return self._ref_rules[ref]

    def _resolve(self, ref: Any, where: str) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            refuse(f"only references within the schema (#/...) are followed, got {ref!r}", where)
        target: Any = self._schema
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key[:9]) < len(target):
                target = target[int(key)]
            else:
                refuse(f"the reference {ref!r} leads nowhere", where)
        return target

    # -- types

    def _choice(self, values: Any, kind: Any, where: str) -> str:
        if not isinstance(values, list):
            refuse("enum must be a list", where)
        kinds = kind if isinstance(kind, list) else [kind]
        fitting = [value for value in values if kind is None or any(name in kinds for name in type_names(value))]
        if not fitting:
            refuse("no value of const or enum fits", where)
        return self._add(where, " | ".join(dict.fromkeys(_json_literal(value) for value in fitting)))

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        properties = dict(mapping(schema.get("properties", {}), "properties", where))
        required = set(strings(schema.get("required", []), "required", where))
        additional: _Schema = schema.get("additionalProperties", not (properties or required))
        for name in sorted(required - properties.keys()):
            properties[name] = True if additional is False else additional
        if not properties and additional is True:
            return self._primitive("object")
        self._use("", "ws")
        pairs = [self._pair(name, value, f"{where}-{name}", depth) for name, value in properties.items()]
        more = self._additional_pairs(properties, additional, where, depth)
        return self._add(where, self._members(list(zip(properties, pairs, strict=True)), required, more, where))

    def _members(self, pairs: list[tuple[str, str]], required: set[str], more: str | None, where: str) -> str:
        """The body of an object whose keys come in order. From the last property backwards, two rules each:

        pick(i)  one member out of those from i on, and what follows it; None if there is none to pick
        rest(i)  what may follow a member before i: nothing, or a comma and pick(i)

        The comma is read before the choice, so that the choice is made by the characters of the key.
        """
        pick, rest, optional = more, "", True
        if more is not None:
            rest = f'( "," ws {more} )*'
            pick = self._add(f"{where}-more", f"{more} {rest}")
        for name, pair in reversed(pairs):
            taken = f"{pair} {rest}".rstrip()
            if name in required:
                pick, optional = self._add(f"{where}-from-{name}", taken), False
            else:
                pick = self._add(f"{where}-from-{name}", taken if pick is None else f"{taken} | {pick}")
            rest = self._add(f"{where}-then-{name}", f'( "," ws {pick} )?' if optional else f'"," ws {pick}')
        if pick is None:
            return '"{" ws "}"'
        return f'"{{" ws ( {pick} )? "}}"' if optional else f'"{{" ws {pick} "}}"'

    def _pair(self, key: str, schema: Any, where: str, depth: int) -> str:
        return self._add(f"{where}-pair", f'{_json_literal(key)} ":" ws {self._visit(schema, where, depth + 1)} ws')

    def _additional_pairs(self, properties: Mapping[str, Any], additional: Any, where: str, depth: int) -> str | None:
        if additional is False:
            return None
        value = self._visit(additional, f"{where}-other", depth + 1)
        key = self._other_key(list(properties), f"{where}-key")
        return self._add(f"{where}-other-pair", f'{key} ":" ws {value} ws')

    def _other_key(self, names: list[str], where: str) -> str:
        """A string that is none of `names`: a second member of that name would replace the first, whatever its type.

        A trie of the names; on its paths no escapes are allowed, which could spell the same name. Names that need an escape themselves
        cannot be spelled without one and stay out of the trie.
        """
        plain = [name for name in names if json.dumps(name, ensure_ascii=False) == f'"{name}"']
        if not plain:
            return self._primitive("string")
        self._use("", "char")
        return self._add(where, f'"\\"" {self._other_suffix(sorted(plain), where)} "\\""')

    def _other_suffix(self, names: list[str], where: str) -> str:
        """Any text that is none of `names`, at a node of the trie where all of `names` continue."""
        heads = sorted({name[0] for name in names if name})
        excluded = "".join(f"\\U{ord(head):08X}" for head in heads)
        options = [f'[^"\\\\\\x00-\\x1F\\x7F{excluded}] char*']
        options += [f"{literal(head)} {self._other_suffix([name[1:] for name in names if name.startswith(head)], where)}" for head in heads]
        if "" not in names:
            options.append('""')
        return self._add(where, " | ".join(options))

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        first = schema.get("prefixItems", [])
        items = schema.get("items", not first)
        if isinstance(items, list):  # the spelling before 2020-12
            first, items = items, schema.get("additionalItems", False)
        if not isinstance(first, list):
            refuse("prefixItems must be a list", where)
        least, most = bounds(schema, "minItems", "maxItems", where)
        least, most = max(least - len(first), 0), None if most is None else most - len(first)
        if most is not None and most < 0:
            refuse("maxItems is less than the number of prefixItems", where)
        self._use("", "ws")
        head = ' "," ws '.join(f"{self._visit(item, f'{where}-{i}', depth + 1)} ws" for i, item in enumerate(first))
        if items is False or most == 0:
            if least:
                refuse("minItems cannot be reached", where)
            return self._add(where, f'"[" ws {head} "]"')
        item = f"{self._visit(items, f'{where}-item', depth + 1)} ws"
        return self._add(where, f'"[" ws {item_list(head, item, least, most)} "]"')

    def _string(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                refuse("pattern must be a string", where)
            try:
                body = pattern_to_gbnf(schema["pattern"])
            except UnsupportedPattern as error:
                refuse(f"the pattern is not supported: {error}", where)
            return self._use(self._add(where, f'"\\"" {body} "\\""'), "char")
        if isinstance(schema.get("format"), str) and schema["format"] in _FORMATS:
            body = _FORMATS[schema["format"]]
            return self._use(self._add(where, f'"\\"" {body} "\\""'), *_WORD.findall(_QUOTED.sub("", body)))
        least, most = bounds(schema, "minLength", "maxLength", where)
        if not least and most is None:
            return self._primitive("string")
        return self._use(self._add(where, f'"\\"" char{quantifier(least, most)} "\\""'), "char")

    def _integer(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        low, high = limits(schema, where)
        if low is not None and high is not None and high - low < MAX_INTEGER_CHOICES:
            return self._choice(list(range(int(low), int(high) + 1)), None, where)
        return self._primitive("integer" if low is None or low < 0 else "natural")

    def _number(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        return self._primitive("number")
