"""Handles of a model's deployment, and where a client has them from: for a model of the configuration they
are always the same, a model of the hub has others each time that it was loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from ray.serve.handle import DeploymentHandle

from deployments.http.answers import Answer
from deployments.model.ray_errors import ModelUnavailable, mapped_errors
from deployments.model.states import LoadState, RecentState, unknown_state
from erllama.errors import ErllamaError

ASK_EVERY_S = 1.0  # whether a replica runs, while a call has no answer


class ModelHandles:
    """One deployment. Made once and kept: every `.options()` variant of a Serve handle costs a metrics
    pusher and a long poll. One event loop.

    `load_state`, which may block, tells why there is no replica; `recent_state` asks it, at most once
    in `ask_every_s`.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        load_state: Callable[[], LoadState] | None = None,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self.stream = handle.options(stream=True)
        self._all = handle
        self._load_state = load_state or unknown_state
        self.ask_every_s = ask_every_s
        self.recent_state = RecentState(self._load_state, ask_every_s)

    async def state(self) -> LoadState:
        return await asyncio.to_thread(self._load_state)

    async def all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What every running replica answers. Raises what the first that fails raises."""
        with mapped_errors():
            return list(await self._all.broadcast(method, *args, **kwargs).results_async())

    async def each(self, deadline_s: float, method: str, *args: Any) -> list[Answer[Any]]:
        """What each running replica answers within `deadline_s`; a `ModelUnavailable` stands for those
        that do not. Empty when none runs. Raises an `ErllamaError` when the replicas cannot be asked at
        all.

        Serve's own `results_async` has one timeout for all: a replica that hangs would hide what the
        others said.
        """
        give_up = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                with mapped_errors():
                    replicas = await self._all.broadcast(method, *args)._fetch_replica_results_async()
        except TimeoutError:
            raise _silent(deadline_s) from None
        return await asyncio.gather(*[_answer(replica, give_up, deadline_s) for replica in replicas])


class ModelPlace(Protocol):
    """Where a model's replicas are. One event loop."""

    def taken(self) -> AbstractAsyncContextManager[ModelHandles]:
        """The model's deployment, which stays until the end of the block. One that is loaded on demand
        is loaded first. Raises the `ErllamaError` that keeps it from being loaded.
        """

    def current(self) -> ModelHandles:
        """The deployment as it was taken last: calls that must not load a model go there. Raises
        `EngineStopped` when it never was.
        """


class FixedPlace:
    """The `ModelPlace` of a deployment that is there as long as its application."""

    def __init__(self, handles: ModelHandles) -> None:
        self._handles = handles

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[ModelHandles]:
        yield self._handles

    def current(self) -> ModelHandles:
        return self._handles


async def _answer(replica: Any, give_up: float, deadline_s: float) -> Answer[Any]:
    try:
        async with asyncio.timeout(max(0.0, give_up - time.monotonic())):
            with mapped_errors():
                return Answer(await replica.get_async())
    except TimeoutError:
        replica.cancel()
        return Answer(error=_silent(deadline_s))
    except ErllamaError as error:
        return Answer(error=error)


def _silent(deadline_s: float) -> ModelUnavailable:
    return ModelUnavailable(f"a replica of the model did not answer within {deadline_s:g} s", retry_after_s=1)
