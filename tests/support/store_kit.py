"""Prompts, blocks and stores for the tests of the store: rows are a function of (token, position,
column), so a wrong row shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cache_store.config import StoreConfig, TierConfig
from cache_store.format.block import Block, BlockId
from cache_store.format.keys import ChainKey, TokenChain
from cache_store.store import Store
from cache_store.testing import FaultyTier
from cache_store.tiers.open import open_tier

BLOCK = 256
COLUMNS = ("k0", "v0")
ROW_BYTES = (16, 8)
N_VOCAB = 32


def prompt(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50_000, n, dtype=np.uint32)


def rows_of(tokens: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, ...]:
    positions = np.arange(start, stop, dtype=np.uint64)[:, None]
    ids = tokens[start:stop].astype(np.uint64)[:, None]
    return tuple(
        ((ids * 31 + positions * 7 + np.arange(width, dtype=np.uint64) * 3 + column * 101) % 251).astype(np.uint8)
        for column, width in enumerate(ROW_BYTES)
    )


def logits_of(tokens: np.ndarray) -> np.ndarray:
    return np.arange(N_VOCAB, dtype=np.float32) + np.float32(tokens.sum() % 1000)


def key_of(root: ChainKey, tokens: np.ndarray) -> ChainKey:
    return TokenChain(root, tokens).key_at(len(tokens))


def rows_block(root: ChainKey, tokens: np.ndarray, start: int, stop: int, reason: str = "cold") -> Block:
    return Block(
        BlockId.of_rows(TokenChain(root, tokens), start, stop),
        tokens[start:stop],
        COLUMNS,
        rows_of(tokens, start, stop),
        reason=reason,
        created_s=1.0,
    )


def end_block(root: ChainKey, tokens: np.ndarray, *, checkpoint: bool = False) -> Block:
    state = (np.arange(300) + len(tokens)).astype(np.uint8) if checkpoint else None
    return Block(
        BlockId.of_end(TokenChain(root, tokens)),
        tokens[:0],
        logits=logits_of(tokens),
        checkpoint=state,
        reason="cold",
        created_s=1.0,
    )


def opened(config: StoreConfig, **options: Any) -> Store:
    """A store that knows what lies on its tiers."""
    store = Store(config, **options)
    assert store.wait_loaded(10)
    return store


def written(store: Store, tokens: np.ndarray, upto: int | None = None, **options: Any) -> None:
    """Save and wait until it is on the tiers."""
    save(store, store.root("model"), tokens, upto, **options)
    assert store.flush(10)


def save(
    store: Store,
    root: ChainKey,
    tokens: np.ndarray,
    upto: int | None = None,
    *,
    end: bool = False,
    checkpoint: bool = False,
) -> int:
    """Save what is missing of tokens[:upto]; returns how many objects were accepted."""
    upto = len(tokens) if upto is None else upto
    blocks = [
        rows_block(root, tokens, p.start, p.start + p.n_tokens) for p in store.missing(TokenChain(root, tokens), upto)
    ]
    if end:
        blocks.append(end_block(root, tokens[:upto], checkpoint=checkpoint))
    return store.save(blocks)


class FaultyTiers:
    """Opens tiers that fail on command; `tiers` in the order in which they were opened."""

    def __init__(self) -> None:
        self.tiers: list[FaultyTier] = []

    def __call__(self, config: TierConfig) -> FaultyTier:
        self.tiers.append(FaultyTier(open_tier(config)))
        return self.tiers[-1]


class Restored:
    """A consumer that checks every row that it is given against what the tokens say."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.n_tokens = 0

    def __call__(self, block: Block, n_use: int) -> None:
        assert block.id.start == self.n_tokens, "blocks come in order, without a gap"
        stop = self.n_tokens + n_use
        assert np.array_equal(block.tokens[:n_use], self.tokens[self.n_tokens : stop])
        for got, want in zip(block.rows, rows_of(self.tokens, self.n_tokens, stop), strict=True):
            assert np.array_equal(got[:n_use], want)
        self.n_tokens = stop


def restore(store: Store, root: ChainKey, tokens: np.ndarray, **options: object) -> Restored:
    plan = store.lookup(TokenChain(root, tokens), deadline_s=20.0, **options)  # type: ignore[arg-type]
    restored = Restored(tokens)
    fetched = store.read(plan, restored, deadline_s=20.0)
    assert fetched.n_tokens == restored.n_tokens
    store.check_integrity()
    return restored


def files_below(directory: object, suffix: str = ".arrow") -> list[object]:
    return sorted(p for p in directory.rglob("*") if p.name.endswith(suffix))  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """For what background threads do: polls, and fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
