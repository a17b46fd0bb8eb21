"""A Serve handle without Ray: its replicas are objects of this process, or hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

HANGS = object()


class _Stream:
    """What a streaming call gives. As in Serve one task of its own reads the replica's generator."""

    def __init__(self, lists: AsyncGenerator[Any, None]) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._pump(lists))

    async def _pump(self, lists: AsyncGenerator[Any, None]) -> None:
        try:
            async with aclosing(lists):
                async for items in lists:
                    self._queue.put_nowait(items)
            self._queue.put_nowait(StopAsyncIteration())
        except Exception as error:
            self._queue.put_nowait(error)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self._task.cancel()


class _Result:
    """The answer of one replica to a broadcast."""

    def __init__(self, replica: Any, method: str, args: Sequence[Any]) -> None:
        self._call = replica, method, args
        self.cancelled = False

    async def get_async(self) -> Any:
        replica, method, args = self._call
        if replica is HANGS:
            await asyncio.Event().wait()
        return await getattr(replica, method)(*args)

    def cancel(self) -> None:
        self.cancelled = True


class _Broadcast:
    def __init__(self, results: list[_Result]) -> None:
        self._results = results

    async def _fetch_replica_results_async(self) -> list[_Result]:
        return self._results

    async def results_async(self) -> list[Any]:
        return [await result.get_async() for result in self._results]


class _Method:
    def __init__(self, handle: LocalHandle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any) -> _Stream:
        handle = self._handle
        running = [replica for replica in handle.replicas if replica is not HANGS]
        handle.n_calls += 1
        return _Stream(getattr(running[handle.n_calls % len(running)], self._name)(*args))


class LocalHandle:
    """Calls for one go to the replicas in turn."""

    def __init__(self, *replicas: Any) -> None:
        self.replicas = replicas
        self.results: list[_Result] = []
        self.n_calls = 0

    def options(self, **_: Any) -> LocalHandle:
        return self

    def broadcast(self, method: str, *args: Any) -> _Broadcast:
        self.results = [_Result(replica, method, args) for replica in self.replicas]
        return _Broadcast(self.results)

    def __getattr__(self, method: str) -> _Method:
        return _Method(self, method)
