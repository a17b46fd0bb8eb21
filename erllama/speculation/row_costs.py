"""What a decode of several rows for each sequence costs beside one of a single row: measured, for each
number of sequences. Pure.
"""

from __future__ import annotations

_FIRST_GUESS = 0.35  # of a single row's time for each further row; on CPUs 0.1 (large models) to 1 (long contexts)
_WEIGHT = 0.2  # of a new measurement
_OUTLIER = 2.5  # a machine that others use, too, pauses: nothing counts as more than so many times what was expected
_DOUBT = 0.01  # with each other measurement, what was once measured counts so much less


class RowCosts:
    """Engine thread only; times in seconds."""

    def __init__(self) -> None:
        self._single_s: dict[int, float] = {}
        self._ratios: dict[int, dict[int, float]] = {}

    def ratio(self, n_sequences: int, n_rows: int) -> float:
        """The time of `n_rows` for each of `n_sequences` over that of one row each."""
        if n_rows == 1:
            return 1.0
        measured = self._ratios.get(n_sequences, {})
        if n_rows in measured:
            return measured[n_rows]
        return self._guess(measured, n_rows)

    def note(self, n_sequences: int, n_rows: int, seconds: float) -> None:
        """A decode took so long."""
        single = self._single_s.get(n_sequences)
        if n_rows == 1:
            bounded = seconds if single is None else min(seconds, single * _OUTLIER)
            self._single_s[n_sequences] = bounded if single is None else single + _WEIGHT * (bounded - single)
            return
        if not single:
            return
        measured = self._ratios.setdefault(n_sequences, {})
        expected = self.ratio(n_sequences, n_rows)
        for other in measured:
            if other != n_rows:
                measured[other] += _DOUBT * (self._guess({}, other) - measured[other])
        sample = min(seconds / single, expected * _OUTLIER)
        measured[n_rows] = expected + _WEIGHT * (sample - expected)

    def _guess(self, measured: dict[int, float], n_rows: int) -> float:
        """As steep as up to the nearest smaller number of rows that was measured."""
        nearest = max((n for n in measured if n < n_rows), default=1)
        slope = (measured[nearest] - 1.0) / (nearest - 1) if nearest > 1 else _FIRST_GUESS
        return measured.get(nearest, 1.0) + max(slope, 0.0) * (n_rows - nearest)
