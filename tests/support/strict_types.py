"""Values against the types of official clients, more strictly than these read them: every field must
be known, and of its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, TypeAdapter


def check_strictly(kind: Any, value: Any, also: Sequence[str] = ()) -> Any:
    """`value`, JSON's types, as `kind`; fails for a wrong type and for a field that `kind` lacks.
    `also` are patterns of paths that it may lack: what the vendor sends and its client does not name.
    """
    parsed = TypeAdapter(kind).validate_python(value)
    unknown = [path for path in _unknown(parsed, "") if not any(fnmatchcase(path, known) for known in also)]
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
