"""A `FakeModel` that records what its script says, as a replica does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from deployments.http.ports import RecordedReply
from deployments.model.recording import Recording, RecordingState
from deployments.model.recordings import Recordings
from erllama.events import Done, Event, FinishReason, Tokens
from erllama.request import GenerationRequest
from tests.support.http_fakes import FakeModel, stats


@dataclass
class RecordedModel(FakeModel):
    """Holds before item `hold_at` of each run of a script until `released`. `runs` counts them."""

    recordings: Recordings = field(default_factory=Recordings)
    hold_at: int | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def asked(self, n: int) -> None:
        """Until it has had `n` requests."""
        while len(self.requests) < n:
            self.news.clear()
            await self.news.wait()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        self.requests.append(request)
        self.news.set()
        recording = self.recordings.joinable(request)
        if recording is None:
            recording = Recording(request)
            self.recordings.add(recording)
            self._run(recording, request)
        async for events in self._read(recording):
            yield events

    async def find(self, request_id: str) -> RecordedReply | None:
        recording = self.recordings.find(request_id)
        if recording is None:
            return None
        request = recording.request
        return RecordedReply("here", request.request_id, 1, request.head, request.sampling.seed, request.salt)

    async def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        recording = self.recordings.find(recorded.request_id)
        assert recording is not None
        async for events in self._read(recording):
            yield events

    async def cancel(self, ref: str) -> list[None]:
        for engine_id in self.recordings.cancel(ref):
            self._stop(engine_id)
        return [None]

    async def _read(self, recording: Recording) -> AsyncGenerator[list[Event], None]:
        reader = self.recordings.open(recording)
        try:
            while not reader.at_end:
                if recording.state is RecordingState.STOPPED:
                    rest = recording.rest()
                    self.recordings.went_on(recording, rest)
                    self._run(recording, rest)
                events = await reader.take()
                if events:
                    yield events
        finally:
            if self.recordings.close(recording, reader):
                self._stop(recording.engine_id)

    def _run(self, recording: Recording, request: GenerationRequest) -> None:
        self.runs += 1
        self.tasks[request.request_id] = asyncio.create_task(self._pump(request, len(request.resumed)))

    def _stop(self, engine_id: str) -> None:
        self.tasks[engine_id].cancel()
        request = self.requests[-1]
        self.recordings.push(engine_id, Done(stats(request, 0, FinishReason.CANCELLED), ""))

    async def _pump(self, request: GenerationRequest, n_skipped: int) -> None:
        async with aclosing(self.script(request)) as items:  # type: ignore[type-var]
            n = 0
            async for events in items:
                for event in events:
                    if isinstance(event, Tokens) and n_skipped:
                        n_skipped -= len(event.ids)
                        assert n_skipped >= 0, "it stops between two items"
                        continue
                    if n == self.hold_at:
                        await self.released.wait()
                    n += 1
                    self.recordings.push(request.request_id, event)
