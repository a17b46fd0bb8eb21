"""The models of the hub for `Cluster`: asked of their manager, over handles. Called on one event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from deployments.http.model_library import ModelStanding
from deployments.hub.link import HubLink
from deployments.hub.messages import FoundModel, Granted
from deployments.hub.place import HubPlace, handles_of
from deployments.jobs.remote_model import blocking_handle
from deployments.model.client import ModelClient
from deployments.model.handles import FixedPlace, ModelHandles

HUB = "hub"

Ask = Callable[..., Coroutine[Any, Any, Any]]
"""What a method of the manager returns, in time: `ask(method, *args)`."""


class HubModels:
    """`app_name` is the application whose hub it is."""

    def __init__(self, app_name: str, ask: Ask) -> None:
        self._app = app_name
        self._ask = ask
        self._link: HubLink | None = None

    async def names(self) -> list[str]:
        names: list[str] = await self._ask("names")
        return names

    async def find(self, name: str) -> FoundModel:
        """Raises `ModelNotFound` with near names."""
        found: FoundModel = await self._ask("find", name)
        return found

    def client(self, found: FoundModel, timeout_s: float | None) -> ModelClient:
        """Its calls have the model loaded, and count at the manager like those of an ingress."""
        if self._link is None:
            self._link = HubLink(blocking_handle(HUB, self._app), found.load_timeout_s)
        return ModelClient(
            HubPlace(found.model_id, found.digest, self._link, _handles), sleeps=True, timeout_s=timeout_s
        )

    async def standings(self) -> dict[str, ModelStanding]:
        """Of the models that have a process, or are waited for."""
        standings: dict[str, ModelStanding] = await self._ask("standings")
        return standings

    async def running(self, model_id: str) -> ModelClient | None:
        """The client of a model's process as it is now: it loads nothing. None where there is none."""
        granted: Granted | None = (await self._ask("processes")).get(model_id)
        return None if granted is None else ModelClient(FixedPlace(_handles(granted)))


def _handles(granted: Granted) -> ModelHandles:
    return handles_of(granted, blocking_handle(granted.deployment, granted.app_name, check=False))
