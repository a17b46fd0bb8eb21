"""`if`, `then` and `else` as unions: the condition and what it asks for, or its opposite and what that
asks for.

Unions multiply. Several conditions on the values of one property, which is how forms say what each
kind of a thing needs, become one union instead, with an option for each value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from erllama.grammar.json_schema.negation import distinct, negated, same
from erllama.grammar.json_schema.root import SchemaRoot


def condition_parts(schema: dict[str, Any], where: str, root: SchemaRoot) -> Iterator[Any]:
    """What the conditions of `schema`, and those of its `allOf`, ask for; they are taken out."""
    own = {name: schema.pop(name) for name in ("if", "then", "else") if name in schema}
    others = schema.get("allOf") if isinstance(schema.get("allOf"), list) else None
    found = [(one, _Case.of(one)) for one in [own, *(others or ())]]
    groups: dict[str, list[_Case]] = {}
    for _, case in found:
        if case is not None:
            groups.setdefault(case.name, []).append(case)
    grouped = {name: cases for name, cases in groups.items() if len(cases) > 1}
    if others is not None:
        schema["allOf"] = [one for one, case in found[1:] if case is None or case.name not in grouped]
    if "if" in own and (found[0][1] is None or found[0][1].name not in grouped):
        yield from _condition(own["if"], own.get("then", True), own.get("else", True), where, root)
    for name, cases in grouped.items():
        yield {"anyOf": list(_options(name, cases, where, root))}


def _condition(condition: Any, then: Any, otherwise: Any, where: str, root: SchemaRoot) -> Iterator[Any]:
    if then is True and otherwise is True:
        return
    opposite = negated(condition, root, where)
    if opposite is None:
        root.unenforceable("if", "its opposite has no words here", where)
        return
    options = [{"allOf": [condition, then]}, {"allOf": [opposite, otherwise]}]
    yield {"anyOf": [option for option in options if False not in option["allOf"]] or [False]}


@dataclass(frozen=True, slots=True)
class _Case:
    """A condition on the property `name`: that it is one of `values`, or, unless it `needs` to be
    there, absent.
    """

    name: str
    values: list[Any]
    needs: bool
    then: Any
    otherwise: Any

    @classmethod
    def of(cls, schema: Any) -> _Case | None:
        """None for a schema that is not just such a condition."""
        match schema:
            case {"if": {"properties": dict(properties), **rest}, **branches} if len(properties) == 1:
                [(name, one)] = properties.items()
            case _:
                return None
        if rest.pop("type", "object") != "object" or rest.pop("required", [name]) != [name] or rest:
            return None
        match one:
            case {"const": value, **others} if others.keys() <= {"type"}:
                values = [value]
            case {"enum": list(values), **others} if others.keys() <= {"type"}:
                pass
            case _:
                return None
        if branches.keys() - {"then", "else"}:
            return None
        needs = "required" in schema["if"]
        return cls(name, values, needs, branches.get("then", True), branches.get("else", True))

    def asks(self, value: Any) -> Any:
        """What the condition asks of an object whose property is `value`."""
        return self.then if any(same(value, one) for one in self.values) else self.otherwise


def _options(name: str, cases: list[_Case], where: str, root: SchemaRoot) -> Iterator[Any]:
    """What all cases together ask for, by the value of the property."""
    values = distinct([value for case in cases for value in case.values])
    by_asked: dict[str, tuple[list[Any], list[Any]]] = {}
    for value in values:
        asked = [case.asks(value) for case in cases]
        by_asked.setdefault(json.dumps(asked), ([], asked))[0].append(value)
    for alike, asked in by_asked.values():
        yield from _option({"properties": {name: {"enum": alike}}, "required": [name]}, asked)
    opposite = negated({"enum": values}, root, where)
    if opposite is None:
        root.unenforceable("if", "the opposite of its values has no words here", where)
        opposite = True
    yield from _option({"properties": {name: opposite}, "required": [name]}, [case.otherwise for case in cases])
    absent = [case.otherwise if case.needs else case.then for case in cases]
    yield from _option({"properties": {name: False}}, absent)


def _option(chosen: dict[str, Any], asked: list[Any]) -> Iterator[Any]:
    if not any(one is False for one in asked):
        yield {**chosen, "allOf": [one for one in asked if one is not True]}
