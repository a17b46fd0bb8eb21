"""Streams of a model's replicas: one attempt of a call each. What becomes of a call whose attempt has
failed is `failover`'s, what it asks is `client`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from deployments.model.failover import Attempts
from deployments.model.handles import ModelHandles, ModelPlace
from deployments.model.ray_errors import ModelUnavailable, mapped_errors, silent
from deployments.model.states import Phase, cannot_load
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Done, Event, Failed

T = TypeVar("T")


class StreamCalls:
    """Those of one client. A replica that does not even send its heartbeat for `silence_s` is taken to be
    gone. One event loop, `end_all` aside.
    """

    def __init__(self, place: ModelPlace, silence_s: float) -> None:
        self.closing: ErllamaError | None = None  # with it all calls end, once it is there
        self._place = place
        self._silence_s = silence_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[Any] = set()

    def end_all(self, error: ErllamaError) -> None:
        """End what runs with `error` and refuse what comes. Any thread; returns at once."""
        self.closing = error
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel_running)

    def _cancel_running(self) -> None:
        for response in list(self._running):
            response.cancel()

    def events(self, attempts: Attempts, method: str, *args: Any) -> AsyncGenerator[list[Event], None]:
        return self.lists(attempts, lambda events: isinstance(events[-1], Done | Failed), method, *args)

    async def lists(
        self, attempts: Attempts, ends: Callable[[list[T]], bool], method: str, *args: Any
    ) -> AsyncGenerator[list[T], None]:
        """One attempt, up to the list that `ends` it; without heartbeats. Raises `TimeoutError`
        when `attempts` have no time left; whatever else ends it early raises an `ErllamaError`."""
        ended = False
        async with self._taken(attempts) as handles, explained_errors(handles):
            response: Any = getattr(handles.stream, method).remote(*args)
            self._running.add(response)
            try:
                items: list[T] | None = await self._first(response, attempts, handles)
                while items is not None:
                    if items:  # else a heartbeat
                        ended = ends(items)
                        yield items
                    if ended:
                        break
                    items = await self._next(response, attempts)
            finally:
                self._running.discard(response)
                if not ended:
                    response.cancel()
        if not ended:
            raise EngineStopped("the model's replica ended a reply in the middle", retry_after_s=1)

    @asynccontextmanager
    async def _taken(self, attempts: Attempts) -> AsyncIterator[ModelHandles]:
        """The place of the model, for one attempt. Raises as `lists`."""
        self._loop = asyncio.get_running_loop()
        self._check_open()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(attempts.left_s):
                handles = await stack.enter_async_context(self._place.taken())
            self._check_open()
            yield handles

    def _check_open(self) -> None:
        if self.closing is not None:
            raise self.closing

    async def _first(self, response: Any, attempts: Attempts, handles: ModelHandles) -> list[Any] | None:
        """The first list of a stream. A replica sends one soon, so that silence means that none
        runs, in which case Serve holds the call back, or that the one which got it hangs. Raises
        `ModelUnavailable` for a model that is not loaded again: Serve would hold back for ever.
        """
        silent_since = time.monotonic()
        first = asyncio.ensure_future(anext(response, None))
        try:
            async with asyncio.timeout(attempts.left_s):
                while not (await asyncio.wait([first], timeout=handles.ask_every_s))[0]:
                    state = await handles.recent_state.get()
                    if state.phase in (Phase.FAILED, Phase.ENDED):
                        raise cannot_load(state)
                    if state.phase != Phase.READY:
                        silent_since = time.monotonic()
                    elif time.monotonic() - silent_since >= self._silence_s:
                        raise silent()
                items: list[Any] | None = await first
                return items
        finally:
            first.cancel()

    async def _next(self, response: Any, attempts: Attempts) -> list[Any] | None:
        """The next list, which may be empty, or None at the end. Raises `EngineStopped` when none
        comes for `silence_s`, `TimeoutError` when `attempts` have no time left.
        """
        left_s, silence_s = attempts.left_s, self._silence_s
        try:
            async with asyncio.timeout(silence_s if left_s is None else min(left_s, silence_s)):
                items: list[Any] | None = await anext(response, None)
                return items
        except TimeoutError:
            if left_s is None or silence_s < left_s:
                raise silent() from None
            raise


@asynccontextmanager
async def explained_errors(handles: ModelHandles) -> AsyncIterator[None]:
    """`mapped_errors`, and why there is no replica."""
    try:
        with mapped_errors():
            yield
    except ModelUnavailable:
        state = await handles.state()
        if state.reason:
            raise cannot_load(state) from None
        raise
