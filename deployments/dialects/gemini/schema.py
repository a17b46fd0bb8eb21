"""Gemini's schemas as JSON schemas. Pure.

They are OpenAPI's of old: types in capitals, `nullable` beside the type, an order of the properties,
limits of sizes as texts. What else they say is said alike.
"""

from __future__ import annotations

from typing import Any

from erllama.errors import InvalidParameter

_DROPPED = frozenset({"nullable", "propertyOrdering", "property_ordering", "example", "title"})
_SNAKE = {
    "any_of": "anyOf", "max_items": "maxItems", "min_items": "minItems", "max_length": "maxLength",
    "min_length": "minLength", "max_properties": "maxProperties", "min_properties": "minProperties",
    "additional_properties": "additionalProperties",
}  # fmt: skip
_SIZES = frozenset({"maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"})
_OWN_FORMATS = frozenset({"int32", "int64", "float", "double", "enum", "byte"})  # say nothing to JSON
_MAX_DEPTH = 64


def json_schema(given: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """The JSON schema that `given` means. Raises `InvalidParameter` for one that is nested too deeply."""
    if depth > _MAX_DEPTH:
        raise InvalidParameter(f"the schema is nested more than {_MAX_DEPTH} deep", param="schema")
    out: dict[str, Any] = {}
    for name, value in given.items():
        name = _SNAKE.get(name, name)
        if name not in _DROPPED and not (name == "format" and value in _OWN_FORMATS):
            out[name] = _value(name, value, depth)
    order = given.get("propertyOrdering") or given.get("property_ordering")
    if isinstance(order, list) and isinstance(out.get("properties"), dict):
        out["properties"] = _ordered(out["properties"], order)
    return _with_null(out) if given.get("nullable") is True else out


def _value(name: str, value: Any, depth: int) -> Any:
    if name == "type" and isinstance(value, str):
        return value.lower()
    if name in _SIZES and isinstance(value, str) and value.isdecimal():
        return int(value[:12])
    if name in ("items", "additionalProperties") and isinstance(value, dict):
        return json_schema(value, depth + 1)
    if name == "anyOf" and isinstance(value, list):
        return [json_schema(inner, depth + 1) if isinstance(inner, dict) else inner for inner in value]
    if name in ("properties", "$defs", "defs") and isinstance(value, dict):
        return {
            key: json_schema(inner, depth + 1) if isinstance(inner, dict) else inner for key, inner in value.items()
        }
    return value


def _ordered(properties: dict[str, Any], order: list[Any]) -> dict[str, Any]:
    first = {name: properties[name] for name in order if isinstance(name, str) and name in properties}
    return first | {name: schema for name, schema in properties.items() if name not in first}


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}
