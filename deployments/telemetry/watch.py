"""Watches the HTTP requests of one ingress: their log lines, what is counted of them, their spans.

One event loop. Nothing that goes wrong here reaches a request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from deployments.telemetry.access_log import FIELDS, as_text, request_fields, trace_id
from deployments.telemetry.facts import RequestFacts
from deployments.telemetry.recorder import PrometheusRecorder, Recorder
from deployments.telemetry.request_metrics import record_request
from deployments.telemetry.slow import SlowLimits, SlowReason, slow_reason

logger = logging.getLogger("deployments.http")


class Spans(Protocol):
    """Where requests become spans."""

    def record(self, facts: RequestFacts, slow: SlowReason | None) -> str:
        """A request that has ended; the id of its trace, "" where none is kept."""

    def close(self) -> None:
        """Send what is left. Blocks, for seconds where nobody answers. Idempotent."""


class RequestWatch:
    """`begin` and `end` are called once for each request, in this order."""

    def __init__(
        self, recorder: Recorder | None = None, limits: SlowLimits | None = None, spans: Spans | None = None
    ) -> None:
        self._recorder = recorder or PrometheusRecorder()
        self._limits = limits or SlowLimits()
        self._spans = spans
        self._n_open = 0

    def begin(self) -> None:
        """A request has come."""
        self._n_open += 1
        self._count_open()

    def end(self, facts: RequestFacts, status: int) -> None:
        """It was answered with `status`."""
        self._n_open -= 1
        self._count_open()
        facts.end(status)
        slow = slow_reason(facts, self._limits)
        with self._costs_nothing(facts):
            record_request(self._recorder, facts, slow)
        trace = trace_id(facts.traceparent)
        if self._spans is not None:
            with self._costs_nothing(facts):
                trace = self._spans.record(facts, slow) or trace
        fields = request_fields(facts, slow, trace)
        logger.info("%s", as_text(fields), extra={FIELDS: fields})

    def _count_open(self) -> None:
        with self._costs_nothing():
            self._recorder.set("erllama_requests_open", self._n_open)

    @contextmanager
    def _costs_nothing(self, facts: RequestFacts | None = None) -> Iterator[None]:
        """Whoever gathers numbers may be gone: that costs numbers, and no request."""
        try:
            yield
        except Exception:
            request_id = "-" if facts is None else facts.request_id
            logger.exception("event=request_not_counted request_id=%s", request_id)
