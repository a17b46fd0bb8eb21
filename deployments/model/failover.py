"""What becomes of a request whose replica is gone: whether it is tried again, when, and what is
sent then.

Pure: events and errors in, decisions out; the clock (`monotonic_ns`) is passed in and nothing here
waits. One object per call, used by one task or thread.

What the caller has got is never sent again: the next attempt carries the ids delivered so far, and
the seed is fixed before the first attempt, so that another replica draws the tokens that this one
would have drawn. Ids and text leave a replica in one message, so the ids say exactly which text has
arrived.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from deployments.attempt_id import attempt_id
from deployments.config import FailoverPolicy
from erllama.errors import DecodeAborted, ErllamaError, QueueFull
from erllama.events import Done, Event, Failed, Progress, RequestStats, Tokens
from erllama.request import GenerationRequest

Clock = Callable[[], int]

_MAX_BACKOFF_S = 5.0
# decodes of one request: a request that no machine can decode in time must not end one engine after
# the other
_MAX_ABORTED = 2


class Attempts:
    """The tries of one call: at most `max_attempts`, and at most `limits.timeout_s` from a failure
    to the next answer.

    A call that goes on for `limits.timeout_s` after a failover has all its tries again: a stream of
    hours outlives any number of updates, a request that kills its replicas does not kill many.
    `timeout_s` bounds the time to the first answer, over all tries; None does not. `first` is the
    number of the first one: that of a recording that is read again.
    """

    def __init__(
        self,
        limits: FailoverPolicy,
        clock: Clock = time.monotonic_ns,
        *,
        timeout_s: float | None = None,
        first: int = 1,
    ) -> None:
        self.number = first
        self._limits = limits
        self.clock = clock
        # times of the clock: when an answer is due at the latest, and from when on all is well again
        self._due = math.inf if timeout_s is None else clock() + timeout_s * 1e9
        self._recovered_at = math.inf
        self._failing = False
        self._n_failed = 0
        self._n_aborted = 0

    def progressed(self) -> None:
        """The current attempt has answered."""
        self._due = math.inf
        if self._failing:
            self._failing, self._recovered_at = False, self.clock() + self._limits.timeout_s * 1e9

    def failed(self, error: ErllamaError) -> float | None:
        """The current attempt has ended with `error`: seconds to wait before the next one, None
        when the error is final."""
        now = self.clock()
        if not self._failing and now >= self._recovered_at:
            self._n_failed = 0
        # who was let in once has had its turn in the queue: the next replica's queue may be full
        # for the moment
        if not (error.resumable or (self.number > 1 and isinstance(error, QueueFull))):
            return None
        if not self._failing:
            self._failing, self._due = True, min(self._due, now + self._limits.timeout_s * 1e9)
        self._n_failed += 1
        if isinstance(error, DecodeAborted):
            self._n_aborted += 1
            if self._n_aborted >= _MAX_ABORTED:
                return None
        wait_s = (
            0.0 if self._n_failed == 1 else min(_MAX_BACKOFF_S, self._limits.backoff_s * 2.0 ** (self._n_failed - 2))
        )
        if self._n_failed >= self._limits.max_attempts or now + wait_s * 1e9 >= self._due:
            return None
        self.number += 1
        return wait_s

    @property
    def left_s(self) -> float | None:
        """How long the current attempt may take to its next answer; None: as long as it likes."""
        return None if self._due == math.inf else max(0.0, (self._due - self.clock()) / 1e9)


class FailoverCall:
    """One request over all its attempts: what has been delivered, and what to send next."""

    def __init__(self, request: GenerationRequest, attempts: Attempts) -> None:
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        self.attempts = attempts
        self._first = attempts.number
        self._request = request
        self._ids: list[int] = []
        self._delivered: list[Event] = []
        self._started_at = attempts.clock()
        self._first_token_at: int | None = None

    @property
    def request(self) -> GenerationRequest:
        """What the current attempt sends."""
        number = self.attempts.number
        if number == self._first:
            return self._request
        resumed = (*self._request.resumed, *self._ids)
        return replace(
            self._request,
            request_id=attempt_id(self._request.request_id, number),
            resumed=resumed,
            report_progress=self._request.report_progress and not resumed,
            waits_for_others=False,  # who says that it computes this prefix may be the one that hangs
        )

    @property
    def delivered(self) -> tuple[Event, ...]:
        """What earlier attempts gave, for the next replica to keep, if the reply is kept at all."""
        return tuple(self._delivered)

    def take(self, events: list[Event]) -> tuple[list[Event], ErllamaError | None]:
        """Note what a replica has sent: what the caller gets of it, and the error when it ended
        with `Failed`."""
        for event in events:
            if isinstance(event, Tokens):
                self._ids += event.ids
        last = events[-1]
        if isinstance(last, Failed):
            events = events[:-1]
        elif isinstance(last, Done):
            events = [*events[:-1], replace(last, stats=self._whole(last.stats))]
        if self._request.keep_s:
            self._delivered += events
        if any(not isinstance(event, Progress) for event in events):
            self.attempts.progressed()
            if self._first_token_at is None:
                self._first_token_at = self.attempts.clock()
        return events, last.error if isinstance(last, Failed) else None

    def _whole(self, stats: RequestStats) -> RequestStats:
        """The last attempt counts the tokens of the whole reply; its times become those that the
        caller has lived, failovers included."""
        if self.attempts.number == self._first:
            return stats
        now = self.attempts.clock()
        first = now if self._first_token_at is None else self._first_token_at
        return replace(
            stats, queue_ms=0.0, prefill_ms=(first - self._started_at) / 1e6, generation_ms=(now - first) / 1e6
        )
