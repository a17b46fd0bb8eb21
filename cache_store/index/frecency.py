"""What an object is worth keeping: hits and recency in one float. Pure.

An object's worth at time t is its number of hits, each halved every six hours:

    worth(t) = sum over hits i of 2 ** ((t_i - t) / HALF_LIFE_S)

All worths shrink by the same factor, so their order does not depend on t. What is kept is the part
without it, as a logarithm:

    score = log2(sum over hits i of 2 ** (t_i / HALF_LIFE_S))        worth(t) = 2 ** (score - t / HALF_LIFE_S)

It changes at a hit only, and only upwards: no pass over all objects ever ages them, and a heap
ordered by it needs repair at hits alone. The policy is LRFU's "combined recency and frequency" (Lee
et al., IEEE Transactions on Computers 50(12), 2001); writing the decay relative to a landmark
instead of to now is "forward decay" (Cormode et al., ICDE 2009). The half-life is the design's:
long enough that this morning's conversations outlive lunch, short enough that yesterday's do not
crowd out today's.

A fresh object counts as one hit. Times are seconds on one scale; `SteadyTime` makes one out of a
clock that jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_S = 6 * 3600.0

_SANE_S = 1e12  # 30 000 years: a moment beyond it is no reading of a clock, and sums of such ones would overflow


def score_of(n_uses: int, used_s: float) -> float:
    """The score of `n_uses` (at least 1) uses at the moment `used_s`."""
    return math.log2(n_uses) + used_s / HALF_LIFE_S


def after_use(score: float, used_s: float, n_uses: int = 1) -> float:
    """The score after `n_uses` more at `used_s`: never less than before, never more than a
    half-life above the larger of both.
    """
    fresh = score_of(n_uses, used_s)
    return max(score, fresh) + math.log1p(2.0 ** -abs(score - fresh)) / math.log(2)


def mean_use_s(n_uses: int, score: float) -> float:
    """The moment at which `n_uses` uses at once would have this score: of one use its time, of many
    never later than the last.
    """
    return (score - math.log2(n_uses)) * HALF_LIFE_S


def scores_of(n_uses: NDArray[np.uint64], used_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """`score_of` each."""
    scores: NDArray[np.float64] = np.log2(n_uses.astype(np.float64)) + used_s / HALF_LIFE_S
    return scores


def mean_uses_s(n_uses: NDArray[np.uint64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """`mean_use_s` of each."""
    moments: NDArray[np.float64] = (scores - np.log2(n_uses.astype(np.float64))) * HALF_LIFE_S
    return moments


def from_unix(unix_s: NDArray[np.float64], now_s: float, lead_s: float) -> NDArray[np.float64]:
    """`SteadyTime.from_unix` of each, where that time is `now_s` and leads by `lead_s`."""
    moments = unix_s + lead_s
    return np.where((moments < now_s) & (np.abs(unix_s) < _SANE_S), moments, now_s)


def worth(score: float, now_s: float) -> float:
    """The number of uses, each halved every half-life: 1.0 for an object added just now."""
    return float(2.0 ** min(score - now_s / HALF_LIFE_S, 1000.0))


class SteadyTime:
    """Seconds that start at the clock's first reading, pass as its readings grow and stand still
    where it jumps back.

    So whatever is used later scores higher. When the clock was a year ahead for a while, what was
    used then has no year's lead afterwards. Not thread-safe.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        first = clock()
        self._reading_s = self._now_s = first if abs(first) < _SANE_S else 0.0

    def now(self) -> float:
        """Never less than before. A reading that makes no sense is ignored."""
        reading = self._clock()
        if abs(reading) < _SANE_S:
            self._now_s += max(0.0, reading - self._reading_s)
            self._reading_s = reading
        return self._now_s

    def lead_s(self) -> float:
        """This time minus the clock's as of the last `now`: to subtract from what others get."""
        return self._now_s - self._reading_s

    def from_unix(self, unix_s: float) -> float:
        """What the clock's scale calls `unix_s`; now for what lies in its future, or nowhere."""
        now = self.now()
        moment = unix_s + self.lead_s()
        return moment if moment < now and abs(unix_s) < _SANE_S else now
