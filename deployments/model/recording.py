"""What one request has given so far, for everyone who reads it.

    running   the engine computes it
    stopping  nobody reads it any more, so it was cancelled; its end is on its way
    stopped   it may go on from where it was cancelled
    ended     its last event is recorded

Events of the engine gather until a reader takes them; from then on they are one event for all
readers, merged as the first of them took it. So whoever reads later sees the same events, whatever
their speed. Nothing here does I/O; one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum

from erllama.events import Done, Event, Failed, Tokens, merge_events
from erllama.request import GenerationRequest

_EVENT_BYTES = 200  # of the objects that an event is
_ID_BYTES = 36  # an int and its place in a tuple
_LOGPROB_BYTES = 300
_CANDIDATE_BYTES = 150


class RecordingState(StrEnum):
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ENDED = "ended"


class Recording:
    """One request's events. `delivered` are those that earlier attempts of it have given, on other
    replicas: the ids of `request.resumed` end with theirs.

    One that is not `kept` forgets what all its readers have read, so nobody can begin to read it.
    """

    def __init__(self, request: GenerationRequest, delivered: Iterable[Event] = ()) -> None:
        self.request = request
        self.engine_id = request.request_id  # of the engine's request that runs or has run last
        self.state = RecordingState.RUNNING
        self.kept = request.keep_s > 0
        self._events = list(delivered)
        self._n_forgotten = 0  # events before `_events[0]`
        self._pending: list[Event] = []
        self._readers: set[Reader] = set()
        self._news = asyncio.Event()
        self._n_runs = 1
        n_delivered = sum(len(event.ids) for event in self._events if isinstance(event, Tokens))
        self._n_undelivered = len(request.resumed) - n_delivered  # ids of `resumed` that no event has
        self.n_bytes = _ID_BYTES * len(request.prompt_tokens) + len(request.head) + sum(map(_size, self._events))

    @property
    def n_events(self) -> int:
        """Events up to the end of what readers have taken."""
        return self._n_forgotten + len(self._events)

    @property
    def read(self) -> bool:
        return bool(self._readers)

    @property
    def failed(self) -> bool:
        newest = self._pending or self._events
        return bool(newest) and isinstance(newest[-1], Failed)

    def push(self, event: Event) -> None:
        """The engine's next event."""
        if self.state is RecordingState.STOPPING and isinstance(event, Done) and event.stats.cancelled:
            # the text that a cancelled request held back belongs to tokens that are recorded: it
            # comes again when the request goes on
            while self._pending and _is_tail(self._pending[-1]):
                self.n_bytes -= _size(self._pending.pop())
            self.state = RecordingState.STOPPED
        else:
            self._pending.append(event)
            self.n_bytes += _size(event)
            if isinstance(event, Done | Failed):
                self.state = RecordingState.ENDED
        self._news.set()

    def open(self, place: int) -> Reader:
        """One more reader, of the events from `place` on."""
        reader = Reader(self, place)
        self._readers.add(reader)
        return reader

    def close(self, reader: Reader) -> bool:
        """The reader has gone. Whether it was the last one of a request that runs: that has to be
        cancelled now. Idempotent."""
        if reader not in self._readers:
            return False
        self._readers.remove(reader)
        if self._readers or self.state is not RecordingState.RUNNING:
            return False
        self.state = RecordingState.STOPPING
        return True

    def end_for_good(self) -> None:
        """A cancel that is on its way is what a caller wants: the request must not go on."""
        if self.state is RecordingState.STOPPING:
            self.state = RecordingState.RUNNING

    def rest(self) -> GenerationRequest:
        """What the engine has to be asked for a stopped request to go on. `went_on` follows."""
        recorded = (token for event in self._all() if isinstance(event, Tokens) for token in event.ids)
        return replace(
            self.request,
            request_id=f"{self.request.request_id}~c{self._n_runs}",
            resumed=(*self.request.resumed[: self._n_undelivered], *recorded),
        )

    def went_on(self, rest: GenerationRequest) -> None:
        """The engine has accepted what `rest` returned."""
        self._n_runs += 1
        self.engine_id = rest.request_id
        self.state = RecordingState.RUNNING

    def let_go(self) -> None:
        """It takes too much memory: from now on it is only passed on."""
        self.kept = False
        self._forget()

    def _all(self) -> list[Event]:
        return [*self._events, *self._pending]

    def _take(self, place: int) -> list[Event]:
        if self._pending:
            self._events += merge_events(self._pending)
            self._pending = []
        return self._events[place - self._n_forgotten :]

    def _forget(self) -> None:
        """Drop what nobody will read."""
        if self.kept:
            return
        n = min((reader.place for reader in self._readers), default=self.n_events) - self._n_forgotten
        if n > 0:
            self.n_bytes -= sum(map(_size, self._events[:n]))
            del self._events[:n]
            self._n_forgotten += n


class Reader:
    """One who reads a recording, at its own pace. `place` counts the events before the next one."""

    def __init__(self, recording: Recording, place: int) -> None:
        self._recording = recording
        self.place = place

    @property
    def at_end(self) -> bool:
        """Whether the last event has been read."""
        recording = self._recording
        return recording.state is RecordingState.ENDED and not self._has_news

    @property
    def _has_news(self) -> bool:
        return bool(self._recording._pending) or self.place < self._recording.n_events

    async def take(self) -> list[Event]:
        """What has come since the last call, at least one event; none when the request has stopped.
        A caller that gives up loses nothing."""
        recording = self._recording
        while not self._has_news:
            if recording.state is RecordingState.STOPPED:
                return []
            recording._news.clear()
            await recording._news.wait()
        events = recording._take(self.place)
        self.place += len(events)
        recording._forget()
        return events


def _is_tail(event: Event) -> bool:
    return isinstance(event, Tokens) and not event.ids


def _size(event: Event) -> int:
    """Roughly the bytes that an event takes."""
    if not isinstance(event, Tokens):
        return _EVENT_BYTES
    logprobs = sum(_LOGPROB_BYTES + _CANDIDATE_BYTES * len(entry.top) for entry in event.logprobs or ())
    return _EVENT_BYTES + _ID_BYTES * len(event.ids) + len(event.text) + logprobs
