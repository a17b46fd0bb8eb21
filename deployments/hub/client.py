"""A model of the hub as the HTTP half meets it: each call first has it in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from deployments.http.ports import RecordedReply
from deployments.hub.link import HubLink
from deployments.hub.messages import Granted
from deployments.model.client import ModelClient
from deployments.model.states import ModelEnded
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Event, Failed
from erllama.request import GenerationRequest
from erllama.stats import EngineStats, ModelInfo


class OnDemandClient:
    """The `ModelPort` of one model. `connect` makes the client of an application; the one of the
    application that was granted last is kept. One event loop.
    """

    def __init__(
        self,
        model_id: str,
        digest: str,
        link: HubLink,
        connect: Callable[[Granted], ModelClient],
    ) -> None:
        self._model_id = model_id
        self._digest = digest
        self._link = link
        self._connect = connect
        self._granted: Granted | None = None
        self._client: ModelClient | None = None
        self._closing: ErllamaError | None = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `ModelPort.generate`; the wait for the model is part of it. Raises what keeps the model
        from being loaded. A model that ends before it has answered (its node is gone, or its name means
        another file now) is asked for once more.
        """
        for tries_left in (1, 0):
            async with self._loaded() as client, aclosing(client.generate(request)) as lists:
                silent = True
                async for events in lists:
                    if tries_left and silent and _has_ended(events):
                        break
                    silent = False
                    yield events
                else:
                    return

    async def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `ModelPort.resume`: the model runs, or has just run."""
        async with self._loaded() as client, aclosing(client.resume(recorded, request)) as lists:
            async for events in lists:
                yield events

    async def find(self, request_id: str) -> RecordedReply | None:
        """As `ModelPort.find`: a model that never ran here has nothing, and is not loaded for it."""
        return None if self._client is None else await self._client.find(request_id)

    async def cancel(self, ref: str) -> object:
        return None if self._client is None else await self._client.cancel(ref)

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        async with self._loaded() as client:
            return await client.embed(inputs)

    async def rank(self, inputs: list[list[int]]) -> list[float]:
        async with self._loaded() as client:
            return await client.rank(inputs)

    async def load(self) -> None:
        """Returns when its weights are in memory: a token is computed, since what computes loads."""
        async with self._loaded() as client:
            info = await client.model_info()
            if info.generates:
                await client.prefill_only([0])
            elif info.embeds:
                await client.embed([[0]])
            else:
                await client.rank([[0]])

    async def ready(self) -> bool | None:
        """None while nothing of it runs: asking must not load it."""
        if self._client is None:
            return None
        try:
            return await self._client.ready() or None
        except EngineStopped:
            return None

    async def stats(self) -> list[EngineStats]:
        if self._client is None:
            raise EngineStopped("nothing of this model runs", retry_after_s=1)
        return await self._client.stats()

    async def model_info(self) -> ModelInfo:
        async with self._loaded() as client:
            return await client.model_info()

    def current(self) -> ModelClient | None:
        """See `LoadsOnDemand`."""
        return self._client

    def end_all(self, error: ErllamaError) -> None:
        self._closing = error
        if self._client is not None:
            self._client.end_all(error)

    @asynccontextmanager
    async def _loaded(self) -> AsyncIterator[ModelClient]:
        """The client of what runs, which stays in memory until the end of the block."""
        async with self._link.admitted(self._model_id, self._digest) as granted:
            if self._closing is not None:
                raise self._closing
            if self._client is None or granted != self._granted:
                self._client, self._granted = self._connect(granted), granted
            yield self._client


def _has_ended(events: list[Event]) -> bool:
    return isinstance(last := events[-1], Failed) and isinstance(last.error, ModelEnded)
