"""One or several requests as one stream of (choice index, events), and bad ends as exceptions.

Whatever ends the consumer (a failed choice, a cancelled task, `aclose`) ends all choices: each
generator of the client is closed before this one has finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from erllama.errors import EngineStopped
from erllama.events import Done, Event, Failed
from erllama.request import GenerationRequest

# choices of one HTTP request at once: a list of 64 prompts must not fill the engine's queue (128)
# for everyone
MAX_IN_FLIGHT = 32


class Generates(Protocol):
    """The part of a `ModelPort` that is needed here."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """See `ModelPort`."""


Indexed = AsyncGenerator[tuple[int, list[Event]], None]


def _bad_end(last: Event) -> Exception | None:
    """The exception that a last event stands for. A `cancelled` end that we did not ask for is no
    reply: it was cut short.
    """
    match last:
        case Failed():
            return last.error
        case Done() if last.stats.cancelled:
            return EngineStopped("The generation was cancelled by the server; send the request again.", retry_after_s=1)
        case _:
            return None


async def _one(client: Generates, index: int, request: GenerationRequest) -> Indexed:
    last: Event | None = None
    async with aclosing(client.generate(request)) as items:
        async for events in items:
            last = events[-1]
            bad = _bad_end(last)
            if bad is not None:
                if len(events) > 1:
                    yield index, events[:-1]
                raise bad
            yield index, events
    if not isinstance(last, Done):
        raise EngineStopped("The generation ended without a result; send the request again.", retry_after_s=1)


async def _all(client: Generates, requests: Sequence[GenerationRequest]) -> Indexed:
    # One slot per choice: a client that reads slowly holds its choices back instead of filling
    # memory.
    queue: asyncio.Queue[tuple[int, list[Event]] | Exception | None] = asyncio.Queue(maxsize=len(requests))
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def pump(index: int, request: GenerationRequest) -> None:
        try:
            async with slots, aclosing(_one(client, index, request)) as items:
                async for item in items:
                    await queue.put(item)
        except Exception as exc:  # handed to the consumer, which raises it
            await queue.put(exc)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    try:
        n_running = len(tasks)
        while n_running:
            item = await queue.get()
            if item is None:
                n_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fan_out(client: Generates, requests: Sequence[GenerationRequest]) -> Indexed:
    """Lists hold `Tokens` and at most one `Done`, which is last. Raises the error of the first
    choice that fails.
    """
    return _one(client, 0, requests[0]) if len(requests) == 1 else _all(client, requests)
