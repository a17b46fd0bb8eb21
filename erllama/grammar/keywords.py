"""Readers of single JSON Schema keywords: a value of the right type and range, or a refusal that names the place. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from erllama.errors import InvalidParameter
from erllama.grammar.gbnf import MAX_REPETITIONS

PARAM = "response_format"
MAX_NUMBER = 1e300  # bounds beyond it, infinity and NaN are refused: integers and floats must compare without overflow


def refuse(reason: str, where: str = "") -> NoReturn:
    raise InvalidParameter(f"the JSON schema is refused: {reason}{f' (at {where})' if where else ''}", param=PARAM)


def quantifier(least: int, most: int | None) -> str:
    return f"{{{least},}}" if most is None else f"{{{least},{most}}}"


def item_list(head: str, item: str, least: int, most: int | None) -> str:
    """Items separated by commas: `head` (which may be empty) and `least` to `most` more."""
    if head:
        return f'{head} ( "," ws {item} ){quantifier(least, most)}'
    more = f'( "," ws {item} ){quantifier(max(least - 1, 0), None if most is None else most - 1)}'
    return f"{item} {more}" if least else f"( {item} {more} )?"


def bounds(schema: Mapping[str, Any], least_name: str, most_name: str, where: str) -> tuple[int, int | None]:
    least = number(schema.get(least_name, 0), least_name, where)
    most = number(schema[most_name], most_name, where) if most_name in schema else None
    for name, value in ((least_name, least), (most_name, most)):
        if value is not None and not 0 <= value <= MAX_REPETITIONS:
            refuse(f"{name} must be between 0 and {MAX_REPETITIONS}", where)
    if most is not None and most < least:
        refuse(f"{most_name} is less than {least_name}", where)
    return int(least), None if most is None else int(most)


def limits(schema: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    """The smallest and the largest integer allowed, None for no limit."""
    lows = [number(schema["minimum"], "minimum", where)] if "minimum" in schema else []
    highs = [number(schema["maximum"], "maximum", where)] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(number(schema["exclusiveMinimum"], "exclusiveMinimum", where) // 1 + 1)
    if "exclusiveMaximum" in schema:
        highs.append(-(-number(schema["exclusiveMaximum"], "exclusiveMaximum", where) // 1) - 1)
    return (-(-max(lows) // 1) if lows else None), (min(highs) // 1 if highs else None)


def number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        refuse(f"{name} must be a number", where)
    return value


def mapping(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        refuse(f"{name} must be an object", where)
    return value


def strings(value: Any, name: str, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        refuse(f"{name} must be a list of strings", where)
    return value


def common_types(left: Any, right: Any, where: str) -> list[Any]:
    lefts, rights = (list(kind) if isinstance(kind, list) else [kind] for kind in (left, right))
    common = [kind for kind in lefts if kind in rights]
    if "integer" not in common and {"integer", "number"} <= {*map(str, lefts), *map(str, rights)}:
        common.append("integer")  # an integer is a number
    if not common:
        refuse(f"types {left!r} and {right!r} have nothing in common", where)
    return common


def type_names(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case None:
            return {"null"}
        case list():
            return {"array"}
        case _:
            return {"object"}
