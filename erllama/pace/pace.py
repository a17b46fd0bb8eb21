"""How many prompt tokens the next slice has, how many tokens streams get between two slices, and
with how many threads: from what the last decodes took.

Engine thread only. Policy without a clock: the engine tells what each decode took. A decode that
fails tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from erllama.backend.base import Backend
from erllama.backend.batch_plan import BatchLimits, BatchPlan
from erllama.config import MAX_UBATCH, EngineConfig
from erllama.pace.thread_tuner import ThreadTuner
from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence

_ALONE_S = 1.0  # a newcomer is not admitted before a slice has ended
_MAX_TOKENS_PER_SLICE = 16
_NEW_SHARE = 0.5  # of a new measurement in a mean
_FIRST_DEPTH = 256  # tokens; the depths below it are one group, and each doubling above is another


class SliceCost:
    """What a token of a prompt costs, in seconds, by the depth at which it is computed.

    Attention over what lies before makes deep tokens dearer, so there is a mean for each doubling of
    the depth. Where nothing was measured yet, the nearest shallower depth stands for it, else the
    nearest deeper one.
    """

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def note(self, depth: int, n_tokens: int, seconds: float) -> None:
        """A slice of `n_tokens` behind `depth` others took `seconds`."""
        group, cost = _depth_group(depth), seconds / n_tokens
        mean = self._means.get(group)
        self._means[group] = cost if mean is None else mean + _NEW_SHARE * (cost - mean)

    def at(self, depth: int) -> float | None:
        """None before anything was measured."""
        if not self._means:
            return None
        group = _depth_group(depth)
        below = [known for known in self._means if known <= group]
        return self._means[max(below) if below else min(self._means)]


def _depth_group(depth: int) -> int:
    return (depth // _FIRST_DEPTH).bit_length()


class Pace:
    """Between two decodes: `limits`, then `begin` with the plan made by them, then `note`."""

    def __init__(self, backend: Backend, config: EngineConfig) -> None:
        self._backend = backend
        self._config = config
        self._adapts_slices = config.prefill_slice == "auto" and not config.deterministic
        self._pause_s = config.max_pause_ms / 1e3
        self._slice_cost = SliceCost()
        self._tokens_s: float | None = None  # what a decode of streams' tokens takes
        self._slice_s: float | None = None  # what the last slice took
        self._threads = ThreadTuner(backend.n_threads) if backend.adapts_threads else None

    def limits(self, running: Iterable[Sequence]) -> BatchLimits:
        """For the next plan over `running`."""
        config = self._config
        if not self._adapts_slices:
            return BatchLimits(config.n_batch, config.fixed_slice, solo=config.deterministic)
        unit = self._backend.slice_unit
        depths = [s.n_kv for s in running if s.state is State.PREFILLING]
        if not depths:
            return BatchLimits(config.n_batch, config.fixed_slice, slice_unit=unit)
        beside = any(s.state is State.GENERATING for s in running)
        length = self._slice_tokens(max(depths), unit, beside=beside) if unit else config.fixed_slice
        return BatchLimits(
            config.n_batch, length, slice_unit=unit, tokens_per_slice=self._tokens_per_slice() if beside else 1
        )

    def _slice_tokens(self, depth: int, unit: int, *, beside: bool) -> int:
        """As many as the time allows, in whole units; before anything was measured, one unit beside
        streams.
        """
        most = min(self._config.n_batch, MAX_UBATCH)
        allowed_s = self._pause_s if beside and self._pause_s else _ALONE_S
        cost = self._slice_cost.at(depth)
        if cost is None:
            return unit if beside else min(most, self._config.fixed_slice)
        n_tokens = int(min(most, allowed_s / max(cost, 1e-9)))
        return max(unit, n_tokens - n_tokens % unit)

    def _tokens_per_slice(self) -> int:
        """More than one where the last slice was longer than the pause wanted, as long as slices keep
        half of the time.
        """
        if not self._pause_s or self._slice_s is None or self._tokens_s is None:
            return 1
        wanted = math.ceil(self._slice_s / self._pause_s)
        fair = int(self._slice_s / max(self._tokens_s, 1e-9))
        return max(1, min(wanted, fair, _MAX_TOKENS_PER_SLICE))

    def begin(self, plan: BatchPlan) -> None:
        """The backend gets the threads for `plan`, which is decoded next."""
        if self._threads is not None:
            slices = _is_slice(plan)
            count = self._threads.count if _is_plain(plan) else self._threads.held
            self._backend.set_threads(self._backend.n_threads if slices else count)

    def note(self, plan: BatchPlan, seconds: float) -> None:
        """The decode of `plan` took `seconds` and did not fail."""
        if _is_slice(plan):
            (row,) = plan.rows
            self._slice_cost.note(row.start, row.n_tokens, seconds)
            self._slice_s = seconds
            return
        mean = self._tokens_s
        self._tokens_s = seconds if mean is None else mean + _NEW_SHARE * (seconds - mean)
        if self._threads is not None and _is_plain(plan):  # drafts come and go, and say nothing of the cores
            self._threads.note(seconds, n_rows=plan.n_tokens)


def _is_plain(plan: BatchPlan) -> bool:
    return plan.n_tokens == len(plan.rows)


def _is_slice(plan: BatchPlan) -> bool:
    return plan.rows[0].sequence.state is State.PREFILLING
