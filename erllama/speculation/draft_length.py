"""How many rows the sequences of a decode get. Pure policy.

All sequences get the same number: with a KV stream per sequence llama.cpp computes those with
different numbers of rows in passes of their own, each over all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LENGTHS = (1, 2, 4, 8, 12, 16)
"""Rows of a sequence: few, so that each is measured often, and multiples of 4, which llama.cpp's kernels
compute at once (on the 0.5B shape in Q4_0, 4 rows take less time than 3)."""
_GAIN = 1.03  # must be expected at least: estimates are wrong now and then


class Costs(Protocol):
    def ratio(self, n_sequences: int, n_rows: int) -> float: ...


def choose_rows(expected: Sequence[Sequence[float]], costs: Costs, n_most: int) -> int:
    """Rows for each sequence, at most `n_most`: those that give most tokens per time.

    `expected[s][i]` is how many tokens of sequence `s` come as proposed if i + 1 of them are computed
    ahead; a shorter list ends where there is nothing more to propose. 1: nothing is computed ahead.
    """
    n = len(expected)
    longest = 1 + max(map(len, expected), default=0)
    best, best_speed = 1, float(n) * _GAIN
    for n_rows in LENGTHS[1:]:
        if n_rows > n_most or _shorter(n_rows) >= longest:
            break
        tokens = n + sum(each[min(n_rows - 1, len(each)) - 1] for each in expected if each)
        speed = tokens / costs.ratio(n, n_rows)
        if speed > best_speed:
            best, best_speed = n_rows, speed
    return best


def _shorter(n_rows: int) -> int:
    """The next shorter length."""
    return LENGTHS[LENGTHS.index(n_rows) - 1]
