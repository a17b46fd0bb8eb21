"""Which documents go. Pure: two processes that see the same files choose the same ones."""

from __future__ import annotations

from collections.abc import Iterable

from cache_store.documents.document import is_document
from cache_store.tiers.base import Stat

MAX_FILES = 65_536
"""However small they are: whoever keeps blocks in the tier lists them, too."""

_BATCH = 1 / 16  # of the budget: a full store makes room now and then, not for each document


def victims(
    found: Iterable[Stat], now_s: float, max_bytes: int, ttl_s: float, max_files: int = MAX_FILES
) -> list[Stat]:
    """Those that are older than `ttl_s`; and where the others exceed the budget, the oldest of them."""
    documents = sorted((stat for stat in found if is_document(stat.name)), key=lambda s: (s.modified_s, s.name))
    n_expired = sum(now_s - stat.modified_s > ttl_s for stat in documents)
    going, left = documents[:n_expired], documents[n_expired:]
    n_bytes = sum(stat.n_bytes for stat in left)
    if n_bytes <= max_bytes and len(left) <= max_files:
        return going
    most_bytes, most_files = max_bytes - int(max_bytes * _BATCH), max_files - int(max_files * _BATCH)
    for number, stat in enumerate(left):
        if n_bytes <= most_bytes and len(left) - number <= most_files:
            break
        going.append(stat)
        n_bytes -= stat.n_bytes
    return going
