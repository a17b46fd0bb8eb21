"""Stores for the engine's tests, sound and faulty, and spies on them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_store import Block, Kind, Store, StoreConfig, TierConfig, open_tier
from cache_store.testing import FaultyTier
from tests.support.flow_kit import (
    WAIT_S,
    Faulty,
    lookups_of,
    open_store,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "kv") as store:
        yield store


@pytest.fixture
def saves(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[tuple[int, int]]]]:
    """Every hand-over to the store: the reason, and (start, tokens) of its rows."""
    calls: list[tuple[str, list[tuple[int, int]]]] = []
    save = store.save

    def spy(blocks: list[Block], *, wait_s: float = 0.0) -> int:
        calls.append((str(blocks[0].reason), [(b.id.start, b.id.n_tokens) for b in blocks if b.id.kind is Kind.ROWS]))
        return save(blocks, wait_s=wait_s)

    monkeypatch.setattr(store, "save", spy)
    return calls


@pytest.fixture
def lookups(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return lookups_of(store, monkeypatch)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    tiers: list[FaultyTier] = []

    def open(config: TierConfig) -> FaultyTier:
        tiers.append(FaultyTier(open_tier(config)))
        return tiers[-1]

    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "kv")),), retry_s=0.01, op_timeout_s=0.2)
    store = Store(config, open=open)
    assert store.wait_loaded(WAIT_S)
    yield Faulty(store, tiers[0])
    tiers[0].heal()
    tiers[0].release()
    store.close(WAIT_S)
