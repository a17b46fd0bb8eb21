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

llguidance follows references by recursion and would run out of stack, which ends the process;
`MAX_DEPTH` bounds what it can meet.

Pure; every failure is `RefusedSchema`, whose message names the place as a JSON pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import unquote

MAX_NESTING = 64  # of schemas in schemas
MAX_DEPTH = 800  # nesting of JSON along any chain of references: 8 MB of stack hold twice as much
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
_COMBINATIONS = ("$ref", "allOf", "anyOf", "oneOf")
_CONSTRAINTS = frozenset(
    {"type", "enum", "const", *_COMBINATIONS, *(name for _, names in _IMPLIED_TYPES for name in names)}
)
_DROPPED = frozenset(
    {"additionalProperties", "multipleOf", "$schema", "$id", "id", "$anchor", "$dynamicAnchor",
     "$recursiveAnchor", "x-guidance", "default", "examples", "title", "description", "$comment"}
)  # fmt: skip
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # keywords that hold schemas by name
_LISTED = ("prefixItems",)
_SINGLE = ("items", "additionalItems")

_Object = Mapping[str, Any]


class RefusedSchema(Exception):
    """A schema that cannot be followed; the message is a reason for its author."""


def prepared_schema(schema: Any) -> dict[str, Any]:
    """The schema for llguidance, with `OPTIONS` inside. `schema` is what `json.loads` made. Raises
    `RefusedSchema`.
    """
    if not isinstance(schema, dict):
        _refuse(f"it must be an object, got {type(schema).__name__}")
    try:
        preparation = _Preparation(schema)
        prepared = preparation.alone(schema, "#")
    except RecursionError:
        _refuse("it is nested too deeply")
    if _depth(prepared) > MAX_DEPTH:
        _refuse("its references make too long a chain")
    return {
        "x-guidance": OPTIONS | ({"json_allowed_escapes": 'nrbtf\\"'} if preparation.mixes else _ANY_ESCAPE),
        **prepared,
    }


def _refuse(reason: str, where: str = "") -> NoReturn:
    raise RefusedSchema(reason + (f" (at {where})" if where else ""))


