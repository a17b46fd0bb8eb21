"""Keywords of JSON Schema that llguidance lacks, in the terms of those that it has.

What a keyword asks for becomes further parts of `allOf`, often a union: a property that needs
another one is absent, or both are there. Such a part may ask for more than the keyword (of values
that `contains` wants, one stands among the first items), never for less. What has no such words is
up to `SchemaRoot.unenforceable`.

Pure; every failure is `RefusedText`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import comb, perm
from typing import Any

from erllama.grammar.json_schema.conditions import condition_parts
from erllama.grammar.json_schema.disjoint import exclusive
from erllama.grammar.json_schema.formats import format_keywords
from erllama.grammar.json_schema.negation import distinct, negated
from erllama.grammar.json_schema.number_bounds import COUNTS, RANGES, plain_numbers
from erllama.grammar.json_schema.root import SchemaObject, SchemaRoot, refuse

MAX_OPTIONS = 400  # of a union that a keyword becomes
_MAX_DEPENDENCIES = 6  # of one object: each doubles the options of the next
_FIRST_ITEMS = 8  # among which the first item lies that `contains` asks for
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9bBk])")
_Parts = Iterable[Any]


def plain_schema(schema: SchemaObject, where: str, root: SchemaRoot) -> dict[str, Any]:
    """`schema` in keywords that llguidance has; the schemas within it are left as they are."""
    plain = dict(schema)
    parts = [part for rule in _RULES if rule.keywords & plain.keys() for part in rule.parts(plain, where, root)]
    if parts:
        plain["allOf"] = [*plain.get("allOf", ()), *parts]
    return plain


def _references(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    """References that other documents could redirect; in one document they lead where `$ref`
    does.
    """
    for keyword in ("$dynamicRef", "$recursiveRef"):
        ref = schema.pop(keyword, None)
        if ref not in (None, "#"):
            refuse(f"{keyword!r} is followed to # only, got {ref!r:.60}", where)
        if ref is not None and schema.setdefault("$ref", ref) != ref:
            yield {"$ref": ref}


def _numbers(schema: dict[str, Any], where: str, root: SchemaRoot) -> _Parts:
    plain_numbers(schema, where, root)
    return ()


def _format(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    name = schema.pop("format")
    keywords = format_keywords(name)
    if keywords is None:
        root.unenforceable("format", f"{name!r:.60} is not known", where)
        return
    types = schema.get("type", "string")
    is_text = "string" in (types if isinstance(types, list) else [types])
    kept = {word: value for word, value in keywords.items() if (word in ("pattern", "format")) == is_text}
    if "pattern" in kept and "pattern" not in schema:
        schema["pattern"] = kept["pattern"]
    elif "format" in kept:
        schema["format"] = kept["format"]
    elif kept:
        yield kept


def _pattern(schema: dict[str, Any], where: str, root: SchemaRoot) -> _Parts:
    if isinstance(schema["pattern"], str) and _LOOKS_AROUND.search(schema["pattern"]):
        root.unenforceable("pattern", "it has a look-around, a word boundary or a reference to a group", where)
        del schema["pattern"]
    return ()


def _dependencies(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    wanted: list[tuple[str, Any]] = []
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        listed = schema.pop(keyword, {})
        if not isinstance(listed, dict):
            refuse(f"{keyword} must be an object", where)
        wanted += [(name, {"required": need} if isinstance(need, list) else need) for name, need in listed.items()]
    wanted = [(name, need) for name, need in wanted if need is not True and need != {"required": []}]
    if len(wanted) > _MAX_DEPENDENCIES:
        root.unenforceable("dependentRequired", f"an object has at most {_MAX_DEPENDENCIES} dependencies", where)
        return
    for name, need in wanted:
        absent = {"properties": {name: False}}
        yield {"anyOf": [{"allOf": [need], "required": [name]}, absent]} if need is not False else absent


def _not(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    opposite = negated(schema.pop("not"), root, where)
    if opposite is None:
        root.unenforceable("not", "the opposite has no words here", where)
    elif opposite is not True:
        yield opposite


def _one_of(schema: dict[str, Any], where: str, root: SchemaRoot) -> _Parts:
    if isinstance(schema["oneOf"], list) and root.strict:
        beside = {*_object(schema, "properties"), *_names(schema, "required")}
        schema["oneOf"] = exclusive(schema["oneOf"], beside, root, where)
    return ()


def _contains(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    """Items that fit stand in a row, behind at most `_FIRST_ITEMS` others."""
    wanted = schema.pop("contains", None)
    least, most = schema.pop("minContains", 1), schema.pop("maxContains", None)
    if wanted is None or (least == 0 and most is None):
        return
    for name, value in (("minContains", least), ("maxContains", 0 if most is None else most)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            refuse(f"{name} must be a whole number that is not negative, got {value!r:.40}", where)
    other = True if most is None else negated(wanted, root, where)
    if other is None or least > MAX_OPTIONS or (most is not None and most > MAX_OPTIONS // _FIRST_ITEMS):
        root.unenforceable("contains", "there are too many items, or their opposite has no words here", where)
        return
    rows = range(least, (least if most is None else most) + 1)
    yield {
        "anyOf": [
            {"prefixItems": [*[other] * before, *[wanted] * n], "items": other}
            for n in rows
            for before in range(_FIRST_ITEMS if n else 1)
        ]
        or [False]
    }


def _unique(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    """Lists of different items, where the items are few: all orders of them, or the one in which
    they are named.
    """
    wanted = schema.pop("uniqueItems")
    if not isinstance(wanted, bool):
        refuse("uniqueItems must be true or false", where)
    most = schema.get("maxItems")
    if not wanted or (isinstance(most, int) and most <= 1):
        return
    values = _values(schema.get("items"), root, where) if "prefixItems" not in schema else None
    if values is None:
        root.unenforceable("uniqueItems", "only items of an enum can be kept apart", where)
        return
    n, most = len(values), min(len(values), most if isinstance(most, int) else len(values))
    sizes = range(schema.get("minItems", 0) if isinstance(schema.get("minItems", 0), int) else 0, most + 1)
    for count, lists in ((perm, permutations), (comb, combinations)):
        if sum(count(n, size) for size in sizes) <= MAX_OPTIONS:
            yield {"enum": [list(items) for size in sizes for items in lists(values, size)]}
            return
    root.unenforceable("uniqueItems", f"its items have more than {MAX_OPTIONS} orders", where)


def _values(schema: Any, root: SchemaRoot, where: str, depth: int = 0) -> list[Any] | None:
    """All values that fit `schema`, None if they are not listed."""
    if not isinstance(schema, dict) or depth > 4:
        return None
    if "$ref" in schema:
        return _values(root.resolve(schema["$ref"], where), root, where, depth + 1)
    if schema.get("type") in ("boolean", "null"):
        return [False, True] if schema["type"] == "boolean" else [None]
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return distinct(listed) if isinstance(listed, list) and len(listed) <= MAX_OPTIONS else None


def _property_names(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    rule = schema.pop("propertyNames")
    if isinstance(rule, dict) and isinstance(rule.get("$ref"), str):
        rule = root.resolve(rule["$ref"], where)
    if rule is False or (isinstance(rule, dict) and not _takes_texts(rule)):
        yield {"maxProperties": 0}
        return
    if not isinstance(rule, dict) or not rule.keys() - {"type", "description", "title"}:
        return
    names = _values(rule, root, where)
    other = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
    declared = _object(schema, "properties")
    closed = other is False or (declared and "additionalProperties" not in schema)
    pattern = None if names is not None else _name_pattern(rule)
    if (names is None and pattern is None) or "patternProperties" in schema:
        root.unenforceable("propertyNames", "only a list of names, a pattern or a length can be kept to", where)
        return
    kept = {name: one if _fits_name(name, names, pattern) else False for name, one in declared.items()}
    if names is not None and not closed:
        kept |= {name: other for name in names if isinstance(name, str) and name not in kept}
    schema["properties"] = kept
    if pattern is not None and not closed:
        schema["patternProperties"] = {pattern: other}
    schema["additionalProperties"] = False


def _takes_texts(rule: SchemaObject) -> bool:
    """Whether a name, which is always a text, may have the type that `rule` wants."""
    types = rule.get("type", "string")
    return "string" in (types if isinstance(types, list) else [types])


def _name_pattern(rule: SchemaObject) -> str | None:
    """The regular expression of names that fit `rule`."""
    match {key: value for key, value in rule.items() if key not in ("type", "description", "title")}:
        case {"pattern": str(pattern), **rest} if not rest:
            return pattern
        case {**lengths} if lengths and lengths.keys() <= {"minLength", "maxLength"}:
            least, most = lengths.get("minLength", 0), lengths.get("maxLength", "")
            return rf"^[\s\S]{{{least},{most}}}$" if all(isinstance(n, int) for n in lengths.values()) else None
        case {"format": str(name), **rest} if not rest:
            found = (format_keywords(name) or {}).get("pattern")
            return found if isinstance(found, str) else None
    return None


def _fits_name(name: str, names: list[Any] | None, pattern: str | None) -> bool:
    if names is not None:
        return name in names
    try:
        return re.search(pattern or "", name) is not None
    except re.error:
        return False


def _object_size(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    """llguidance counts only what is not declared. So options say which of the declared properties
    are there, and which are not; where only a least number counts, the others need not be decided.
    """
    properties, required = _object(schema, "properties"), _names(schema, "required")
    optional = [name for name, one in properties.items() if name not in required and one is not False]
    least = max(schema.get("minProperties", 0) - len(required), 0)
    most = max(schema["maxProperties"] - len(required), 0) if "maxProperties" in schema else len(optional)
    others = schema.get("additionalProperties", schema.get("unevaluatedProperties", False))
    is_open = others is not False or "patternProperties" in schema
    exact = is_open or "maxProperties" in schema
    if not optional or (not exact and least <= 1):
        return
    bounds: dict[str, Any] = {name: schema.pop(name) for name in ("minProperties", "maxProperties") if name in schema}
    sizes = range(0 if is_open else least, min(most, len(optional)) + 1) if exact else [least]
    if sum(comb(len(optional), size) for size in sizes) > MAX_OPTIONS:
        keyword = "minProperties" if least else "maxProperties"
        root.unenforceable(keyword, f"its properties have more than {MAX_OPTIONS} combinations", where)
        return
    chosen = [names for size in sizes for names in combinations(optional, size)]
    yield {
        "anyOf": [_with(names, optional, bounds) if exact else {"required": list(names)} for names in chosen] or [False]
    }


def _with(names: Sequence[str], optional: Sequence[str], bounds: dict[str, Any]) -> dict[str, Any]:
    """Of the `optional` properties just `names`. The `bounds` then count what others declare."""
    return bounds | {"required": list(names), "properties": {name: False for name in optional if name not in names}}


def _unevaluated(schema: dict[str, Any], where: str, root: SchemaRoot) -> _Parts:
    """Objects and tuples are closed by what they are combined with, as these keywords mean it."""
    combined = any(word in schema for word in ("allOf", "anyOf", "oneOf", "$ref"))
    if "unevaluatedProperties" in schema and ("additionalProperties" in schema or not combined):
        schema.setdefault("additionalProperties", schema.pop("unevaluatedProperties"))
    others = schema.pop("unevaluatedItems", True)
    if "items" in schema or others is True:
        return ()
    if not combined:
        schema["items"] = others
    elif others is not False:
        root.unenforceable("unevaluatedItems", "it stands beside other schemas", where)
    return ()


def _object(schema: SchemaObject, keyword: str) -> dict[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _names(schema: SchemaObject, keyword: str) -> list[str]:
    value = schema.get(keyword)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class _Rule:
    """`parts` takes `keywords` out of a schema and says what they ask for."""

    keywords: frozenset[str]
    parts: Callable[[dict[str, Any], str, SchemaRoot], _Parts]

    @classmethod
    def of(cls, parts: Callable[[dict[str, Any], str, SchemaRoot], _Parts], *keywords: str) -> _Rule:
        return cls(frozenset(keywords), parts)


_RULES = (
    _Rule.of(_references, "$dynamicRef", "$recursiveRef"),
    _Rule.of(_numbers, *COUNTS, *RANGES, "multipleOf", "enum", "const"),
    _Rule.of(_format, "format"),
    _Rule.of(_pattern, "pattern"),
    _Rule.of(_dependencies, "dependentRequired", "dependentSchemas", "dependencies"),
    _Rule.of(condition_parts, "if", "then", "else", "allOf"),
    _Rule.of(_not, "not"),
    _Rule.of(_contains, "contains", "minContains", "maxContains"),
    _Rule.of(_unique, "uniqueItems"),
    _Rule.of(_property_names, "propertyNames"),
    _Rule.of(_object_size, "minProperties", "maxProperties"),
    _Rule.of(_unevaluated, "unevaluatedItems", "unevaluatedProperties"),
    _Rule.of(_one_of, "oneOf"),
)
