"""What a lookup asks of which tier: an object store only for what is worth its latency."""

from collections import Counter

import numpy as np
import pytest

from cache_store import BLOCK_TOKENS, Block, BlockId, Store, StoreConfig, TierConfig, TokenChain
from cache_store.testing import Fault, FaultyTier
from cache_store.tiers.open import open_tier


class Spy:
    """Opens tiers whose calls are counted."""

    def __init__(self) -> None:
        self.tiers: list[FaultyTier] = []

    def __call__(self, config: TierConfig) -> FaultyTier:
        self.tiers.append(FaultyTier(open_tier(config)))
        return self.tiers[-1]


def saved(store: Store, tokens: np.ndarray) -> str:
    root = store.root("namespace")
    pieces = store.missing(TokenChain(root, tokens))
    rows = np.zeros((len(tokens), 8), dtype=np.uint8)
    blocks = [
        Block(p, tokens[p.start : p.start + p.n_tokens], columns=("k0",), rows=(rows[p.start : p.start + p.n_tokens],))
        for p in pieces
    ]
    assert store.save(blocks) == len(blocks)
    assert store.flush(10)
    return root


@pytest.mark.parametrize(
    ("n_more", "asks"), [(16, False), (BLOCK_TOKENS - 1, False), (BLOCK_TOKENS, True), (1000, True)]
)
def test_an_object_store_is_asked_only_where_a_block_could_be_won(tmp_path, n_more, asks):
    spy = Spy()
    config = StoreConfig(tiers=(TierConfig(str(tmp_path)), TierConfig(f"memory://probes{n_more}")))
    tokens = np.arange(600, dtype=np.uint32)
    with Store(config) as store:
        root = saved(store, tokens)  # leaving copies it down: nothing but lookups touches the tiers afterwards
    with Store(config, open=spy) as store:
        assert store.wait_loaded(10)
        remote = spy.tiers[1]
        before = Counter(remote.calls)
        longer = np.concatenate([tokens, np.arange(5000, 5000 + n_more, dtype=np.uint32)])
        assert store.lookup(TokenChain(root, longer), deadline_s=5).n_tokens == 600
        asked = {name: n for name, n in (remote.calls - before).items() if name in ("list", "stat")}
    assert bool(asked) == asks, asked


class Overtaken(FaultyTier):
    """A tier that somebody else lists into the index between a lookup's question and its answer."""

    overtake = staticmethod(lambda: None)

    def list(self, prefix: str = ""):
        stats = list(super().list(prefix))
        if prefix:
            self.overtake()
        yield from stats


def test_what_another_thread_has_listed_meanwhile_is_found(tmp_path):
    tokens = np.arange(999, dtype=np.uint32)
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path)),))) as store:
        root = saved(store, tokens)
    tier = Overtaken(open_tier(TierConfig(str(tmp_path))))
    tier.inject("list", Fault.HANG)  # the listing at the start: what the index knows, this lookup found
    store = Store(StoreConfig(tiers=(TierConfig(str(tmp_path)),), op_timeout_s=30), open=lambda _: tier)
    try:
        assert tier.wait_hanging()

        def listed() -> None:
            for stat in open_tier(TierConfig(str(tmp_path))).list(root):
                if (id := BlockId.parse(stat.name)) is not None:
                    store._stack.index.add(id, 0, stat.n_bytes)

        tier.overtake = listed
        assert store.lookup(TokenChain(root, tokens), deadline_s=20).n_tokens == 999
    finally:
        tier.heal()
        tier.release()
        store.close(10)