class _Declared:
    """What a schema and all that it combines say: its keywords, the properties that an object may
    have, and what others must fit.
    """

    def __init__(self) -> None:
        self.keywords: set[str] = set()
        self.names: dict[str, None] = {}
        self.others: list[Any] = []  # every `additionalProperties`

    def add(self, schema: _Object, where: str) -> None:
        self.keywords |= _CONSTRAINTS & schema.keys()
        self.names |= dict.fromkeys([*_mapping(schema, "properties", where), *_strings(schema, "required", where)])
        self.others += [schema["additionalProperties"]] if "additionalProperties" in schema else []

    def copy(self) -> _Declared:
        other = _Declared()
        other.keywords, other.names, other.others = set(self.keywords), dict(self.names), list(self.others)
        return other

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
    another adds to: only the first is closed.
    """

    def __init__(self, root: _Object) -> None:
        self._root = root
        self._n_visits = 0
        self.mixes = False  # some object takes names beside its own, and an escape could spell one of its own

    def alone(self, schema: Any, where: str, depth: int = 0, beside: _Declared | None = None) -> Any:
        """`beside` has what stands beside the union of which `schema` is a branch."""
        if not isinstance(schema, dict):
            return self._boolean(schema, where)
        if beside is None and _CONSTRAINTS & schema.keys() == {"$ref"}:
            self._visit(schema, where, depth)
            self._resolve(schema["$ref"], where)
            return self._children(schema, where, depth)
        declared = _Declared() if beside is None else beside.copy()
        declared.add(schema, where)
        for part in self._parts_of(schema, where):
            self._declare(part, declared, where, depth + 1)
        return self._finished(schema, declared, where, depth)

    def _finished(self, schema: _Object, declared: _Declared, where: str, depth: int) -> dict[str, Any]:
        union = next((name for name in ("anyOf", "oneOf") if name in schema), None)
        made = self._open(schema, where, depth, union)
        if union is None:
            self._complete_object(made, declared, where, depth)
        else:
            beside = declared if declared.keywords - {union} else None
            made[union] = [
                self.alone(branch, f"{where}/{union}/{number}", depth + 1, beside)
                for number, branch in enumerate(_options(schema, union, where))
            ]
        return _in_order(made)

    def _complete_object(self, made: dict[str, Any], declared: _Declared, where: str, depth: int) -> None:
        """Say what the standard leaves open: the type, and which other properties there may be."""
        if declared.implied_type is not None:
            made["type"] = declared.implied_type
        additional = declared.additional
        self.mixes = self.mixes or bool(declared.names and additional is not False)
        if additional is True:
            return
        made["properties"] = dict.fromkeys(declared.names, True) | made.get("properties", {})
        made["additionalProperties"] = self.alone(additional, f"{where}/additionalProperties", depth + 1)

    def _open(self, schema: _Object, where: str, depth: int, union: str | None = None) -> dict[str, Any]:
        """All but `union`, with what it is combined with copied into it: a definition that stands
        for itself elsewhere is closed there.
        """
        self._visit(schema, where, depth)
        made = self._children(schema, where, depth)
        parts = [self._part(part, where, depth + 1) for part in self._parts_of(schema, where)]
        made.pop("$ref", None)
        made.pop("allOf", None)
        if parts:
            made["allOf"] = parts
        for name in ("anyOf", "oneOf"):
            if name in schema and name != union:
                made[name] = [
                    self._part(branch, f"{where}/{name}", depth + 1) for branch in _options(schema, name, where)
                ]
        return made

    def _part(self, schema: Any, where: str, depth: int) -> Any:
        return self._open(schema, where, depth) if isinstance(schema, dict) else self._boolean(schema, where)

    def _parts_of(self, schema: _Object, where: str) -> list[Any]:
        """What `schema` must fit beside its own keywords. The target of its reference comes last:
        pointers into `allOf` stay right.
        """
        parts = list(_list(schema, "allOf", where)) if "allOf" in schema else []
        return [*parts, self._resolve(schema["$ref"], where)] if "$ref" in schema else parts

    def _declare(self, schema: Any, declared: _Declared, where: str, depth: int) -> None:
        """Add what `schema` and all that it combines declare."""
        if not isinstance(schema, dict):
            return
        self._visit(schema, where, depth)
        declared.add(schema, where)
        unions = [branch for name in ("anyOf", "oneOf") if name in schema for branch in _options(schema, name, where)]
        for part in [*self._parts_of(schema, where), *unions]:
            self._declare(part, declared, where, depth + 1)

    def _children(self, schema: _Object, where: str, depth: int) -> dict[str, Any]:
        """The keywords of one schema, those that are schemas prepared; combinations are left to the
        caller.
        """
        made: dict[str, Any] = {}
        for name, value in schema.items():
            if name in _DROPPED:
                continue
            if name in _NAMED:
                made[name] = {
                    key: self.alone(one, f"{where}/{name}/{key}", depth + 1)
                    for key, one in _mapping(schema, name, where).items()
                }
            elif name in _LISTED or (name == "items" and isinstance(value, list)):
                made[name] = [
                    self.alone(one, f"{where}/{name}/{n}", depth + 1)
                    for n, one in enumerate(_list(schema, name, where))
                ]
            elif name in _SINGLE:
                made[name] = self.alone(value, f"{where}/{name}", depth + 1)
            else:
                made[name] = value
        if len(_mapping(made, "properties", where).keys() - _strings(made, "required", where)) > MAX_OPTIONAL:
            _refuse(f"an object has more than {MAX_OPTIONAL} optional properties", where)
        for pattern in (made.get("pattern"), *_mapping(made, "patternProperties", where)):
            _check_pattern(pattern, where)
        _complete_tuple(made)
        return made

    def _boolean(self, schema: Any, where: str) -> bool:
        if not isinstance(schema, bool):
            _refuse(f"a schema must be an object, got {type(schema).__name__}", where)
        return schema

    def _visit(self, schema: _Object, where: str, depth: int) -> None:
        self._n_visits += 1
        if depth > MAX_NESTING:
            _refuse("its references never end, or it is nested too deeply", where)
        if self._n_visits > MAX_VISITS:
            _refuse(f"it expands to more than {MAX_VISITS} parts", where)
        if refused := sorted(REFUSED & schema.keys()):
            _refuse(f"{refused[0]!r} is not supported", where)

    def _resolve(self, ref: Any, where: str) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            _refuse(f"only references within the schema (#/...) are followed, got {ref!r}", where)
        try:
            return _target(self._root, ref)
        except LookupError:
            _refuse(f"the reference {ref!r} leads nowhere", where)


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


def _in_order(made: dict[str, Any]) -> dict[str, Any]:
    """A schema's own properties come first in the reply, then those of what it is combined with:
    llguidance goes by the keywords' order.
    """
    return {name: value for name, value in made.items() if name not in _COMBINATIONS} | {
        name: made[name] for name in _COMBINATIONS if name in made
    }


def _target(root: Any, ref: str) -> Any:
    """What a reference within `root` points to. Raises `LookupError`."""
    target = root
    for part in ref.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(key[:9]) if key.isdecimal() else len(target)]
        elif isinstance(target, dict):
            target = target[key]
        else:
            raise LookupError(ref)
    return target


def _depth(prepared: _Object) -> int:
    """A bound of how deep llguidance recurses, which follows every reference once: the longest
    chain of targets; those in cycles, or on the way to one, all count.
    """
    depths: dict[int, int] = {}  # by identity of a part of `prepared`
    _measure(prepared, depths)
    targets = _targets(prepared, prepared)
    calls = {key: _targets(prepared, target).keys() for key, target in targets.items()}
    longest: dict[int, int] = {}
    while ready := [key for key, called in calls.items() if key not in longest and called <= longest.keys()]:
        longest |= {key: depths[key] + max((longest[called] for called in calls[key]), default=0) for key in ready}
        if max(longest.values()) > MAX_DEPTH:
            break
    return (
        depths[id(prepared)]
        + max(longest.values(), default=0)
        + sum(depths[key] for key in calls if key not in longest)
    )


def _targets(root: _Object, part: Any) -> dict[int, Any]:
    """What is referred to within `part`, by identity."""
    targets: dict[int, Any] = {}
    for ref in set(_references(part)):
        with suppress(LookupError):  # one inside a constant is no reference
            target = _target(root, ref)
            if isinstance(target, dict):
                targets[id(target)] = target
    return targets


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        yield value["$ref"]
    for inner in _inner(value):
        yield from _references(inner)


def _measure(value: Any, depths: dict[int, int]) -> int:
    """How deep objects and lists are nested in `value`; noted for each of them."""
    if not isinstance(value, dict | list):
        return 0
    depths[id(value)] = depth = 1 + max((_measure(inner, depths) for inner in _inner(value)), default=0)
    return depth


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _mapping(schema: _Object, name: str, where: str) -> dict[str, Any]:
    value = schema.get(name, {})
    if not isinstance(value, dict):
        _refuse(f"{name} must be an object", where)
    return value


def _list(schema: _Object, name: str, where: str) -> list[Any]:
    value = schema[name]
    if not isinstance(value, list):
        _refuse(f"{name} must be a list", where)
    return value


def _options(schema: _Object, name: str, where: str) -> list[Any]:
    options = _list(schema, name, where)
    if not options:
        _refuse(f"{name} must be a non-empty list", where)
    return options


def _strings(schema: _Object, name: str, where: str) -> list[str]:
    value = schema.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(f"{name} must be a list of strings", where)
    return value
