"""What a tool's schema says of an argument that is written without its type, and how a text is
written in a grammar.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from erllama.chat.tool_formats.base import LarkWriter
from erllama.chat.tool_formats.json_format import rebased
from erllama.grammar.json_schema.root import json_type

_MAX_DEPTH = 8
Types = frozenset[str] | None
"""Names of JSON Schema's types; None for any."""


def json_types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Types:
    """The types that a value which fits `schema` may have. `root` is where its references begin."""
    schema = resolved(schema, root)
    if not schema or depth == _MAX_DEPTH:
        return None
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(map(str, named))
    values = schema_values(schema)
    if values is not None:
        return frozenset(map(json_type, values))
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            options = [json_types(option, root, depth + 1) for option in schema[keyword]]
            return None if None in options else frozenset(name for option in options for name in option or ())
    parts = schema.get("allOf")
    found = [json_types(part, root, depth + 1) for part in parts] if isinstance(parts, list) else []
    return next((types for types in found if types is not None), None)


def schema_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that `enum` or `const` lists."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference leads to; empty for what is no schema with keywords."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = _looked_up(schema["$ref"], root)
    return {}


def _looked_up(reference: str, root: Any) -> Any:
    found = root
    for key in reference.removeprefix("#").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if reference.startswith("#") else None


def allows(types: Types, name: str) -> bool:
    return types is None or name in types or (name == "integer" and "number" in types)


def properties(parameters: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Name, schema and whether it is required, of each argument of a tool."""
    declared = parameters.get("properties")
    declared = dict(declared) if isinstance(declared, Mapping) else {}
    required = parameters.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return [
        (name, declared.get(name, {}), name in names)
        for name in [*declared, *(name for name in names if name not in declared)]
    ]


def member_schema(schema: Any, key: str | None, root: Mapping[str, Any], depth: int = 0) -> Any:
    """The schema of a member of an object, or of the items of a list (`key` None); empty if nothing
    is said of them.
    """
    schema = resolved(schema, root)
    if key is None and "items" in schema:
        return schema["items"]
    declared = schema.get("properties")
    if key is not None and isinstance(declared, Mapping) and key in declared:
        return declared[key]
    options = [one for keyword in ("anyOf", "oneOf", "allOf") for one in _listed(schema, keyword)]
    found = [member_schema(option, key, root, depth + 1) for option in options if depth < _MAX_DEPTH]
    further = schema.get("additionalProperties") if key is not None else None
    said = [one for one in [*found, further] if one and isinstance(one, Mapping)]
    return {"anyOf": said} if len(said) > 1 else said[0] if said else {}


def _listed(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    listed = schema.get(keyword)
    return listed if isinstance(listed, list) else []


def standalone(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """An argument's schema by itself: what it refers to comes with it."""
    own: dict[str, Any] = dict(schema) if isinstance(schema, Mapping) else {}
    if '"$ref"' not in json.dumps(own):
        return own
    base = "#/$defs/tool"
    moved: dict[str, Any] = rebased(own, base)
    moved["$defs"] = {"tool": rebased(dict(root), base)}
    return moved


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments of a call; text that is no JSON object, as the one argument `input`."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"input": text}


def comma_list(required: Sequence[str], optional: Sequence[str], comma: str) -> str:
    """Lark items with commas between them: first those that must be there, then any of the others,
    in their order.
    """
    if required:
        return f" {comma} ".join(required) + _further(optional, comma)
    return f"({_begun(optional, comma)})?" if optional else ""


def _further(optional: Sequence[str], comma: str) -> str:
    return "".join(f" ({comma} {item})?" for item in optional)


def _begun(optional: Sequence[str], comma: str) -> str:
    """At least one of the items. Halves keep it short: each item occurs a few times only."""
    if len(optional) == 1:
        return optional[0]
    half = len(optional) // 2
    first, second = optional[:half], optional[half:]
    return f"({_begun(first, comma)}){_further(second, comma)} | {_begun(second, comma)}"


def text_until(closing: str) -> str:
    """A Lark regular expression for the pieces of texts in which `closing` does not occur, if the
    grammar goes on with `closing` behind them: llguidance takes the longest match, so that what
    begins like it is a piece only if it goes on otherwise. The first character of `closing` must
    not occur in it again.
    """
    first = re.escape(closing[0]).replace("/", r"\/")
    begun = "|".join(re.escape(closing[:n]).replace("/", r"\/") for n in range(len(closing) - 1, 0, -1))
    return rf"/[^{first}]+|{begun}/"


class SchemaGrammar(ABC):
    """Writes the values that fit a schema as Lark, for a family that writes nested values in a way
    of its own. What a schema refers to becomes a rule, which may refer to itself.
    """

    max_depth = 6  # of a schema that is followed

    def __init__(self, write: LarkWriter) -> None:
        self.write = write
        self._root: Mapping[str, Any] = {}  # of the tool's schema that is being written
        self._referred: dict[tuple[int, str], str] = {}  # root and reference: the rule that it leads to
        self._bodies: dict[str, str] = {}

    def referred_rules(self) -> str:
        return "".join(f"{name}: {body}\n" for name, body in self._bodies.items())

    def begin(self, root: Mapping[str, Any]) -> None:
        """Values of this tool's schema follow."""
        self._root = root

    def value(self, schema: Any, depth: int = 0) -> str:
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            return self._reference(schema["$ref"])
        schema = resolved(schema, self._root)
        values = schema_values(schema)
        if values is not None:
            return f"({' | '.join(map(self.constant, values))})"
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword) and depth < self.max_depth:
                return f"({' | '.join(self.value(option, depth + 1) for option in schema[keyword])})"
        types = json_types(schema, self._root)
        if types is None or depth == self.max_depth:
            return self.anything(self.alone(schema))
        return f"({' | '.join(self.typed(name, schema, depth + 1) for name in sorted(types))})"

    def alone(self, schema: Any) -> dict[str, Any]:
        return standalone(schema, self._root)

    def _reference(self, reference: str) -> str:
        key = id(self._root), reference
        if key not in self._referred:
            name = self._referred[key] = f"referred{len(self._referred)}"
            self._bodies[name] = self.value(resolved({"$ref": reference}, self._root))
        return self._referred[key]

    @abstractmethod
    def constant(self, value: Any) -> str: ...

    @abstractmethod
    def anything(self, schema: Mapping[str, Any]) -> str:
        """Values of which `schema` says no types, or that are nested too deeply to be followed."""

    @abstractmethod
    def typed(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        """Values of the type `name` that fit `schema`."""
