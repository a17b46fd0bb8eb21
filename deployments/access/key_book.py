"""Whose key a request shows."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.access.keys import KeySpec
from deployments.access.rate_limit import Clock, RateLimit
from deployments.access.tenant import ANONYMOUS, Tenant
from erllama.api_keys import key_hash
from erllama.errors import RequestError


class TenantNotFound(RequestError):
    """No key that is configured has this name."""

    http_status = 404
    code = "tenant_not_found"


@dataclass(frozen=True, slots=True)
class Access:
    """What a key opens: for whom, and how much of it."""

    tenant: Tenant
    rate_limit: RateLimit = field(default_factory=RateLimit, compare=False)


NOBODY = Access(Tenant("-", models=frozenset()))
"""Who shows no good key, on the routes that need none."""


class KeyBook:
    """All keys, each with the limits that it has used up so far. Used on one event loop."""

    def __init__(self, specs: Iterable[KeySpec] = (), *, clock: Clock = time.monotonic_ns) -> None:
        """Of a key that is listed twice the first entry counts."""
        self._known = [
            (spec.hash, Access(spec.tenant, RateLimit(spec.requests_per_minute, spec.tokens_per_minute, clock=clock)))
            for spec in specs
        ]
        self._open = None if self._known else Access(ANONYMOUS)
        self._tenants: dict[str, Tenant] = {}
        for tenant in [access.tenant for _, access in self._known] or [ANONYMOUS]:
            self._tenants.setdefault(tenant.name, tenant)

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """By name; of a name with several salts that of the first key."""
        return self._tenants

    def tenant(self, name: str) -> Tenant:
        """The tenant of this name. Raises `TenantNotFound`."""
        if name not in self._tenants:
            raise TenantNotFound(
                f"There is no tenant {name[:80]!r}; there are: {', '.join(self._tenants)}", param="tenant"
            )
        return self._tenants[name]

    def find(self, presented: Iterable[bytes]) -> Access | None:
        """What the first good one of the `presented` keys opens, None if all are wrong; everything
        where no keys are configured.

        Hashes are compared, all of them, each in constant time: neither length nor beginning of a
        key shows in the time.
        """
        if self._open is not None:
            return self._open
        hashes = [key_hash(key) for key in presented]
        found = [access for shown in hashes for known, access in self._known if hmac.compare_digest(shown, known)]
        return found[0] if found else None
