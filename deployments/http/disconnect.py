"""Work that ends when its client goes away.

Serve cancels the handler's task on a disconnect, plain uvicorn only queues an `http.disconnect`
message: `unless_disconnected` covers both, for a request with and without a stream. In either case
the work gets a `CancelledError` at its await and has run its `finally` blocks when this returns, so
a generator below it has told the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from deployments.http.errors import ClientDisconnected

logger = logging.getLogger("deployments.http")

T = TypeVar("T")


async def _disconnected(receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception as exc:  # the transport itself is gone: Serve re-raises here that its proxy died
        logger.warning("event=transport_lost error=%r", exc)


async def unless_disconnected(
    receive: Receive, work: Coroutine[Any, Any, T], *, tick: Callable[[], Awaitable[float]] | None = None
) -> T:
    """The result of `work`, whose exceptions pass through; `ClientDisconnected` if the client goes
    first.

    The body must have been read. `tick` is called at the start and then whenever the seconds that
    it returned have passed.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        while not task.done() and not watcher.done():
            timeout = None if tick is None else await tick()
            await asyncio.wait((task, watcher), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected("The client closed the connection.")
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
