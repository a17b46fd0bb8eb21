"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, but slower, or not for all
    FAIL = "fail"  # does not start, or breaks when it is used


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names the subject; `what` is the fact, `why` says what comes of it, `todo` what to do.
    The last two are empty where all is well.
    """

    level: Level
    check: str
    what: str
    why: str = ""
    todo: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(Level.OK, check, what)


def warn(check: str, what: str, why: str, todo: str) -> Finding:
    return Finding(Level.WARN, check, what, why, todo)


def fail(check: str, what: str, why: str, todo: str) -> Finding:
    return Finding(Level.FAIL, check, what, why, todo)


def gib(n_bytes: float) -> str:
    """Bytes for people; below a GiB in MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
