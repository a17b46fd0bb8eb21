"""JSON Schema as we mean it, in the terms of llguidance, which then compiles it.

Narrower than what the standard says, since a model that may add things will:
- an object that names properties takes no others unless `additionalProperties` says so (as in
  OpenAI's strict mode);
- `prefixItems` must all be there, and nothing follows them without `items`;
- keywords of one type imply that type.

What llguidance lacks is said otherwise where that is possible (`keywords`), and refused by name where
it is not, unless the schema is not strict. Remote references are refused and never fetched. White
space is bounded.

Pure; every failure is `RefusedText`, whose message names the place as a JSON pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from erllama.errors import InvalidParameter
from erllama.grammar.constraint import RefusedText
from erllama.grammar.expression import MAX_OPTIONAL_PARTS, check_optional_parts, optional_parts
from erllama.grammar.json_schema.keywords import plain_schema
from erllama.grammar.json_schema.root import SchemaObject, SchemaRoot, refuse

MAX_NESTING = 64  # of schemas in schemas
MAX_OPTIONAL = 450  # properties of one object; a position has four items of the parser for each, of 2000
MAX_NAMES = 200_000  # properties of all objects, those of unions counted in each of their options
_MAX_OPTIONAL_PARTS = 5 * MAX_OPTIONAL_PARTS  # of all patterns together
OPTIONS = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "coerce_one_of": True,
}
"""How llguidance is to read a prepared schema. Bounded white space keeps a model from spending its budget on blanks."""
_ANY_ESCAPE = {"json_allow_general_unicode_escapes": True}

# Keywords that tell the type of a schema that does not name one.
_IMPLIED_TYPES = (
    ("object", ("properties", "required", "additionalProperties", "patternProperties")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("pattern", "minLength", "maxLength", "format")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)
_UNIONS = ("anyOf", "oneOf")
_COMBINATIONS = ("$ref", "allOf", *_UNIONS)
_CONSTRAINTS = frozenset(
    {"type", "enum", "const", *_COMBINATIONS, *(name for _, names in _IMPLIED_TYPES for name in names)}
)
_KEPT = frozenset(
    {"type", "enum", "const", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
     "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "required", "minProperties", "maxProperties"}
)  # fmt: skip
"""Keywords that llguidance gets as they are."""
_NAMED = ("properties", "patternProperties")  # keywords that hold schemas by name
_SINGLE = ("items", "additionalItems")
_LIST = ("a list", lambda value: isinstance(value, list))
_OPTIONS = ("a non-empty list", lambda value: isinstance(value, list) and len(value) > 0)
_STRINGS = ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
_SHAPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_NAMED, ("an object", lambda value: isinstance(value, dict))),
    **{"allOf": _LIST, "prefixItems": _LIST, "anyOf": _OPTIONS, "oneOf": _OPTIONS, "required": _STRINGS},
}


def prepared_schema(schema: Any, *, strict: bool = True) -> dict[str, Any]:
    """The schema for llguidance, with `OPTIONS` inside. `schema` is what `json.loads` made. Raises
    `RefusedText`; unless `strict`, not for what merely cannot be enforced.
    """
    if not isinstance(schema, dict):
        refuse(f"it must be an object, got {type(schema).__name__}")
    preparation = _Preparation(SchemaRoot(schema, strict=strict))
    prepared = preparation.whole(schema)
    escapes = {"json_allowed_escapes": 'nrbtf\\"'} if preparation.mixes else _ANY_ESCAPE
    return {"x-guidance": OPTIONS | escapes | {"lenient": not strict}, **prepared}


def check_strict(schema: Any, param: str) -> None:
    """Raises `InvalidParameter`, which names `param`, for a schema that cannot be enforced as it is."""
    try:
        prepared_schema(schema)
    except RefusedText as error:
        raise InvalidParameter(f"the JSON schema is refused: {error}", param=param) from None
    except RecursionError:
        raise InvalidParameter("the JSON schema is refused: it is nested too deeply", param=param) from None


class _Declared:
    """What `schemas`, and what is `beside` them, say: their keywords, the properties that an object
    may have, and what others must fit.
    """

    def __init__(self, schemas: Iterable[SchemaObject], beside: _Declared | None) -> None:
        self.keywords: set[str] = set(beside.keywords) if beside else set()
        self.names: dict[str, None] = dict(beside.names) if beside else {}
        self.others: list[Any] = list(beside.others) if beside else []  # every `additionalProperties`
        for schema in schemas:
            self.keywords |= _CONSTRAINTS & schema.keys()
            self.names |= dict.fromkeys([*schema.get("properties", ()), *schema.get("required", ())])
            self.others += [schema["additionalProperties"]] if "additionalProperties" in schema else []

    @property
    def additional(self) -> Any:
        """What properties beside `names` must fit, False for none. An object that names none takes
        any.
        """
        if not self.others:
            return not (self.names or "patternProperties" in self.keywords)
        if any(other is False for other in self.others):
            return False
        others = [other for other in self.others if other is not True]
        return {"allOf": others} if len(others) > 1 else others[0] if others else True

    @property
    def implied_type(self) -> str | None:
        if {"type", "enum", "const"} & self.keywords:
            return None
        return next((name for name, words in _IMPLIED_TYPES if self.keywords & set(words)), None)


class _Preparation:
    """One schema on its way. `alone` makes a schema that stands for itself, `_part` one that
    another adds to: only the first is closed. What a schema is combined with is copied into it: a
    definition that stands for itself elsewhere is closed there.

    In what is made, a schema's own properties come before those of what it is combined with:
    llguidance goes by the keywords' order, and so does the reply.
    """

    def __init__(self, root: SchemaRoot) -> None:
        self._root = root
        self._n_names = 0
        self._n_optional = 0
        self._definitions: dict[str, str] = {}  # a reference -> the name of what it leads to
        self._referred: list[str] = []  # the references in the order in which they were met
        self.mixes = False  # some object takes names beside its own, and an escape could spell one of its own

    def whole(self, schema: SchemaObject) -> dict[str, Any]:
        """The root itself, with the definitions that it refers to."""
        prepared = self.alone(schema, "#")
        made: dict[str, Any] = {}
        for ref in self._referred:  # grows, as each may refer to others
            made[self._definitions[ref]] = self.alone(self._root.resolve(ref, "#"), ref)
        return {**prepared, "$defs": made}

    def alone(self, schema: Any, where: str, depth: int = 0, beside: _Declared | None = None) -> Any:
        """`beside` has what stands beside the union of which `schema` is a branch."""
        if not isinstance(schema, dict):
            return _boolean(schema, where)
        schema = self._plain(schema, where, depth)
        made = self._children(schema, where, depth)
        if beside is None and _CONSTRAINTS & schema.keys() == {"$ref"}:
            return made | {"$ref": self._reference(schema["$ref"], where)}
        together: list[SchemaObject] = [schema]
        union = next((name for name in _UNIONS if name in schema), None)
        combined = self._combined(schema, where, depth, together, but=union)
        declared = _Declared(together, beside)
        declared.others += [schema["unevaluatedProperties"]] if "unevaluatedProperties" in schema else []
        if union is None:
            self._complete(made, declared, where, depth)
            return made | combined
        besides = declared if declared.keywords - {union} else None
        branches = [
            self.alone(branch, f"{where}/{union}/{number}", depth + 1, besides)
            for number, branch in enumerate(schema[union])
        ]
        return made | combined | {union: branches}

    def _complete(self, made: dict[str, Any], declared: _Declared, where: str, depth: int) -> None:
        """Say what the standard leaves open: the type, and which other properties there may be."""
        self._n_names += len(declared.names)
        if self._n_names > MAX_NAMES:
            refuse(f"its objects have more than {MAX_NAMES} properties, counted in each option of a union", where)
        if declared.implied_type is not None:
            made["type"] = declared.implied_type
        additional = declared.additional
        self.mixes = self.mixes or bool(declared.names and additional is not False)
        if additional is not True and "additionalProperties" not in made:
            made["properties"] = dict.fromkeys(declared.names, True) | made.get("properties", {})
            made["additionalProperties"] = self.alone(additional, f"{where}/additionalProperties", depth + 1)

    def _part(self, schema: Any, where: str, depth: int, together: list[SchemaObject]) -> Any:
        if not isinstance(schema, dict):
            return _boolean(schema, where)
        schema = self._plain(schema, where, depth)
        together.append(schema)
        if schema.get("unevaluatedProperties", True) is not True:
            return self.alone(schema, where, depth)  # what this part does not know may not be there
        return self._children(schema, where, depth) | self._combined(schema, where, depth, together)

    def _combined(
        self, schema: SchemaObject, where: str, depth: int, together: list[SchemaObject], but: str | None = None
    ) -> dict[str, Any]:
        """What `schema` is combined with, all but the union `but`; also added to `together`."""
        target = [self._root.resolve(schema["$ref"], where)] if "$ref" in schema else []
        parts = {"allOf": [*schema.get("allOf", ()), *target]}
        parts |= {name: schema[name] for name in _UNIONS if name in schema and name != but}
        return {
            name: [
                self._part(part, f"{where}/{name}/{number}", depth + 1, together) for number, part in enumerate(listed)
            ]
            for name, listed in parts.items()
            if listed
        }

    def _children(self, schema: SchemaObject, where: str, depth: int) -> dict[str, Any]:
        """The keywords of one schema, those that are schemas prepared; combinations are left to the
        caller.
        """
        made: dict[str, Any] = {}
        for name, value in schema.items():
            here = f"{where}/{name}"
            if name in _NAMED:
                made[name] = {key: self.alone(one, f"{here}/{key}", depth + 1) for key, one in value.items()}
            elif name == "prefixItems" or (name == "items" and isinstance(value, list)):
                made[name] = [self.alone(one, f"{here}/{number}", depth + 1) for number, one in enumerate(value)]
            elif name in _SINGLE or (name == "additionalProperties" and value is not True and self._root.strict):
                made[name] = self.alone(value, here, depth + 1)
            elif name in _KEPT:
                made[name] = value
        if len(made.get("properties", {}).keys() - set(made.get("required", ()))) > MAX_OPTIONAL:
            refuse(f"an object has more than {MAX_OPTIONAL} optional properties", where)
        for pattern in (made.get("pattern"), *made.get("patternProperties", ())):
            self._check_pattern(pattern, where)
        _complete_tuple(made)
        return made

    def _plain(self, schema: SchemaObject, where: str, depth: int) -> dict[str, Any]:
        """`schema` in keywords that llguidance has."""
        if depth > MAX_NESTING:
            refuse("its references never end, or it is nested too deeply", where)
        self._root.visit(where)
        for name, (what, fits) in _SHAPES.items():
            if name in schema and not fits(schema[name]):
                refuse(f"{name} must be {what}", where)
        return plain_schema(schema, where, self._root)

    def _check_pattern(self, pattern: Any, where: str) -> None:
        """llguidance puts a pattern between others, so that it would take a lone backslash at the end
        for an escape.
        """
        if not isinstance(pattern, str):
            return
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            refuse("the pattern ends within an escape", where)
        self._n_optional += optional_parts(pattern)
        check_optional_parts(optional_parts(pattern))
        if self._n_optional > _MAX_OPTIONAL_PARTS:
            refuse(f"more than {_MAX_OPTIONAL_PARTS} parts of its patterns may be left out", where)

    def _reference(self, ref: Any, where: str) -> str:
        self._root.resolve(ref, where)
        if ref == "#":
            return "#"
        if ref not in self._definitions:
            self._definitions[ref] = f"d{len(self._definitions)}"
            self._referred.append(ref)
        return f"#/$defs/{self._definitions[ref]}"


def _boolean(schema: Any, where: str) -> bool:
    if not isinstance(schema, bool):
        refuse(f"a schema must be an object, got {type(schema).__name__}", where)
    return schema


def _complete_tuple(made: dict[str, Any]) -> None:
    if isinstance(made.get("items"), list):  # the spelling before 2020-12
        made["prefixItems"], made["items"] = made["items"], made.pop("additionalItems", False)
    if "prefixItems" in made:
        made.setdefault("items", False)
        least = made.get("minItems", 0)
        made["minItems"] = max(least, len(made["prefixItems"])) if isinstance(least, int) else least
