"""The stored prefixes and sessions of one tenant."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from cache_store import CachedPrefix, ImportReport, PinInfo
from deployments.access.tenant import Tenant
from deployments.dialects.erllama_admin.admin import PrefixPort
from deployments.http.answers import Answer
from deployments.http.ports import ServedModel
from deployments.http.tenant_client import TenantClient
from erllama.errors import NotSupported


@dataclass(frozen=True, slots=True)
class TenantPrefixes:
    """Calls of `PrefixPort` under a tenant's salt; pins are the tenant's own. What is another's does not
    exist here. Raises what the port raises.
    """

    port: PrefixPort
    tenant: Tenant

    async def prefixes(self, limit: int, order: str) -> list[Answer[tuple[CachedPrefix, ...]]]:
        return await self.port.prefixes(limit, order, salt=self.tenant.salt)

    async def cached_prefix(self, key: str) -> CachedPrefix:
        return await self.port.cached_prefix(key, salt=self.tenant.salt)

    async def pin_prefix(self, prefix: str | Sequence[int], ttl_s: float, name: str) -> list[Answer[PinInfo]]:
        return await self.port.pin_prefix(prefix, ttl_s, name, self.tenant.owner, salt=self.tenant.salt)

    async def unpin(self, name: str) -> list[Answer[bool]]:
        return await self.port.unpin(name, self.tenant.owner, salt=self.tenant.salt)

    async def pins(self) -> list[Answer[tuple[PinInfo, ...]]]:
        """All pins of the tenant's prefixes, whoever owns them."""
        return await self.port.pins(salt=self.tenant.salt)

    async def evict_prefix(self, key: str) -> list[Answer[int]]:
        return await self.port.evict_prefix(key, salt=self.tenant.salt)

    def export_prefix(self, key: str) -> AsyncGenerator[bytes, None]:
        return self.port.export_prefix(key, salt=self.tenant.salt)

    async def import_prefix(self, chunks: AsyncIterator[bytes]) -> ImportReport:
        return await self.port.import_prefix(chunks, salt=self.tenant.salt)

    async def fork_session(self, session_id: str, new_session_id: str) -> bool:
        return await self.port.fork_session(session_id, new_session_id, salt=self.tenant.salt)


def port_of(model: ServedModel) -> PrefixPort:
    """What tells of all tenants. Raises `NotSupported` for a model without."""
    return _client_of(model)[0]


def prefixes_of(model: ServedModel) -> TenantPrefixes:
    """Those of the tenant as whose `ModelRegistry.of` gave the model. Raises `NotSupported`."""
    return TenantPrefixes(*_client_of(model))


def _client_of(model: ServedModel) -> tuple[PrefixPort, Tenant]:
    client = model.client
    if isinstance(client, TenantClient):
        port = client.shared
        if isinstance(port, PrefixPort):
            return port, client.tenant
    raise NotSupported(f"the stored prefixes of {model.id} cannot be managed", param="model")
