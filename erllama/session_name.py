"""The names of sessions among those of all salts. Pure."""

from __future__ import annotations

from erllama.errors import InvalidParameter, check_type

MAX_SESSION_CHARS = 256
MAX_SALT_CHARS = 256


def check_session_id(name: str, session_id: str) -> None:
    """Raise `InvalidParameter`, which names the field `name`, for what cannot name a session."""
    check_type(name, session_id, str, "a string")
    if not 1 <= len(session_id) <= MAX_SESSION_CHARS:
        raise InvalidParameter(
            f"{name} must have 1 to {MAX_SESSION_CHARS} characters, got {len(session_id)}", param=name
        )
    if "\0" in session_id:
        raise InvalidParameter(f"{name} must not hold a NUL character", param=name)


def session_name(session_id: str, salt: str, param: str = "session_id") -> str:
    """A session among those of all salts. Raises `InvalidParameter`, which names the field `param`, for
    what cannot name one: it might read as one of another salt.
    """
    check_session_id(param, session_id)
    check_salt(salt)
    return f"{salt}\0{session_id}" if salt else session_id


def shown_session(name: str) -> str:
    """The id that a client gave: a salt is nobody's business."""
    return name.rpartition("\0")[2]


def check_salt(salt: str, param: str = "salt") -> None:
    """Raise `InvalidParameter`, which names the field `param`, for what cannot be a salt."""
    check_type(param, salt, str, "a string")
    if len(salt) > MAX_SALT_CHARS or "\0" in salt:
        raise InvalidParameter(f"{param} must have at most {MAX_SALT_CHARS} characters, none of them NUL", param=param)
