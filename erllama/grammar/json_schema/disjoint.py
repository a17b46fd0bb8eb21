"""Which options of a `oneOf` no value can fit together.

A reply is written from one option, whose objects are closed; it must not fit another one as the
standard reads it, open. That holds for options of other types, of other values, with a property
that the first one has not, or with a property that both describe differently: that one is then
required, so that it decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from erllama.grammar.json_schema.negation import TYPES, same
from erllama.grammar.json_schema.root import SchemaRoot, json_type

_MAX_DEPTH = 8
_IMPLIED = {
    "properties": "object", "required": "object", "patternProperties": "object", "additionalProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "pattern": "string", "minLength": "string", "maxLength": "string", "format": "string",
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}  # fmt: skip


@dataclass(slots=True)
class _Facts:
    """What is known of the values that fit a schema. `types` are those that it names; where it names
    none (`typed`), a reply has one of those that its keywords imply. `open`: properties of other names
    may be there.
    """

    types: frozenset[str]
    typed: bool = False
    implied: frozenset[str] = frozenset()
    values: list[Any] | None = None
    properties: dict[str, list[Any]] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    open: bool = False

    @property
    def written(self) -> frozenset[str]:
        """The types that a reply may have."""
        return self.types if self.typed or not self.implied else self.types & self.implied


def exclusive(options: list[Any], beside: Collection[str], root: SchemaRoot, where: str) -> list[Any]:
    """`options` of which a reply fits one only. `beside`: the names of properties that stand beside
    the `oneOf`. What cannot be kept apart is up to `root`.
    """
    look = _Look(root, where)
    facts = [look.facts(option) for option in options]
    needed: list[dict[str, None]] = [{} for _ in options]
    for i, one in enumerate(facts):
        for j, other in enumerate(facts):
            apart = "" if i == j else _keeps_out(one, other, beside, look)
            if apart is None:
                root.unenforceable("oneOf", f"a value may fit its options {min(i, j)} and {max(i, j)}", where)
            elif apart:
                needed[i][apart] = None
    return [
        {"allOf": [option], "required": list(names)} if names else option
        for option, names in zip(options, needed, strict=True)
    ]


def _keeps_out(one: _Facts, other: _Facts, beside: Collection[str], look: _Look) -> str | None:
    """What keeps a reply of `one` from fitting `other`: "" for what both say, or the property that
    must be there for it; None for nothing.
    """
    if _differ(one, other):
        return ""
    if one.written != {"object"}:
        return None
    if not one.open and any(name not in one.properties and name not in beside for name in other.required):
        return ""
    for name, schemas in one.properties.items():
        theirs = other.properties.get(name, ())
        if any(_differ(look.facts(mine, 1), look.facts(its, 1)) for mine in schemas for its in theirs):
            return "" if name in one.required else name
    return None


def _differ(one: _Facts, other: _Facts) -> bool:
    return _types_differ(one.written, other.types) or _values_differ(one, other)


def _types_differ(one: frozenset[str], other: frozenset[str]) -> bool:
    return not one & other and not ({"integer", "number"} & one and {"integer", "number"} & other)


def _values_differ(one: _Facts, other: _Facts) -> bool:
    if one.values is None or other.values is None:
        return False
    return not any(same(mine, its) for mine in one.values for its in other.values)


class _Look:
    """Facts of schemas, each found once."""

    def __init__(self, root: SchemaRoot, where: str) -> None:
        self._root = root
        self._where = where
        self._known: dict[int, _Facts] = {}

    def facts(self, schema: Any, depth: int = 0) -> _Facts:
        if id(schema) not in self._known:
            self._known[id(schema)] = self._found(schema, depth)
        return self._known[id(schema)]

    def _found(self, schema: Any, depth: int) -> _Facts:
        """What `schema` and all that it is combined with say; unions count for their types only."""
        self._root.visit(self._where)
        every = frozenset({*TYPES, "integer"})
        facts = _Facts(every)
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return facts
        _add_own(facts, schema)
        parts = [*schema["allOf"]] if isinstance(schema.get("allOf"), list) else []
        parts += [self._root.resolve(schema["$ref"], self._where)] if "$ref" in schema else []
        for part in parts:
            _add(facts, self.facts(part, depth + 1))
        for union in ("anyOf", "oneOf"):
            if isinstance(schema.get(union), list):
                options = [self.facts(option, depth + 1) for option in schema[union]]
                facts.types &= frozenset().union(*(option.types for option in options))
                facts.typed |= any(option.typed for option in options)
                facts.implied |= frozenset().union(*(option.implied for option in options))
                facts.open |= any(option.open or option.properties for option in options)
        return facts


def _add_own(facts: _Facts, schema: Mapping[str, Any]) -> None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        facts.values = values
        facts.types &= frozenset(map(json_type, values))
    named = schema.get("type")
    if named is not None:
        facts.types &= frozenset(map(str, named if isinstance(named, list) else [named]))
    facts.typed |= named is not None or values is not None
    facts.implied |= {_IMPLIED[keyword] for keyword in schema if keyword in _IMPLIED}
    if isinstance(schema.get("properties"), Mapping):
        for name, one in schema["properties"].items():
            facts.properties.setdefault(name, []).append(one)
    if isinstance(schema.get("required"), list):
        facts.required.update(name for name in schema["required"] if isinstance(name, str))
    for name in facts.required:
        facts.properties.setdefault(name, [])
    others = schema.get("additionalProperties", schema.get("unevaluatedProperties", False))
    facts.open |= others is not False or "patternProperties" in schema or not (facts.properties or "required" in schema)


def _add(facts: _Facts, part: _Facts) -> None:
    facts.types &= part.types
    facts.typed |= part.typed
    facts.implied |= part.implied
    facts.values = part.values if facts.values is None else facts.values
    facts.required |= part.required
    facts.open = (facts.open and part.open) if part.properties or facts.properties else facts.open
    for name, schemas in part.properties.items():
        facts.properties.setdefault(name, []).extend(schemas)
