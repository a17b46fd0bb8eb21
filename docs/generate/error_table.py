"""What a client is told when something fails, from the classes of errors."""

from __future__ import annotations

import inspect

from deployments.access import rate_limit
from deployments.http import errors as http_errors
from deployments.http import tenant_client
from deployments.hub import messages as hub_messages
from docs.generate.config_reference import cell
from erllama import errors
from erllama.errors import ErllamaError, RequestError
from erllama.hub import errors as pull_errors

_MODULES = (errors, http_errors, tenant_client, rate_limit, hub_messages, pull_errors)


def error_classes() -> list[type[ErllamaError]]:
    """By status, then by code; the two that only others derive from are left out."""
    found = {
        kind
        for module in _MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, ErllamaError)
    }
    return sorted(found - {ErllamaError, RequestError}, key=lambda kind: (kind.http_status, kind.code))


def error_table() -> str:
    """A row for each."""
    rows = ["| status | code | | another replica goes on |", "|---|---|---|---|"]
    for kind in error_classes():
        meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| {kind.http_status} | `{kind.code}` | {cell(meaning)} | {'yes' if kind.resumable else ''} |")
    return "\n".join(rows)
