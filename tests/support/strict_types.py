"""Values against the types of official clients, more strictly than these read them: every field must
be known, and of its type.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter


def check_strictly(kind: Any, value: Any) -> Any:
    """`value`, JSON's types, as `kind`; fails for a wrong type and for a field that `kind` lacks."""
    parsed = TypeAdapter(kind).validate_python(value)
    unknown = sorted(_unknown(parsed, ""))
    assert not unknown, f"fields that {type(parsed).__name__} does not have: {unknown}"
    return parsed


def _unknown(value: Any, path: str) -> Any:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _unknown(one, f"{path}[{number}]")
