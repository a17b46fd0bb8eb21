"""Which documents go. Pure: two processes that see the same files choose the same ones."""

from __future__ import annotations

from collections.abc import Iterable

from cache_store.documents.document import is_document
from cache_store.tiers.base import Stat

_BATCH = 1 / 16  # of the budget: a full store makes room now and then, not for each document


def victims(found: Iterable[Stat], now_s: float, max_bytes: int, ttl_s: float) -> list[Stat]:
    """Those that are older than `ttl_s`; and where the others exceed the budget, the oldest of them."""
    documents = sorted((stat for stat in found if is_document(stat.name)), key=lambda s: (s.modified_s, s.name))
    left = sum(stat.n_bytes for stat in documents)
    most = max_bytes
    going: list[Stat] = []
    for stat in documents:
        expired = now_s - stat.modified_s > ttl_s
        if not expired and left <= most:
            break
        if not expired:
            most = max_bytes - int(max_bytes * _BATCH)
        going.append(stat)
        left -= stat.n_bytes
    return going
