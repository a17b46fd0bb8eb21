"""Who sends a request, as far as this server cares. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a key stands for. Keys of one `name` are one tenant.

    `salt` parts what is kept of requests (KV, recorded replies, stored responses) from that of
    others; "" is the store's own. `models` are the ids of those that it may use, None for all.
    `admin` may look into the server and change it, `pull` may have models fetched that the hub does
    not have, and does so by naming them. `owner` is whose the pins of its requests are, by
    which the store counts quotas: it depends on the name alone. `priority` is that of its requests
    where they say nothing, and the lowest number that they may say; None: 0, and any.
    """

    name: str
    salt: str = ""
    models: frozenset[str] | None = None
    admin: bool = False
    owner: str = ""
    pull: bool = False
    priority: int | None = None

    def may_use(self, model_id: str) -> bool:
        return self.models is None or model_id in self.models


ANONYMOUS = Tenant("anonymous", admin=True)
"""Everybody, where no keys are configured."""


def salt_of(name: str) -> str:
    """The salt of a tenant that is given none: its own, and that of the store for who has no name."""
    return "" if name == DEFAULT_NAME else hashlib.sha256(b"tenant\0" + name.encode()).hexdigest()


def owner_of(name: str) -> str:
    """Whose pins those of a tenant are. Pins lie in the store's tiers, where nothing names people."""
    return "" if name == DEFAULT_NAME else hashlib.sha256(b"owner\0" + name.encode()).hexdigest()
