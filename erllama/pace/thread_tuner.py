"""How many threads compute the next token: as many as the cores that others leave.

All threads of a decode meet at a barrier after each operation, so one that has lost its core to
another process lets all of them wait: two threads on two cores beside one busy process make 13
tokens per second where one thread makes 22, and 78 when nobody disturbs.

Which count is best is measured, never guessed. While one count is held, another one computes a few
tokens now and then, and the count changes when that was faster by a margin. Trials that were slower
are paid from a share of the time that decodes take, so that looking costs at most that share. A
decode that takes a good deal longer than usual is a reason to look at once, on credit.

Pure: seconds in, a count out. One thread.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median

TRIAL_SHARE = 0.02  # of the time may be lost to trials that were slower
_SHORTEST, _LONGEST = 4, 33  # decodes of a trial; the first one starts or ends threads and does not count
_RECENT = 32  # decodes that say how fast the held count is
_NOW = 8  # of them, those that say whether that has changed
_DOUBT = 0.3  # of the time, by the root of a trial's decodes: so far may two counts that are alike lie apart
_GAIN = 0.97  # the longest trial must take at most this share of the time
_HOPELESS = 3.0  # a trial that takes so much longer ends at once
_SLOWER = 1.25  # a median beyond this share of the usual one is a reason to look
_MAX_CREDIT, _MAX_DEBT = 16, 8  # in decodes
_DRIFT = 0.02  # how fast the usual time follows a sequence that grows


class ThreadTuner:
    """`count` is for the next decode of tokens; `note` tells what it took."""

    def __init__(self, n_max: int) -> None:
        self._counts = _rungs(n_max)
        self._held = self._counts[-1]
        self._shape = -1
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._usual: float | None = None  # seconds, of the held count
        self._faster = False
        self._credit = 0.0  # seconds that trials may lose
        self._costs: dict[int, float] = {}  # seconds that the last trial of a count lost
        self._to_try: list[int] = []
        self._trial: list[float] = []

    def __repr__(self) -> str:
        return f"<ThreadTuner {self._held} of {self._counts[-1]}>"

    @property
    def held(self) -> int:
        """The count that was the fastest one so far."""
        return self._held

    @property
    def count(self) -> int:
        return self._to_try[0] if self._to_try else self._held

    def note(self, seconds: float, *, n_rows: int) -> None:
        """A decode of `n_rows` tokens with `count` threads took `seconds`."""
        if n_rows.bit_length() != self._shape:  # its times say nothing of the other ones
            self._shape = n_rows.bit_length()
            self._measure_anew(faster=False)
        elif self._to_try:
            self._note_trial(seconds)
        else:
            self._note_held(seconds)

    def _measure_anew(self, *, faster: bool) -> None:
        """What the held count takes is another matter now: `faster`, or slower, or unknown."""
        self._faster = faster
        self._usual = None
        self._recent.clear()
        self._to_try.clear()
        self._trial.clear()

    def _note_held(self, seconds: float) -> None:
        self._recent.append(seconds)
        mean = fmean(self._recent)
        self._credit = min(self._credit + TRIAL_SHARE * seconds, max(_MAX_CREDIT * mean, *self._costs.values(), 0.0))
        if len(self._recent) < _NOW:
            return
        now = median(list(self._recent)[-_NOW:])
        below = [count for count in reversed(self._counts) if count < self._held]
        above = [count for count in self._counts if count > self._held]
        if self._usual is None:
            self._usual = now
            if self._credit > -_MAX_DEBT * mean:
                self._to_try = above if self._faster else below
        elif now > _SLOWER * self._usual or _SLOWER * now < self._usual:
            self._measure_anew(faster=now < self._usual)
        else:
            self._usual += _DRIFT * (now - self._usual)
            self._look_around(above, below, mean)

    def _look_around(self, above: list[int], below: list[int], mean: float) -> None:
        """Nothing has changed for this count, but it may have for another one."""
        if above and self._credit >= self._costs.get(above[0], _SHORTEST * mean):
            self._to_try = above
        elif below and self._credit >= max(_MAX_CREDIT * mean, self._costs.get(below[0], 0.0)):
            self._to_try = below[:1]

    def _note_trial(self, seconds: float) -> None:
        self._trial.append(seconds)
        mean = fmean(self._recent)
        self._credit = max(self._credit - max(0.0, seconds - mean), -_MAX_DEBT * mean)
        counted = self._trial[1:] or [0.0]
        share, doubt = fmean(counted) / max(mean, 1e-9), _DOUBT / math.sqrt(len(counted))
        clear = abs(share - 1) >= doubt and len(self._trial) >= _SHORTEST
        if not clear and share < _HOPELESS and len(self._trial) < _LONGEST:
            return
        tried = self._to_try.pop(0)
        self._costs[tried] = sum(max(0.0, one - mean) for one in self._trial)
        self._trial.clear()
        if share <= _GAIN:
            self._hold(tried, counted)
        elif share > 1 + 2 * doubt:  # further away it is worse
            self._to_try.clear()

    def _hold(self, count: int, seconds: list[float]) -> None:
        """`count` is faster. What is left to try, is tried against it."""
        self._held = count
        self._recent.clear()
        self._recent.extend(seconds)
        self._usual = median(seconds)


def _rungs(n_max: int) -> list[int]:
    """The counts that are tried: all near the most, where one core less is one busy neighbour, and
    a few far from it.
    """
    return sorted({n for n in (n_max, n_max - 1, n_max - 2, n_max * 3 // 4, n_max // 2, n_max // 4, 1) if n > 0})
