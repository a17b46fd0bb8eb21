"""Events of one request on their way from the dispatcher to its generator. Both sides live on one
event loop; no locks."""

from __future__ import annotations

import asyncio

from erllama.events import Event


class Mailbox:
    """`put` appends, `take` waits for at least one event and returns all that are there."""

    __slots__ = ("_events", "_reader")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._reader: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """Append and wake the reader. Never blocks."""
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[Event]:
        """Everything gathered since the last call, at least one event. One reader at a time."""
        if not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        events, self._events = self._events, []
        return events
