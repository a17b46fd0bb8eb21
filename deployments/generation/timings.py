"""What a reply took, and how far its prompt is, as llama.cpp's server tells both. Everything here
was measured: by the engine where it has ended, at the ingress while it is being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from erllama.events import Event, Progress, RequestStats, Tokens


def timings(stats: RequestStats) -> dict[str, Any]:
    """Those of a reply that has ended. The prompt counts without what was cached."""
    ahead = {"draft_n": stats.drafted_tokens, "draft_n_accepted": stats.accepted_tokens} if stats.drafted_tokens else {}
    return ahead | _timings(
        stats.cached_tokens,
        stats.prompt_tokens - stats.cached_tokens,
        stats.prefill_ms,
        stats.completion_tokens,
        stats.generation_ms,
    )


def _timings(cached: int, prompt: int, prompt_ms: float, predicted: int, predicted_ms: float) -> dict[str, Any]:
    """The first token is drawn from the prompt's last logits: the time of generation is that of the
    others.
    """
    return {
        "cache_n": cached,
        **_pace("prompt", prompt, prompt, prompt_ms),
        **_pace("predicted", predicted, predicted - 1, predicted_ms),
    }


def _pace(name: str, n: int, n_timed: int, ms: float) -> dict[str, Any]:
    timed = n_timed > 0 and ms > 0
    return {
        f"{name}_n": n,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / n_timed, 3) if timed else 0.0,
        f"{name}_per_second": round(1e3 * n_timed / ms, 3) if timed else 0.0,
    }


def prompt_progress(event: Progress) -> dict[str, Any]:
    """llama.cpp's four figures, and the tier that the cached tokens came from."""
    return {
        "total": event.total,
        "cache": event.cached,
        "processed": event.processed,
        "time_ms": round(event.elapsed_ms),
        "cache_tier": event.tier,
    }


class RunningTimings:
    """The timings of one reply while it is being made, whose request has to `report_progress`. The
    clock, `monotonic_ns`, tells when tokens arrive.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._prompt: Progress | None = None
        self._n_predicted = 0
        self._first_ns = self._last_ns = 0

    def push(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._prompt = event
        elif isinstance(event, Tokens) and event.ids:
            self._last_ns = self._clock()
            if not self._n_predicted:
                self._first_ns = self._last_ns
            self._n_predicted += len(event.ids)

    def now(self) -> dict[str, Any]:
        """As far as it is known now."""
        cached, processed, prompt_ms = 0, 0, 0.0
        if self._prompt is not None:
            cached, processed, prompt_ms = self._prompt.cached, self._prompt.processed, self._prompt.elapsed_ms
        predicted_ms = (self._last_ns - self._first_ns) / 1e6
        return _timings(cached, processed - cached, prompt_ms, self._n_predicted, predicted_ms)
