"""The recordings of one replica: of what runs, and of what has lost its last reader lately.

`max_bytes` bounds all of them, a quarter of it one. What nobody reads goes first, the oldest before
the others: replies that have ended, then requests that could go on; then those that are read are
passed on without being kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from deployments.attempt_id import is_attempt_of, split_attempt
from deployments.model.recording import Reader, Recording, RecordingState
from erllama.events import Done, Event, Failed
from erllama.request import GenerationRequest

MAX_BYTES = 128 * 1024 * 1024
_SHARE_OF_ONE = 4


class Recordings:
    """One event loop. `clock` gives seconds."""

    def __init__(self, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[str, Recording] = {}  # by the engine's id, until its last event
        self._kept: dict[str, Recording] = {}  # by the request's id
        self._expires: dict[str, float] = {}  # of those kept that nobody reads, the one left first before the others
        self._n_bytes = 0  # of those kept

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """What those that are kept take."""
        return self._n_bytes

    @property
    def n_running(self) -> int:
        return len(self._running)

    def is_running(self, engine_id: str) -> bool:
        """Whether events of it may still come, its last one included."""
        return engine_id in self._running

    def add(self, recording: Recording) -> None:
        """The engine has accepted its request."""
        self._running[recording.engine_id] = recording
        if recording.kept:
            self._drop(recording.request.request_id)
            self._kept[recording.request.request_id] = recording
            self._n_bytes += recording.n_bytes
            self._shrink(recording)

    def went_on(self, recording: Recording, rest: GenerationRequest) -> None:
        """The engine has accepted `rest` of a stopped request."""
        recording.went_on(rest)
        self._running[recording.engine_id] = recording

    def push(self, engine_id: str, event: Event) -> None:
        """An event of the engine; one that nobody waits for is dropped."""
        recording = self._running.get(engine_id)
        if recording is None:
            return
        before = recording.n_bytes
        recording.push(event)
        if recording.kept:
            self._n_bytes += recording.n_bytes - before
            self._shrink(recording)
        if isinstance(event, Done | Failed):
            del self._running[engine_id]
            self._settle(recording)

    def open(self, recording: Recording, place: int = 0) -> Reader:
        """One more reader."""
        self._expires.pop(recording.request.request_id, None)
        return recording.open(place)

    def close(self, recording: Recording, reader: Reader) -> bool:
        """See `Recording.close`."""
        must_cancel = recording.close(reader)
        self._settle(recording)
        return must_cancel

    def find(self, ref: str) -> Recording | None:
        """What is kept of a request, its last attempt if there are several."""
        self.expire()
        found = [recording for request_id, recording in self._kept.items() if is_attempt_of(request_id, ref)]
        return max(found, key=lambda recording: split_attempt(recording.request.request_id)[1], default=None)

    def joinable(self, request: GenerationRequest) -> Recording | None:
        """The recording that a new request may join: not yet ended, one that has lost its readers
        before others, since its client may be the one who asks again."""
        if not request.joins or request.join_key is None or request.resumed:
            return None
        self.expire()
        found = [
            recording
            for recording in self._kept.values()
            if recording.request.join_key == request.join_key
            and recording.state is not RecordingState.ENDED
            and not recording.request.resumed
        ]
        return min(found, key=lambda recording: recording.read, default=None)

    def cancel(self, ref: str) -> Iterator[str]:
        """The engine's ids of a request that shall end, whichever attempt runs here. What could go
        on will not."""
        for recording in list(self._running.values()):
            if is_attempt_of(recording.request.request_id, ref):
                recording.end_for_good()
                yield recording.engine_id
        for request_id, recording in list(self._kept.items()):
            if is_attempt_of(request_id, ref) and recording.state is RecordingState.STOPPED:
                self._drop(request_id)

    def expire(self) -> None:
        """Drop what has been without a reader for too long."""
        now = self._clock()
        for request_id in [request_id for request_id, at in self._expires.items() if at <= now]:
            self._drop(request_id)

    def _settle(self, recording: Recording) -> None:
        """Its time begins when nobody reads it and nothing more comes; what is of no use goes at
        once: a reply that failed, and one that ended and that no client can ask for."""
        request_id = recording.request.request_id
        if self._kept.get(request_id) is not recording or recording.read:
            return
        if recording.state is RecordingState.ENDED and (recording.failed or not recording.request.head):
            self._drop(request_id)
        elif recording.state in (RecordingState.ENDED, RecordingState.STOPPED):
            self._expires.setdefault(request_id, self._clock() + recording.request.keep_s)

    def _shrink(self, grown: Recording) -> None:
        if grown.n_bytes > self._max_bytes // _SHARE_OF_ONE:
            self._drop(grown.request.request_id)
        if self._n_bytes <= self._max_bytes:
            return
        unread = [self._kept[request_id] for request_id in self._expires]
        for recording in sorted(unread, key=lambda one: one.state is not RecordingState.ENDED) + list(
            self._kept.values()
        ):
            self._drop(recording.request.request_id)
            if self._n_bytes <= self._max_bytes:
                return

    def _drop(self, request_id: str) -> None:
        """The one way out of what is kept; whoever reads it goes on reading. Idempotent."""
        self._expires.pop(request_id, None)
        recording = self._kept.pop(request_id, None)
        if recording is not None:
            self._n_bytes -= recording.n_bytes
            recording.let_go()
