"""How much one key may ask for in a minute: token buckets of requests and of tokens.

A bucket holds a minute's worth and fills evenly. A request is admitted while there is one request
left and any token; what it costs in tokens is only known later, is charged then, and may overdraw
the bucket: who comes next waits until that is made up for. Counted in this process: with several
ingress replicas a key has its limits at each of them.

Pure but for the clock (monotonic, nanoseconds), and used on one event loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from erllama.errors import RequestError

_MINUTE_S = 60.0
_NEARLY = 1e-6

Clock = Callable[[], int]


class RateLimited(RequestError):
    """A key has used up its limit; `retry_after_s` says when the next request may come."""

    http_status = 429
    code = "rate_limit_exceeded"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a key stands with one of its limits: `remaining` of `limit` now, all of them again after
    `reset_s` seconds. `what` is requests or tokens.
    """

    what: str
    limit: int
    remaining: int
    reset_s: float


class TokenBucket:
    """Holds `per_minute` at most, and is full at first."""

    def __init__(self, what: str, per_minute: int, clock: Clock) -> None:
        self.what = what
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at_ns = clock()

    def take(self, amount: float) -> None:
        """May leave less than nothing."""
        self._level = self._now() - amount

    def wait_s(self, amount: float) -> float:
        """Seconds until there is `amount`, 0.0 if there is, or nearly: sums of floats are not exact."""
        missing = amount - self._now()
        return missing * _MINUTE_S / self.per_minute if missing > _NEARLY else 0.0

    @property
    def standing(self) -> Standing:
        level = self._now()
        reset_s = (self.per_minute - level) * _MINUTE_S / self.per_minute
        return Standing(self.what, self.per_minute, max(0, math.floor(level)), reset_s)

    def _now(self) -> float:
        now = self._clock()
        filled = self._level + (now - self._at_ns) / 1e9 * self.per_minute / _MINUTE_S
        self._level, self._at_ns = min(float(self.per_minute), filled), now
        return self._level


class RateLimit:
    """The limits of one key; None is no limit."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._requests = None if requests_per_minute is None else TokenBucket("requests", requests_per_minute, clock)
        self._tokens = None if tokens_per_minute is None else TokenBucket("tokens", tokens_per_minute, clock)

    def admit(self) -> None:
        """Count a request. Raises `RateLimited`, and then counts none."""
        for bucket in (self._requests, self._tokens):
            wait_s = 0.0 if bucket is None else bucket.wait_s(1)
            if bucket is not None and wait_s > 0:
                wait_s = math.ceil(wait_s * 10) / 10  # rounded up, or who waits so long comes too early
                raise RateLimited(
                    f"Rate limit reached: this API key may use {bucket.per_minute} {bucket.what} per minute. "
                    f"Please try again in {wait_s:.1f}s.",
                    retry_after_s=math.ceil(wait_s),
                )
        if self._requests is not None:
            self._requests.take(1)

    def charge(self, n_tokens: int) -> None:
        """Count tokens of a prompt or a reply."""
        if self._tokens is not None:
            self._tokens.take(n_tokens)

    @property
    def counts_tokens(self) -> bool:
        return self._tokens is not None

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Of each limit that there is."""
        return tuple(bucket.standing for bucket in (self._requests, self._tokens) if bucket is not None)
