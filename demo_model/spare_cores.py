"""How many cores are left for this process, from /proc/stat.

Two threads that meet at a barrier run at the pace of the slower one. When another process keeps one
of two cores busy, a niced trainer with two threads does a tenth of its work, one thread half of it:
so the trainer asks here before each step.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
# A core counts as free while others use less than this of it: below, the second thread still pays.
_TOLERANCE = 0.2


class SpareCores:
    """`count()` is the number of cores that others left free since the previous call, at least
    one.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._previous = self._reading()

    def count(self) -> int:
        now = self._reading()
        elapsed = now[0] - self._previous[0]
        if elapsed < 0.2:
            return self._maximum
        busy_cores = (now[1] - self._previous[1]) / elapsed
        self._previous = now
        return max(1, min(self._maximum, int((os.cpu_count() or 1) - busy_cores + _TOLERANCE)))

    @staticmethod
    def _reading() -> tuple[float, float]:
        """(clock, CPU seconds used by all other processes since boot)."""
        user, nice, system = (int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:4])
        return time.monotonic(), (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()
