"""The keys of the KV store, which may leave open where it lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from cache_store import StoreConfig, TierConfig
from erllama.gguf.fingerprint import user_cache_dir

STRICT = ConfigDict(extra="forbid", protected_namespaces=())
"""How every part of the configuration is read: a key that nobody knows is an error."""

_SHM_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StoreSpec(StoreConfig):
    """The KV store of all models: a `StoreConfig` that may leave its tiers open. None stands for the
    `default_tiers` of the machine where a process of ours starts, an empty list for no store."""

    tiers: tuple[TierConfig, ...] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._with(self.tiers or default_tiers())  # raises for a wrong value

    def config(self) -> StoreConfig | None:
        """What the store takes here; None without tiers."""
        tiers = default_tiers() if self.tiers is None else self.tiers
        return self._with(tiers) if tiers else None

    def _with(self, tiers: tuple[TierConfig, ...]) -> StoreConfig:
        values = {name: getattr(self, name) for name in StoreConfig.__dataclass_fields__}
        return StoreConfig(**{**values, "tiers": tiers})


def default_tiers() -> tuple[TierConfig, ...]:
    """What works on a laptop: memory of the machine that all its processes share, then the user's
    cache directory."""
    tiers: list[TierConfig] = []
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        size = shutil.disk_usage(shared).total
        tiers.append(TierConfig(f"file://{shared}/erllama-{os.getuid()}", max_bytes=min(_SHM_BYTES, size // 4)))
    tiers.append(TierConfig(f"file://{user_cache_dir()}/kv", max_bytes="20GiB"))
    return tuple(tiers)
