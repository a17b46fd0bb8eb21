"""The events of an engine on their way out: gathered over a step or more, handed over together. Engine thread only.

What begins or ends a reply is due at once. Other tokens may gather for an interval: each hand-over wakes half a dozen threads on the way to
the client, and each of them takes a core from the decode that is running.
"""

from __future__ import annotations

from collections.abc import Callable

from erllama.request import Event

Deliver = Callable[[list[tuple[str, Event]]], None]


class Outbox:
    """Hands events to `deliver` as (request id, event), in the order of `put`. `clock` is `monotonic_ns`."""

    def __init__(self, deliver: Deliver, interval_ms: float, clock: Callable[[], int]) -> None:
        self._deliver = deliver
        self._interval_ns = int(interval_ms * 1e6)
        self._clock = clock
        self._events: list[tuple[str, Event]] = []
        self._urgent = False
        self._delivered_ns = clock() - self._interval_ns

    def put(self, request_id: str, event: Event) -> None:
        """Append an event of a request."""
        self._events.append((request_id, event))

    def hurry(self) -> None:
        """What is there, or comes until the next hand-over, is due at once."""
        self._urgent = True

    def deliver_due(self, *, idle: bool) -> None:
        """Hand over everything, if any of it is due; all of it is when the engine has gone `idle`."""
        now = self._clock()
        if self._events and (self._urgent or idle or now - self._delivered_ns >= self._interval_ns):
            events, self._events = self._events, []
            self._urgent, self._delivered_ns = False, now
            self._deliver(events)
