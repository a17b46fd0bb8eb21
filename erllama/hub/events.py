"""What a pull tells while it runs, in the words of Ollama's pull, so that its clients show it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

PULLING_MANIFEST = "pulling manifest"
VERIFYING = "verifying sha256 digest"
WRITING_MANIFEST = "writing manifest"
SUCCESS = "success"
_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class PullEvent:
    """One step, or the progress of one file: `completed` of `total` bytes at `rate` bytes per
    second. `digest` is "sha256:<hex>", or "" where it is not known yet. `eta_s` is None as long as
    nothing can be said.
    """

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0
    rate: float = 0.0
    eta_s: float | None = None


class Pace:
    """The events of one file. The rate is that of the last ten seconds; bytes of an earlier pull
    do not count.
    """

    def __init__(self, label: str, digest: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._status = f"pulling {label}"
        self._digest = digest
        self._total = total
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def event(self, completed: int) -> PullEvent:
        now = self._clock()
        if self._seen and completed < self._seen[-1][1]:
            self._seen.clear()  # it began anew
        self._seen.append((now, completed))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (completed - before) / (now - since) if now > since else 0.0
        eta_s = (self._total - completed) / rate if rate > 0 else None
        return PullEvent(self._status, self._digest, self._total, completed, rate, eta_s)
