"""Bounds of numbers, lengths and counts as llguidance takes them: it reads them as doubles, and
writes ranges of integers of 64 bits.

A bound that it cannot read becomes the next one inside, so that what it admits fits the schema.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from erllama.grammar.json_schema.root import SchemaRoot, refuse

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
MAX_COUNT = 2**31  # no reply is as long
MAX_MULTIPLE = 10_000  # of `multipleOf`, as an integer of its smallest unit: compiling takes 25 us for each
_DECIMALS = 30
_NEARLY = 1e-9
_LARGEST = 2**63 - 1024  # the largest double that is an integer of 64 bits
_MOST = Fraction(math.nextafter(math.inf, 0))  # that a double holds


def plain_numbers(schema: dict[str, Any], where: str, root: SchemaRoot) -> None:
    """Put the bounds of `schema` in the terms of llguidance, in place. Raises `RefusedText`."""
    for name in COUNTS:
        if name in schema:
            schema[name] = _count(name, schema[name], where)
            if name.startswith("max") and schema[name] == MAX_COUNT:
                del schema[name]
    for lower in (True, False):
        _plain_bound(schema, where, root, lower=lower)
    _open_ends(schema)
    if "multipleOf" in schema:
        _check_multiple(schema, where, root)
    for value in (schema.get("const"), *(schema["enum"] if isinstance(schema.get("enum"), list) else ())):
        if type(value) is int and abs(value) > 2**53 and not _is_double(value):
            root.unenforceable("enum" if "enum" in schema else "const", f"{value} is no double", where)


def number(value: Any) -> Fraction | None:
    """The value of a JSON number as it is written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return Fraction(value)
    return Fraction(repr(value)) if math.isfinite(value) else None


def _is_double(value: int) -> bool:
    return abs(value) <= _MOST and int(float(value)) == value


def _count(name: str, value: Any, where: str) -> int:
    exact = number(value)
    if exact is None or exact < 0 or exact.denominator != 1:
        refuse(f"{name} must be a whole number that is not negative, got {value!r:.40}", where)
    return min(int(exact), MAX_COUNT)


def _plain_bound(schema: dict[str, Any], where: str, root: SchemaRoot, *, lower: bool) -> None:
    """Replace both bounds of one side by one of them. Mirrored, an upper bound is a lower one."""
    plain, exclusive = RANGES[0 if lower else 1], RANGES[2 if lower else 3]
    sign = 1 if lower else -1
    bounds: list[tuple[Fraction, bool]] = []
    if exclusive in schema and isinstance(schema[exclusive], bool):  # draft 4
        strictly = schema.pop(exclusive)
        bounds += [(sign * _bound(schema[plain], plain, where), True)] if strictly and plain in schema else []
    bounds += [
        (sign * _bound(schema.pop(name), name, where), name == exclusive)
        for name in (plain, exclusive)
        if name in schema
    ]
    if not bounds:
        return
    bound, excluded = max(bounds)
    inside, excluded = _inside(bound, excluded)
    if inside > _LARGEST:
        root.unenforceable(plain, "numbers beyond 64 bits have no ranges", where)
    elif bound > -_MOST:
        schema[exclusive if excluded else plain] = _written(sign * max(inside, Fraction(-_LARGEST)))


def _open_ends(schema: dict[str, Any]) -> None:
    """llguidance forgets that an integer is excluded when the other bound has the same digits before
    the point. The next number inside, nearly, is not forgotten.
    """
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None or high is None or not 0 < high - low < 1:
        return
    inwards = min(_NEARLY, (high - low) / 2)
    if "exclusiveMinimum" in schema:
        schema["minimum"] = schema.pop("exclusiveMinimum") + inwards
    if "exclusiveMaximum" in schema:
        schema["maximum"] = schema.pop("exclusiveMaximum") - inwards


def _bound(value: Any, name: str, where: str) -> Fraction:
    exact = number(value)
    if exact is None:
        refuse(f"{name} must be a number, got {value!r:.40}", where)
    return exact


def _inside(bound: Fraction, excluded: bool) -> tuple[Fraction, bool]:
    """The least number not below `bound` that llguidance reads as it is, and whether it is itself
    excluded.
    """
    if abs(bound) > _LARGEST:
        return bound, excluded
    inside = Fraction(math.ceil(bound * 10**_DECIMALS), 10**_DECIMALS)
    double = float(inside)
    if Fraction(repr(double)) < inside or (excluded and abs(double) >= 2**53):
        double = math.nextafter(double, math.inf)
    inside = Fraction(repr(double))
    return inside, excluded and inside == bound


def _written(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def _check_multiple(schema: dict[str, Any], where: str, root: SchemaRoot) -> None:
    step = number(schema["multipleOf"])
    if step is None or step <= 0:
        refuse(f"multipleOf must be a number above 0, got {schema['multipleOf']!r:.40}", where)
    units = next((step * 10**n for n in range(7) if (step * 10**n).denominator == 1), None)
    if units is None or units > MAX_MULTIPLE:
        root.unenforceable("multipleOf", f"steps have at most 6 decimals, and {MAX_MULTIPLE} units of the last", where)
        del schema["multipleOf"]
