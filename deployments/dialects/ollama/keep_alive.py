"""`keep_alive`: for how long a model stays in memory. A duration as Go writes it ("5m", "1h30m"), a number
of seconds, or less than nothing for ever.
"""

from __future__ import annotations

import math
import re

from erllama.errors import InvalidParameter

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def keep_alive_s(given: float | str) -> float | None:
    """Seconds; None for ever. Raises `InvalidParameter`."""
    if isinstance(given, str):
        text = given.strip()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif _WHOLE.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
            seconds = -seconds if text.startswith("-") else seconds
        else:
            raise _wrong(given)
    else:
        seconds = float(given)
    if math.isnan(seconds):
        raise _wrong(given)
    return None if seconds < 0 or math.isinf(seconds) else seconds


def _wrong(given: object) -> InvalidParameter:
    return InvalidParameter(
        f"keep_alive must be a number of seconds or a duration as text, such as 5m or -1, got {given!r:.60}",
        param="keep_alive",
    )
