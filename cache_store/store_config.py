"""How a store is set up. Bad values raise `ValueError` naming the field and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from cache_store.block import BLOCK_TOKENS
from cache_store.tier import TierConfig


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """`tiers` fastest first: writes go to the first and are copied down to the others one after another."""

    tiers: tuple[TierConfig, ...]
    salt: str = ""  # isolates tenants: the same prompt under another salt is another key
    queue_bytes: int = 256 << 20  # what may wait for the writer: 20 blocks of an 8B model, half a second of disk writes
    min_probe_tokens: int = BLOCK_TOKENS  # nobody saves a prompt shorter than this, so looking for one is wasted I/O
    copy_queue: int = 8192  # objects (names only) that may wait to be copied down: more than an hour of saves
    promote_bytes: int = 64 << 20  # what may wait to be copied up into the fastest tier: read buffers that readers cannot use meanwhile
    write_attempts: int = 3  # a failed write is tried this often
    retry_s: float = 0.2  # before the second attempt; doubles with each further one
    op_timeout_s: float = 5.0  # for single calls that nobody gave a deadline for (evict_bytes); claims: a second at most
    rescan_s: float = 300.0  # how long the index may be wrong about what other processes wrote or removed
    rescan_share: float = 0.02  # of a tier's budget: once we wrote that much, others probably did too, and only a listing tells
    checkpoint_s: float = 900.0  # what a crash may cost the next start: a listing finds everything but the tokens and the hits

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ValueError("tiers: at least one is needed")
        for name, low in (
            ("queue_bytes", 1 << 20),
            ("copy_queue", 1),
            ("promote_bytes", 0),
            ("write_attempts", 1),
            ("min_probe_tokens", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        for name in ("retry_s", "op_timeout_s", "rescan_s", "checkpoint_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if not 0 < self.rescan_share <= 1:
            raise ValueError(f"rescan_share={self.rescan_share}: must be in (0, 1]")
