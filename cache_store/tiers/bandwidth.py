"""How fast a tier is: latency and bandwidth, learnt from its own reads.

Seconds of a read are taken as latency + bytes / bandwidth; both come from a least-squares line
through past reads in which every new read makes the older ones count 5 % less. A guess stands in as
two reads until there are real ones.

Several reads at once take longer each and less together: what a series takes, over the sum of what
each of its reads took, is learnt as well (`overlap`, 1 for one after the other). Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

_DECAY = 0.95  # a tier that becomes slow is seen as slow after about 20 reads
_GUESS_BYTES = 4 << 20
_SERIES_WEIGHT = 0.25
_LEAST_OVERLAP = 1 / 64


class Bandwidth:
    """`latency_s`, `bytes_per_s` and `overlap` are the guess to start from."""

    def __init__(self, latency_s: float, bytes_per_s: float, overlap: float = 1.0) -> None:
        self.overlap = overlap
        self._lock = threading.Lock()
        # decayed sums over reads: 1, bytes, seconds, bytes^2, bytes * seconds
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._add(0.0, latency_s)
        self._add(float(_GUESS_BYTES), latency_s + _GUESS_BYTES / bytes_per_s)

    def observe(self, n_bytes: int, seconds: float) -> None:
        with self._lock:
            self._add(float(n_bytes), max(seconds, 0.0))

    def estimate_s(self, n_bytes: int) -> float:
        latency_s, s_per_byte = self._line()
        return latency_s + n_bytes * s_per_byte

    def observe_series(self, wall_s: float, reads_s: float) -> None:
        """Several reads took `wall_s` altogether, and `reads_s` if what each took is added up."""
        if reads_s > 0.0:
            share = min(1.0, max(_LEAST_OVERLAP, wall_s / reads_s))
            with self._lock:
                self.overlap += _SERIES_WEIGHT * (share - self.overlap)

    def series_s(self, sizes: Sequence[int]) -> float:
        """How long reading objects of these sizes takes, as a restore does it."""
        seconds = sum(map(self.estimate_s, sizes))
        return seconds if len(sizes) < 2 else seconds * self.overlap

    @property
    def bytes_per_s(self) -> float:
        return 1.0 / self._line()[1]

    @property
    def latency_s(self) -> float:
        return self._line()[0]

    def _add(self, x: float, y: float) -> None:
        self._n, self._x, self._y = self._n * _DECAY + 1.0, self._x * _DECAY + x, self._y * _DECAY + y
        self._xx, self._xy = self._xx * _DECAY + x * x, self._xy * _DECAY + x * y

    def _line(self) -> tuple[float, float]:
        """(seconds per object, seconds per byte), neither negative: a line that noise tilted the
        wrong way goes through the origin.
        """
        with self._lock:
            n, x, y, xx, xy = self._n, self._x, self._y, self._xx, self._xy
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 1e-9 * n * xx else 0.0
        latency = (y - slope * x) / n
        if slope <= 0.0 or latency < 0.0:
            latency, slope = 0.0, y / x if x > 0.0 else 0.0
        return latency, max(slope, 1e-12)
