"""JSON bodies: read into the types of a dialect, and written."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from erllama.errors import InvalidParameter
from erllama.request import MAX_PRIORITY

# `json.dumps` with an option builds an encoder per call (2 us); for a str this bound method is one
# call into C.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

_SURROGATE = re.compile("[\ud800-\udfff]")

B = TypeVar("B", bound=BaseModel)


def _stop(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise ValueError("must be a string or a list of strings")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""JSON's 40.0 is 40, and clients that know one kind of number send it so."""


def _none_below_zero(value: Any) -> Any:
    return max(value, 0) if type(value) is int else value


TopK = Annotated[int, BeforeValidator(_none_below_zero), BeforeValidator(_whole)]
"""How many of the likeliest tokens may be drawn: any number below 1 means all, which is 0 here."""


Priority = Annotated[Whole, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None
"""Who goes first where requests wait: as in vLLM a lower number does. None is the API key's own."""


StopField = Annotated[tuple[str, ...], BeforeValidator(_stop)]
"""Stop strings as OpenAI's bodies have them: one, several, or none (null, or an empty one)."""


def parse_json(kind: type[B], raw: bytes) -> B:
    """The validated body. Raises `InvalidParameter`, whose `param` is the path of the field."""
    try:
        return kind.model_validate_json(raw or b"null")
    except ValidationError as exc:
        raise _surrogate_error(raw) or _as_parameter_error(exc) from None


def parse_value(kind: type[B], value: Any, path: str) -> B:
    """A part of a body that stands at `path`. Raises `InvalidParameter` as `parse_json` does."""
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        raise _as_parameter_error(exc, path) from None


def encode_given(value: Any) -> str:
    """The JSON of what a client sent. Raises `InvalidParameter` for a number that JSON lacks: 1e999 is
    read as one.
    """
    try:
        return encode(value)
    except ValueError:
        raise InvalidParameter("The body holds a number that is not finite.") from None


def _surrogate_error(raw: bytes) -> InvalidParameter | None:
    """The error that names the text with half a character, if that is what is wrong: the parser of
    the body calls it invalid JSON. Python's own takes it.
    """
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return None
    try:
        path = _surrogate_path(json.loads(raw), "")
    except (ValueError, RecursionError):
        return None
    if path is None:
        return None
    return InvalidParameter(f"Invalid value for '{path}': the text holds a lone surrogate.", param=path)


def _surrogate_path(value: Any, path: str) -> str | None:
    """Where the first text with a lone surrogate stands; a key counts as its object."""
    if isinstance(value, str):
        return path if _SURROGATE.search(value) else None
    if isinstance(value, dict):
        if any(_SURROGATE.search(key) for key in value):
            return path
        steps = ((f"{path}.{key}" if path else key, inner) for key, inner in value.items())
    elif isinstance(value, list):
        steps = ((f"{path}[{i}]", inner) for i, inner in enumerate(value))
    else:
        return None
    return next((found for step, inner in steps if (found := _surrogate_path(inner, step)) is not None), None)


def _as_parameter_error(exc: ValidationError, path: str = "") -> InvalidParameter:
    """The first fault of several: clients fix one at a time, and the path of one is unambiguous."""
    fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return InvalidParameter(f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}")
    if not fault["loc"]:
        return InvalidParameter(f"{path or 'The body'} must be a JSON object", param=path or None)
    path = _path(fault["loc"], path)
    if fault["type"] == "missing":
        return InvalidParameter(f"Missing required parameter: '{path}'.", param=path)
    return InvalidParameter(f"Invalid value for '{path}': {message[:1].lower()}{message[1:]}.", param=path)


def _path(loc: tuple[int | str, ...], path: str) -> str:
    """`messages[0].role`, as OpenAI writes it."""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
