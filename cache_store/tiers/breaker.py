"""A circuit breaker: when to leave a failing tier alone. Pure; the caller locks and brings the
time.

CLOSED: calls go through. After `THRESHOLD` failures in a row it opens for `FIRST_S`, and everyone
skips the tier. After that time calls go through again; the next failure opens it for twice as long
(up to `LONGEST_S`), the next success closes it.
"""

from __future__ import annotations

THRESHOLD = 3  # one failure is noise; three in a row is a file system that is gone
FIRST_S = 1.0
LONGEST_S = 60.0  # a tier that comes back is used again within a minute


class Breaker:
    def __init__(self) -> None:
        self._failures = 0
        self._open_s = 0.0
        self._until_ns = 0

    def allows(self, now_ns: int) -> bool:
        return now_ns >= self._until_ns

    def succeeded(self) -> None:
        self._failures, self._open_s, self._until_ns = 0, 0.0, 0

    def failed(self, now_ns: int) -> None:
        self._failures += 1
        if self._failures >= THRESHOLD:
            self._open_s = min(LONGEST_S, 2 * self._open_s or FIRST_S)
            self._until_ns = now_ns + int(self._open_s * 1e9)
