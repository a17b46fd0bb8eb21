"""Where a model of the hub is: it is admitted, and loaded, before each call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from deployments.hub.link import HubLink
from deployments.hub.messages import Granted
from deployments.model.handles import ModelHandles
from deployments.model.states import load_state
from erllama.errors import EngineStopped

Connect = Callable[[Granted], ModelHandles]
"""Makes the handles of an application."""


def handles_of(granted: Granted, handle: Any) -> ModelHandles:
    """`handle` is that of the deployment that was granted."""
    return ModelHandles(handle, partial(load_state, granted.app_name, granted.deployment, was_there=True))


class HubPlace:
    """The `ModelPlace` of one model. What was granted last is kept. A model that ends under a call (its
    node is gone, or its name means another file now) is loaded anew for the next attempt, perhaps
    elsewhere. One event loop.
    """

    def __init__(self, model_id: str, digest: str, link: HubLink, connect: Connect) -> None:
        self._model_id = model_id
        self._digest = digest
        self._link = link
        self._connect = connect
        self._granted: Granted | None = None
        self._handles: ModelHandles | None = None

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[ModelHandles]:
        """See `ModelPlace`. The model stays in memory until the end of the block."""
        async with self._link.admitted(self._model_id, self._digest) as granted:
            if self._handles is None or granted != self._granted:
                self._handles, self._granted = self._connect(granted), granted
            yield self._handles

    def current(self) -> ModelHandles:
        """See `ModelPlace`."""
        if self._handles is None:
            raise EngineStopped(f"nothing of {self._model_id} runs: a request loads it", retry_after_s=1)
        return self._handles
