"""What this API needs of a model beyond what all dialects need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol, runtime_checkable

from cache_store import CachedPrefix, ImportReport, PinInfo
from deployments.http.answers import Answer
from erllama.diagnosis.record import PromptRecord
from erllama.errors import RequestError


class Conflict(RequestError):
    """What is asked for is possible, but not as things stand."""

    http_status = 409
    code = "conflict"


@runtime_checkable
class PrefixPort(Protocol):
    """What `ModelClient` offers for stored prefixes. Every method may raise an `ErllamaError`, ends at a
    deadline, and never wakes a model that is scaled to zero. `salt` says whose prefixes and sessions are
    meant: those of the requests that have it.
    """

    async def prefixes(self, limit: int, order: str, *, salt: str = "") -> list[Answer[tuple[CachedPrefix, ...]]]:
        """What each replica knows of what is stored."""

    async def cached_prefix(self, key: str, *, salt: str = "") -> CachedPrefix:
        """One prefix. Raises `PrefixNotFound`."""

    async def pin_prefix(
        self, prefix: str | Sequence[int], ttl_s: float, name: str = "", owner: str = "", *, salt: str = ""
    ) -> list[Answer[PinInfo]]:
        """Pin a prefix, by its key or its ids, on each replica. Raises when none could."""

    async def unpin(self, name: str, owner: str = "", *, salt: str = "") -> list[Answer[bool]]:
        """Take a pin back on each replica; whether it knew one."""

    async def pins(self, *, salt: str = "") -> list[Answer[tuple[PinInfo, ...]]]:
        """The pins that each replica knows."""

    async def evict_prefix(self, key: str, *, salt: str = "") -> list[Answer[int]]:
        """The bytes that each replica deleted. Raises when none could."""

    def export_prefix(self, key: str, *, salt: str = "") -> AsyncGenerator[bytes, None]:
        """A prefix as one file, in small pieces. Raises `PrefixNotFound` before the first one."""

    async def import_prefix(self, chunks: AsyncIterator[bytes], *, salt: str = "") -> ImportReport:
        """Take such a file over. Raises `InvalidParameter` for one that does not verify."""

    async def fork_session(self, session_id: str, new_session_id: str, *, salt: str = "") -> bool:
        """A second session; whether its KV was copied in the context."""

    async def states(self) -> list[Answer[Any]]:
        """What each replica does and counts: dataclasses."""


@runtime_checkable
class RequestPort(Protocol):
    """What `ModelClient` offers for the last requests. Ends at a deadline and wakes no model. `salt` None
    means the requests of all tenants.
    """

    async def requests(self, limit: int, *, salt: str | None = "") -> list[Answer[list[PromptRecord]]]:
        """Those of each replica, newest first."""

    async def why(self, request_id: str, *, salt: str | None = "") -> PromptRecord:
        """One request. Raises `RequestNotFound`."""
