"""The ids of the attempts of one request. An engine knows each attempt by its own id; callers know
the request's."""

from __future__ import annotations

_SEPARATOR = "~r"


def attempt_id(request_id: str, number: int) -> str:
    """The engine's id of an attempt: the replica that lost the caller may still run an earlier
    one."""
    return request_id if number == 1 else f"{request_id}{_SEPARATOR}{number}"


def is_attempt_of(engine_id: str, request_id: str) -> bool:
    """Whether the engine's id is one of the attempts of a request."""
    return request_id in (engine_id, split_attempt(engine_id)[0])


def split_attempt(engine_id: str) -> tuple[str, int]:
    """The request's id and the number of the attempt that an engine's id stands for."""
    base, separator, number = engine_id.rpartition(_SEPARATOR)
    return (base, int(number)) if separator and number.isdecimal() else (engine_id, 1)
