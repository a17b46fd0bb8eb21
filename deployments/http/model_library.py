"""Models beside the configured ones: by name in a hub, loaded when a request names them.

`hub.library.HubLibrary` is the real `ModelLibrary`; `EmptyLibrary` stands for a server without a
hub. Nothing here imports ray.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from deployments.access.tenant import Tenant
from deployments.http.ports import ServedModel
from erllama.errors import NotSupported, RequestError
from erllama.hub.events import PullEvent
from erllama.hub.manifest import Manifest


class ModelPhase(StrEnum):
    """What has become of a model of the hub."""

    UNLOADED = "unloaded"  # nothing of it runs
    WAITING = "waiting"  # requests wait until there is memory for it
    LOADING = "loading"
    LOADED = "loaded"
    SLEEPING = "sleeping"  # its process runs without weights: the next request loads them
    LEAVING = "leaving"  # it saves what it holds, and gives its memory back
    FAILED = "failed"  # `reason` says why it could not be loaded; the next request tries again


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStanding:
    """Where a model is, and what it takes there. `memory_bytes` is what is reserved for it, of which
    `gpu_bytes` on GPUs; `n_ctx` and `n_parallel` are what it was loaded with, 0 before. `expires_at`
    (unix seconds) is when it goes to sleep if nothing comes, None for when others need its memory.
    """

    phase: ModelPhase = ModelPhase.UNLOADED
    node: str = ""
    memory_bytes: int = 0
    gpu_bytes: int = 0
    n_ctx: int = 0
    n_parallel: int = 0
    n_running: int = 0
    n_waiting: int = 0
    expires_at: float | None = None
    reason: str = ""

    @property
    def in_memory(self) -> bool:
        return self.phase in (ModelPhase.LOADING, ModelPhase.LOADED, ModelPhase.LEAVING)


@dataclass(frozen=True, slots=True)
class LibraryModel:
    """One name of the hub. `id` is what requests and lists call it: the name without the tag that is
    meant anyway.
    """

    id: str
    manifest: Manifest
    standing: ModelStanding


class ModelInUse(RequestError):
    """What would end requests that run; `force` does it all the same."""

    http_status = 409
    code = "model_in_use"


class ModelLibrary(Protocol):
    """Names are those of `erllama.hub.name.ModelName`, in any case, with or without `latest`. Every
    method may raise `InvalidParameter` (param "model") for what is no name, `ModelNotFound` with near
    names for one that is not there, and any other `ErllamaError`. One event loop.
    """

    @property
    def is_there(self) -> bool:
        """Whether this server has a hub."""

    def find(self, name: str, tenant: Tenant) -> ServedModel | None:
        """The model of a name, None for one that is not here. Its client loads it when it is asked to
        generate. Raises `ModelPulling` while it is being pulled, which a `tenant` may begin who may
        pull. Returns at once: it reads a small file of the hub's directory at most.
        """

    def near(self, name: str, tenant: Tenant) -> list[str]:
        """Names that somebody who wrote `name` may have meant, for an error; the likeliest first."""

    async def models(self) -> list[LibraryModel]:
        """Every model of the hub that can be read, by name."""

    async def show(self, name: str) -> LibraryModel:
        """One of them."""

    async def metadata(self, name: str) -> dict[str, Any]:
        """What the header of a model's file says, by its keys: numbers, texts, and lists of them. It may
        be as long as a vocabulary.
        """

    async def has_blob(self, digest: str) -> bool:
        """Whether the hub has a file with the digest "sha256:<hex>". False for what is no digest."""

    async def keep(self, name: str, seconds: float | None) -> None:
        """For how long the model stays in memory after its last request, from now on: 0 not at all,
        None until others need the memory. It is not loaded for that. No error where nobody can be told.
        """

    async def load(self, name: str) -> None:
        """Returns when the model is in memory. Raises what made that impossible."""

    async def unload(self, name: str) -> bool:
        """Put the model to sleep, what it holds saved; False while requests run, which keep it."""

    def pull(self, source: str, name: str | None, tenant: Tenant) -> AsyncGenerator[PullEvent, None]:
        """See `Hub.pull`. Raises for a tenant that may not pull. Closing it ends the pull, unless others
        wait for it; what has been fetched stays.
        """

    async def copy(self, source: str, target: str) -> None:
        """Another name for a model of the hub, or for a configured one that lies in a file."""

    async def create(
        self,
        name: str,
        base: str,
        *,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """A model like `base`, of the hub or a configured one that lies in a file, with other defaults."""

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Forget a model. Raises `ModelInUse` while requests run or wait, unless `force`."""


class EmptyLibrary:
    """The `ModelLibrary` of a server without a hub: it has nothing, and what would change it is
    refused.
    """

    is_there = False

    def find(self, name: str, tenant: Tenant) -> ServedModel | None:
        return None

    def near(self, name: str, tenant: Tenant) -> list[str]:
        return []

    async def models(self) -> list[LibraryModel]:
        return []

    async def show(self, name: str) -> LibraryModel:
        raise _no_hub()

    async def metadata(self, name: str) -> dict[str, Any]:
        raise _no_hub()

    async def has_blob(self, digest: str) -> bool:
        return False

    async def keep(self, name: str, seconds: float | None) -> None:
        raise _no_hub()

    async def load(self, name: str) -> None:
        raise _no_hub()

    async def unload(self, name: str) -> bool:
        raise _no_hub()

    def pull(self, source: str, name: str | None, tenant: Tenant) -> AsyncGenerator[PullEvent, None]:
        raise _no_hub()

    async def copy(self, source: str, target: str) -> None:
        raise _no_hub()

    async def create(
        self,
        name: str,
        base: str,
        *,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        raise _no_hub()

    async def delete(self, name: str, *, force: bool = False) -> None:
        raise _no_hub()


def _no_hub() -> NotSupported:
    return NotSupported(
        "this server has no hub: its models are those of its configuration (hub.enabled)", param="model"
    )
