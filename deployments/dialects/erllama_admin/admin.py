"""What this API needs of a model beyond what all dialects need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol, runtime_checkable

from cache_store import CachedPrefix, ImportReport, PinInfo
from deployments.http.answers import Answer
from deployments.http.ports import ServedModel
from deployments.http.tenant_client import TenantClient
from erllama.errors import NotSupported, RequestError


class Conflict(RequestError):
    """What is asked for is possible, but not as things stand."""

    http_status = 409
    code = "conflict"


@runtime_checkable
class PrefixPort(Protocol):
    """What `ModelClient` offers for stored prefixes. Every method may raise an `ErllamaError`, ends at a
    deadline, and never wakes a model that is scaled to zero.
    """

    async def prefixes(self, limit: int, order: str) -> list[Answer[tuple[CachedPrefix, ...]]]:
        """What each replica knows of what is stored."""

    async def cached_prefix(self, key: str) -> CachedPrefix:
        """One prefix. Raises `PrefixNotFound`."""

    async def pin_prefix(
        self, prefix: str | Sequence[int], ttl_s: float, name: str = "", owner: str = ""
    ) -> list[Answer[PinInfo]]:
        """Pin a prefix, by its key or its ids, on each replica. Raises when none could."""

    async def unpin(self, name: str, owner: str = "") -> list[Answer[bool]]:
        """Take a pin back on each replica; whether it knew one."""

    async def pins(self) -> list[Answer[tuple[PinInfo, ...]]]:
        """The pins that each replica knows."""

    async def evict_prefix(self, key: str) -> list[Answer[int]]:
        """The bytes that each replica deleted. Raises when none could."""

    def export_prefix(self, key: str) -> AsyncGenerator[bytes, None]:
        """A prefix as one file, in small pieces. Raises `PrefixNotFound` before the first one."""

    async def import_prefix(self, chunks: AsyncIterator[bytes]) -> ImportReport:
        """Take such a file over. Raises `InvalidParameter` for one that does not verify."""

    async def fork_session(self, session_id: str, new_session_id: str) -> bool:
        """A second session; whether its KV was copied in the context."""

    async def states(self) -> list[Answer[Any]]:
        """What each replica does and counts: dataclasses."""


def prefixes_of(model: ServedModel) -> PrefixPort:
    """Raises `NotSupported` for a model without."""
    client = model.client.shared if isinstance(model.client, TenantClient) else model.client
    if isinstance(client, PrefixPort):
        return client
    raise NotSupported(f"the stored prefixes of {model.id} cannot be managed", param="model")
