"""Whose prefixes and sessions a request means."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from deployments.access.tenant import Tenant
from deployments.http.middleware import key_book, require_admin, tenant_of
from erllama.errors import InvalidParameter


def asked_tenant(request: Request, in_body: str | None = None) -> Tenant:
    """The tenant that the query, or the body, names; without a name that of the key. Raises
    `AdminKeyRequired`, `TenantNotFound`, and `InvalidParameter` for two names.
    """
    require_admin(request)
    in_query = request.query_params.get("tenant")
    if None not in (in_query, in_body) and in_query != in_body:
        raise InvalidParameter("tenant of the query and of the body are not the same", param="tenant")
    name = in_body if in_query is None else in_query
    return tenant_of(request) if name in (None, tenant_of(request).name) else key_book(request).tenant(str(name))


def owner_names(request: Request) -> Mapping[str, str]:
    """The names of tenants by what pins call their owners."""
    return {tenant.owner: name for name, tenant in key_book(request).tenants.items()}
