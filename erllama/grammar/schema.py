"""JSON Schema as we mean it, in the terms of llguidance, which then compiles it.

Different from what the standard says, since a model that may add things will:
- an object that names properties takes no others unless `additionalProperties` says so (as in
  OpenAI's strict mode);
- `prefixItems` must all be there, and nothing follows them without `items`;
- keywords of one type imply that type; `oneOf` is `anyOf`.

Not enforced, and ignored: multipleOf (its expression grows with the number), uniqueItems, contains,
dependentRequired, formats that llguidance does not know, annotations. Refused, because ignoring
them would change what the schema is about: `REFUSED`. Remote references are refused and never
fetched. White space is bounded.

Pure; every failure is `RefusedText`, whose message names the place as a JSON pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from erllama.grammar.constraint import RefusedText

MAX_NESTING = 64  # of schemas in schemas
MAX_OPTIONAL = 450  # properties of one object; a position has four items of the parser for each, of 2000
MAX_VISITS = 20_000  # subschemas looked at, those of unions and merges counted as often as they are copied
REFUSED = frozenset(
    {"not", "if", "then", "else", "propertyNames", "unevaluatedProperties", "unevaluatedItems",
     "dependentSchemas", "$dynamicRef", "$recursiveRef"}
)  # fmt: skip
OPTIONS = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    "coerce_one_of": True,
    "lenient": True,
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
_DROPPED = frozenset(
    {"additionalProperties", "multipleOf", "$schema", "$id", "id", "$anchor", "$dynamicAnchor",
     "$recursiveAnchor", "x-guidance", "default", "examples", "title", "description", "$comment"}
)  # fmt: skip
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # keywords that hold schemas by name
_SINGLE = ("items", "additionalItems")
_LIST = ("a list", lambda value: isinstance(value, list))
_OPTIONS = ("a non-empty list", lambda value: isinstance(value, list) and len(value) > 0)
_STRINGS = ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
_SHAPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_NAMED, ("an object", lambda value: isinstance(value, dict))),
    **{"allOf": _LIST, "prefixItems": _LIST, "anyOf": _OPTIONS, "oneOf": _OPTIONS, "required": _STRINGS},
}

_Object = Mapping[str, Any]


def prepared_schema(schema: Any) -> dict[str, Any]:
    """The schema for llguidance, with `OPTIONS` inside. `schema` is what `json.loads` made. Raises
    `RefusedText`.
    """
    if not isinstance(schema, dict):
        _refuse(f"it must be an object, got {type(schema).__name__}")
    preparation = _Preparation(schema)
    prepared = preparation.alone(schema, "#")
    escapes = {"json_allowed_escapes": 'nrbtf\\"'} if preparation.mixes else _ANY_ESCAPE
    return {"x-guidance": OPTIONS | escapes, **prepared}


def _refuse(reason: str, where: str = "") -> NoReturn:
    raise RefusedText(reason + (f" (at {where})" if where else ""))


class _Declared:
    """What `schemas`, and what is `beside` them, say: their keywords, the properties that an object
    may have, and what others must fit.
    """

    def __init__(self, schemas: Iterable[_Object], beside: _Declared | None) -> None:
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

    def __init__(self, root: _Object) -> None:
        self._root = root
        self._n_visits = 0
        self.mixes = False  # some object takes names beside its own, and an escape could spell one of its own

    def alone(self, schema: Any, where: str, depth: int = 0, beside: _Declared | None = None) -> Any:
        """`beside` has what stands beside the union of which `schema` is a branch."""
        if not isinstance(schema, dict):
            return _boolean(schema, where)
        made = self._children(schema, where, depth)
        if beside is None and _CONSTRAINTS & schema.keys() == {"$ref"}:
            self._resolve(schema["$ref"], where)
            return made | {"$ref": schema["$ref"]}
        together: list[_Object] = [schema]
        union = next((name for name in _UNIONS if name in schema), None)
        combined = self._combined(schema, where, depth, together, but=union)
        declared = _Declared(together, beside)
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
        if declared.implied_type is not None:
            made["type"] = declared.implied_type
        additional = declared.additional
        self.mixes = self.mixes or bool(declared.names and additional is not False)
        if additional is not True:
            made["properties"] = dict.fromkeys(declared.names, True) | made.get("properties", {})
            made["additionalProperties"] = self.alone(additional, f"{where}/additionalProperties", depth + 1)

    def _part(self, schema: Any, where: str, depth: int, together: list[_Object]) -> Any:
        if not isinstance(schema, dict):
            return _boolean(schema, where)
        together.append(schema)
        return self._children(schema, where, depth) | self._combined(schema, where, depth, together)

    def _combined(
        self, schema: _Object, where: str, depth: int, together: list[_Object], but: str | None = None
    ) -> dict[str, Any]:
        """What `schema` is combined with, all but the union `but`; also added to `together`."""
        target = [self._resolve(schema["$ref"], where)] if "$ref" in schema else []
        parts = {"allOf": [*schema.get("allOf", ()), *target]}  # in this order: pointers into `allOf` stay right
        parts |= {name: schema[name] for name in _UNIONS if name in schema and name != but}
        return {
            name: [self._part(part, f"{where}/{name}", depth + 1, together) for part in listed]
            for name, listed in parts.items()
            if listed
        }

    def _children(self, schema: _Object, where: str, depth: int) -> dict[str, Any]:
        """The keywords of one schema, those that are schemas prepared; combinations are left to the
        caller.
        """
        self._visit(schema, where, depth)
        made: dict[str, Any] = {}
        for name, value in schema.items():
            here = f"{where}/{name}"
            if name in _DROPPED or name in _COMBINATIONS:
                continue
            if name in _NAMED:
                made[name] = {key: self.alone(one, f"{here}/{key}", depth + 1) for key, one in value.items()}
            elif name == "prefixItems" or (name == "items" and isinstance(value, list)):
                made[name] = [self.alone(one, f"{here}/{number}", depth + 1) for number, one in enumerate(value)]
            else:
                made[name] = self.alone(value, here, depth + 1) if name in _SINGLE else value
        if len(made.get("properties", {}).keys() - set(made.get("required", ()))) > MAX_OPTIONAL:
            _refuse(f"an object has more than {MAX_OPTIONAL} optional properties", where)
        for pattern in (made.get("pattern"), *made.get("patternProperties", ())):
            _check_pattern(pattern, where)
        _complete_tuple(made)
        return made

    def _visit(self, schema: _Object, where: str, depth: int) -> None:
        self._n_visits += 1
        if depth > MAX_NESTING:
            _refuse("its references never end, or it is nested too deeply", where)
        if self._n_visits > MAX_VISITS:
            _refuse(f"it expands to more than {MAX_VISITS} parts", where)
        if refused := sorted(REFUSED & schema.keys()):
            _refuse(f"{refused[0]!r} is not supported", where)
        for name, (what, fits) in _SHAPES.items():
            if name in schema and not fits(schema[name]):
                _refuse(f"{name} must be {what}", where)

    def _resolve(self, ref: Any, where: str) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            _refuse(f"only references within the schema (#/...) are followed, got {ref!r}", where)
        target: Any = self._root
        try:
            for part in ref.split("/")[1:]:
                key = unquote(part).replace("~1", "/").replace("~0", "~")
                target = target[int(key[:9]) if isinstance(target, list) and key.isdecimal() else key]
        except (LookupError, TypeError):
            _refuse(f"the reference {ref!r} leads nowhere", where)
        return target


def _boolean(schema: Any, where: str) -> bool:
    if not isinstance(schema, bool):
        _refuse(f"a schema must be an object, got {type(schema).__name__}", where)
    return schema


def _complete_tuple(made: dict[str, Any]) -> None:
    if isinstance(made.get("items"), list):  # the spelling before 2020-12
        made["prefixItems"], made["items"] = made["items"], made.pop("additionalItems", False)
    if "prefixItems" in made:
        made.setdefault("items", False)
        least = made.get("minItems", 0)
        made["minItems"] = max(least, len(made["prefixItems"])) if isinstance(least, int) else least


def _check_pattern(pattern: Any, where: str) -> None:
    """llguidance puts a pattern between others, so that it would take a lone backslash at the end
    for an escape.
    """
    if isinstance(pattern, str) and (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        _refuse("the pattern ends within an escape", where)
