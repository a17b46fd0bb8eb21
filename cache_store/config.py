"""How a store and its tiers are set up. Bad values raise `ValueError` naming the field and its
limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlsplit

from cache_store.format.keys import BLOCK_TOKENS

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
MAX_READS = 64
"""Reads at once: each has a thread, and a connection where the tier has connections."""
_LOCAL_SCHEMES = ("", "file", "local")


def parse_bytes(size: int | str) -> int:
    """The number of bytes that "2GiB", "500 MB", "1.5TB" or a number stands for. ValueError for
    anything else, and for less than one.
    """
    match = _SIZE.match(size.strip()) if isinstance(size, str) else None
    if match is not None and match[2].lower() in _UNITS:
        n_bytes = int(Decimal(match[1]) * _UNITS[match[2].lower()])
    elif isinstance(size, int) and not isinstance(size, bool):
        n_bytes = size
    else:
        raise ValueError(
            f'{size!r} is not a size: write a number of bytes, or a number with a unit, as in "500MB" or "2GiB"'
        )
    if n_bytes < 1:
        raise ValueError(f"{size!r} is not a size: it must be at least one byte")
    return n_bytes


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier as an operator writes it.

    url              where; credentials do not belong in it
    max_bytes        budget: a number or "20GiB"; None: no limit of ours
    compression      of the objects written to it
    storage_options  arguments of the fsspec driver (endpoint_url, key, secret, ...); never logged
    """

    url: str
    max_bytes: int | str | None = None
    compression: Literal["zstd", "lz4"] | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not self.url.strip():
            raise ValueError(f"url: a tier needs a URL or a path, not {self.url!r}")
        self._check_url()
        if self.compression not in (None, "zstd", "lz4"):
            raise ValueError(f'compression: {self.compression!r} is none of "zstd", "lz4", null')
        if not isinstance(self.storage_options, Mapping) or not all(
            isinstance(key, str) for key in self.storage_options
        ):
            raise ValueError("storage_options: must be a mapping of names to values")
        if self.is_local and self.storage_options:
            raise ValueError(f"storage_options: the local directory {self.url!r} takes none")
        try:
            _ = self.budget_bytes
        except ValueError as failure:
            raise ValueError(f"max_bytes: {failure}") from None

    def _check_url(self) -> None:
        if "::" in self.url:
            raise ValueError(
                f"url: chained URLs are not supported (they cache, and a tier must see what others write): {self.url!r}"
            )
        if self.scheme and urlsplit(self.url).password is not None:
            raise ValueError(f"url: the {self.scheme} URL holds a password; put credentials into storage_options")
        if self.scheme and self.is_local and not self.path.startswith(("/", "~")):
            raise ValueError(
                f"url: {self.url!r} is not absolute; a local URL has three slashes, as in file:///dev/shm/cache"
            )

    @property
    def scheme(self) -> str:
        """Lower-case; "" for a plain path."""
        scheme, separator, _ = self.url.partition("://")
        return scheme.lower() if separator else ""

    @property
    def path(self) -> str:
        """What follows the scheme."""
        return self.url.partition("://")[2] if self.scheme else self.url

    @property
    def is_local(self) -> bool:
        return self.scheme in _LOCAL_SCHEMES

    @property
    def budget_bytes(self) -> int | None:
        return None if self.max_bytes is None else parse_bytes(self.max_bytes)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """`tiers` fastest first: writes go to the first and are copied down to the others one after
    another.
    """

    tiers: tuple[TierConfig, ...]
    salt: str = ""  # isolates tenants: the same prompt under another salt is another key
    queue_bytes: int = 256 << 20  # what may wait for the writer: 20 blocks of an 8B model, half a second of disk writes
    min_probe_tokens: int = BLOCK_TOKENS  # nobody saves a prompt shorter than this, so looking for one is wasted I/O
    copy_queue: int = 8192  # objects (names only) that may wait to be copied down: more than an hour of saves
    # what may wait to be copied up into the fastest tier: read buffers that readers cannot use
    # meanwhile
    promote_bytes: int = 64 << 20
    reads_in_flight: int = 8  # objects that one restore reads at once from a tier that is not of this machine
    read_ahead_bytes: int = 256 << 20  # what all restores hold of objects that are read before their turn
    write_attempts: int = 3  # a failed write is tried this often
    retry_s: float = 0.2  # before the second attempt; doubles with each further one
    # for single calls that nobody gave a deadline for (evict_bytes); claims: a second at most
    op_timeout_s: float = 5.0
    rescan_s: float = 300.0  # how long the index may be wrong about what other processes wrote or removed
    # of a tier's budget: once we wrote that much, others probably did too, and only a listing tells
    rescan_share: float = 0.02
    # what a crash may cost the next start: a listing finds everything but the tokens and the hits
    snapshot_s: float = 900.0
    pin_share: float = 0.25  # of a tier's budget: what pins may keep from being evicted, all owners together
    pin_quota_bytes: int | str | None = None  # what one owner may pin in a tier: a number or "2GiB"; None: the share

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ValueError("tiers: at least one is needed")
        for name, low in (
            ("queue_bytes", 1 << 20),
            ("copy_queue", 1),
            ("promote_bytes", 0),
            ("reads_in_flight", 1),
            ("read_ahead_bytes", 0),
            ("write_attempts", 1),
            ("min_probe_tokens", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        if self.reads_in_flight > MAX_READS:
            raise ValueError(f"reads_in_flight={self.reads_in_flight}: must be at most {MAX_READS}")
        for name in ("retry_s", "op_timeout_s", "rescan_s", "snapshot_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if not 0 < self.rescan_share <= 1:
            raise ValueError(f"rescan_share={self.rescan_share}: must be in (0, 1]")
        if not 0 <= self.pin_share <= 0.9:
            raise ValueError(f"pin_share={self.pin_share}: must be in [0, 0.9], so that a full tier can evict")
        try:
            _ = self.owner_pin_bytes
        except ValueError as failure:
            raise ValueError(f"pin_quota_bytes: {failure}") from None

    @property
    def owner_pin_bytes(self) -> int | None:
        return None if self.pin_quota_bytes is None else parse_bytes(self.pin_quota_bytes)
