"""The opposite of a schema, in other keywords: what `not`, `if` and `maxContains` need.

llguidance has no complement. Much can be said without one: the opposite of a type is the other
types, that of a minimum an exclusive maximum, that of a required property its absence. Where a text
must not be one of some texts, a regular expression says so letter by letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from erllama.grammar.json_schema.number_bounds import number
from erllama.grammar.json_schema.root import SchemaRoot, json_type

TYPES = ("null", "boolean", "number", "string", "array", "object")
_ASSERTIONS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "type", "const", "enum", "not", "if", "anyOf", "oneOf", "allOf",
     "required", "properties", "patternProperties", "additionalProperties", "propertyNames", "unevaluatedProperties",
     "dependentRequired", "dependentSchemas", "dependencies", "minProperties", "maxProperties", "items", "prefixItems",
     "additionalItems", "contains", "uniqueItems", "unevaluatedItems", "minItems", "maxItems", "pattern", "format",
     "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)  # fmt: skip
"""Keywords that something may not fit; all others are annotations, or belong to one of these."""
_MAX_LETTERS = 64  # of a text that must not be: its regular expression grows with their square
_MAX_DEPTH = 8
_OTHER_BOUND = {
    "minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}  # fmt: skip
_COUNTED = {"Length": "string", "Items": "array", "Properties": "object"}


def negated(schema: Any, root: SchemaRoot, where: str, depth: int = 0) -> Any:
    """A schema that only values fit that do not fit `schema`, and all of those but for what this
    module has no words for; None where it has none at all. Raises `RefusedText` for a reference
    that leads nowhere.
    """
    root.visit(where)
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return None
    opposites = []
    for keyword, value in schema.items():
        if keyword not in _ASSERTIONS:
            continue
        opposite = _of_keyword(keyword, value, root, where, depth + 1)
        if opposite is None:
            return None
        opposites.append(opposite)
    return _any_of(opposites)


def _any_of(schemas: list[Any]) -> Any:
    """Any of the schemas, none of which is None."""
    left = [schema for schema in schemas if schema is not False]
    if any(schema is True for schema in left):
        return True
    return {"anyOf": left} if len(left) > 1 else left[0] if left else False


def _of_keyword(keyword: str, value: Any, root: SchemaRoot, where: str, depth: int) -> Any:
    """The opposite of one keyword. A keyword of one type is fitted by all values of the others."""
    match keyword:
        case "$ref":
            return negated(root.resolve(value, where), root, where, depth)
        case "type":
            return _of_types(value if isinstance(value, list) else [value])
        case "const":
            return _of_values([value])
        case "enum" if isinstance(value, list):
            return _of_values(value)
        case "not":
            return value
        case "anyOf" | "allOf" if isinstance(value, list):
            parts = [negated(part, root, where, depth) for part in value]
            if any(part is None for part in parts):
                return None
            return {"allOf": parts} if keyword == "anyOf" else _any_of(parts)
        case "required" if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return _any_of([{"type": "object", "properties": {name: False}} for name in value])
        case "properties" if isinstance(value, Mapping):
            opposites = {name: negated(one, root, where, depth) for name, one in value.items()}
            if any(opposite is None for opposite in opposites.values()):
                return None
            return _any_of(
                [
                    {"type": "object", "properties": {name: opposite}, "required": [name]}
                    for name, opposite in opposites.items()
                    if opposite is not False
                ]
            )
        case _ if keyword in _OTHER_BOUND and number(value) is not None:
            return {"type": "number", _OTHER_BOUND[keyword]: value}
        case _ if keyword[3:] in _COUNTED and isinstance(value, int):
            return _of_count(keyword, value)
    return None


def _of_count(keyword: str, value: int) -> Any:
    counted = keyword[3:]
    if keyword.startswith("max"):
        return {"type": _COUNTED[counted], f"min{counted}": value + 1}
    return {"type": _COUNTED[counted], f"max{counted}": value - 1} if value > 0 else False


def _of_types(types: list[Any]) -> Any:
    """The other types. Numbers that are no integers are no type of their own."""
    left = [name for name in TYPES if name not in types and not (name == "number" and "integer" in types)]
    return {"type": left} if left else False


def _of_values(values: list[Any]) -> Any:
    """All but `values`; None for lists and objects, of which only the types can be left out."""
    if any(isinstance(value, list | dict) for value in values):
        return None
    texts = [value for value in values if isinstance(value, str)]
    numbers = sorted({exact for value in values if (exact := number(value)) is not None})
    listed = {"number" if (name := json_type(value)) == "integer" else name for value in values}
    kept: list[Any] = [{"type": [name for name in TYPES if name not in listed]}]
    if "boolean" in listed:
        kept += [{"const": truth} for truth in (False, True) if not any(value is truth for value in values)]
    if texts:
        kept += [{"allOf": [{"type": "string"}, *({"pattern": other_than(text)} for text in texts)]}]
    if not numbers:
        return {"anyOf": kept}
    bounds = [None, *(int(n) if n.denominator == 1 else float(n) for n in numbers), None]
    for low, high in pairwise(bounds):
        ranges = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        kept.append({"type": "number"} | {name: bound for name, bound in ranges.items() if bound is not None})
    return {"anyOf": kept}


def other_than(text: str) -> str:
    """A regular expression for texts other than `text`: one letter differs, or the length. Of a long
    text only the beginning counts.
    """
    begun = text[:_MAX_LETTERS]
    shorter = [_quoted(begun[:i]) for i in range(len(begun))]
    differing = [rf"{_quoted(begun[:i])}[^{_in_class(char)}][\s\S]*" for i, char in enumerate(begun)]
    longer = [rf"{_quoted(begun)}[\s\S]+"] if begun == text else []
    return f"^(?:{'|'.join([*shorter, *differing, *longer])})$"


def _quoted(text: str) -> str:
    return "".join(char if char.isalnum() else _in_class(char) for char in text)


def _in_class(char: str) -> str:
    """A character in a regular expression, inside of a class or outside."""
    return char if char.isalnum() else f"\\x{ord(char):02x}" if ord(char) < 256 else char


def distinct(values: list[Any]) -> list[Any]:
    """`values` without what JSON Schema holds for the same: 1 and 1.0 are, 1 and true are not."""
    kept: list[Any] = []
    for value in values:
        if not any(same(value, other) for other in kept):
            kept.append(value)
    return kept


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)
