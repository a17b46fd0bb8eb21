"""What tests of a replica ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from deployments.config import ModelSpec
from deployments.model.replica import ModelReplica
from erllama.config import EngineConfig
from erllama.events import Completion, CompletionParts, Event, Failed, Tokens
from erllama.model import Model
from erllama.request import GenerationRequest, SamplingParams, build_request
from tests.support.gated_stub import WAIT_S, GatedStub


async def complete(replica: ModelReplica, tokens: Sequence[int], **params: Any) -> Completion:
    """A whole reply. Raises the error that ended it."""
    parts = CompletionParts()
    async with aclosing(replica.generate(build_request("complete", tokens, params))) as lists:
        async for events in lists:
            for event in events:
                whole = parts.add(event)
                if isinstance(whole, Failed):
                    raise whole.error
                if whole is not None:
                    return whole
    raise AssertionError("a request ended without Done or Failed")


class Fixture:
    """A replica, and the stub below it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.backends: list[GatedStub] = []
        (folder / "model.gguf").write_bytes(b"not read by the stub")
        self.spec = ModelSpec(
            id="stub",
            path=str(folder / "model.gguf"),
            fingerprint="trusted",  # no memory of digests in the user's home
            **{"n_ctx": 256, "n_parallel": 2, "max_queue": 2, **settings},  # type: ignore[arg-type]
        )
        self.replica = ModelReplica(self.spec, n_cpus=1, make_model=partial(Model, make_backend=self._backend))
        self.backend = self.backends[0]

    def _backend(self, config: EngineConfig) -> GatedStub:
        self.backends.append(GatedStub(config.n_ctx, config.n_parallel))
        return self.backends[-1]

    async def idle_now(self) -> tuple[bool, int]:
        """Whether the engine holds no request once it has taken all commands given so far, and how
        many steps it has made by then.
        """
        return await asyncio.to_thread(self.replica._model._call, lambda engine: (engine.idle, len(self.backend.plans)))

    async def held(self) -> None:
        await asyncio.to_thread(self.backend.wait_until_held)

    def run(self, story: Callable[[Fixture], Awaitable[None]]) -> None:
        """`story` on an event loop; the replica is shut down afterwards."""

        async def main() -> None:
            try:
                await asyncio.wait_for(story(self), WAIT_S)
            finally:
                self.backend.release()
                await asyncio.to_thread(self.replica.close)

        asyncio.run(main())


def request(
    name: str = "req", prompt: str = "hello", *, seed: int = 1, max_tokens: int | None = 5, **more: object
) -> GenerationRequest:
    return GenerationRequest(name, tuple(prompt.encode()), SamplingParams(seed=seed), max_tokens=max_tokens, **more)  # type: ignore[arg-type]


async def events_of(replica: ModelReplica, one: GenerationRequest) -> list[Event]:
    lists = [events async for events in replica.generate(one)]
    assert all(lists[1:]), "nothing is silent for as long as a heartbeat takes"
    return [event for events in lists for event in events]


async def first_events(stream: AsyncGenerator[list[Event], None]) -> list[Event]:
    """What comes after the empty list that says that the request is in the engine, and heartbeats."""
    assert await anext(stream) == []
    while not (events := await anext(stream)):
        pass
    return events


def ids(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.ids]
