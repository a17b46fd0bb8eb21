"""The prefixes that a newcomer should have ready: those that are asked for most, each once."""

import numpy as np
import pytest

from cache_store import Store, StoreConfig, TierConfig, TokenChain
from cache_store.testing import Fault
from tests.support.store_kit import FaultyTiers, opened, prompt, restore, rows_block, written


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), retry_s=0.01)


def used(store: Store, tokens: np.ndarray, times: int) -> None:
    for _ in range(times):
        restore(store, store.root("model"), tokens)


def test_the_most_used_come_first(config):
    with opened(config) as store:
        prompts = [prompt(700, seed) for seed in range(4)]
        for tokens in prompts:
            written(store, tokens)
        used(store, prompts[2], 6)
        used(store, prompts[1], 3)
        hottest = store.hottest(store.root("model"), 2)
        assert [tokens.tolist() for tokens in hottest] == [prompts[2].tolist(), prompts[1].tolist()]
        assert hottest[0].dtype == np.uint32


def test_a_prefix_that_many_share_counts_once(config):
    """Five conversations with one system prompt, and one with another that is used less."""
    with opened(config) as store:
        system, other = prompt(512), prompt(512, seed=2)
        chats = [np.concatenate([system, prompt(200, seed=10 + n)]) for n in range(5)]
        for tokens in (*chats, other):
            written(store, tokens)
            used(store, tokens, 1)
        best, second = store.hottest(store.root("model"), 2)
        assert best.tolist() in [chat.tolist() for chat in chats]
        assert second.tolist() == other.tolist()


def test_none_is_the_beginning_of_another(config):
    with opened(config) as store:
        root, tokens = store.root("model"), prompt(900)
        for upto in (300, 600, 900):
            written(store, tokens[:upto])
        written(store, np.append(tokens[:700], prompt(100, seed=3)))
        store.save([rows_block(root, tokens, 768, 820)])  # the last block, cut otherwise
        assert store.flush(10)
        hottest = [tuple(found) for found in store.hottest(root, 10)]
        assert sorted(map(len, hottest)) == [800, 900]


def test_tokens_that_the_index_does_not_know_are_read(config, tmp_path):
    with opened(config) as store:
        written(store, prompt(700), end=True)
    for snapshot in tmp_path.glob("tier/index/*"):
        snapshot.unlink()
    with opened(config) as again:
        (found,) = again.hottest(again.root("model"), 5)
        assert found.tolist() == prompt(700).tolist()


def test_prefixes_whose_tokens_cannot_be_had_in_time_are_left_out(config, tmp_path):
    with opened(config) as store:
        written(store, prompt(700))
    for snapshot in tmp_path.glob("tier/index/*"):
        snapshot.unlink()
    tiers = FaultyTiers()
    with opened(config, open=tiers) as again:
        written(again, prompt(300, seed=2))
        tiers.tiers[0].inject("read_head", Fault.HANG, times=None)
        assert [found.tolist() for found in again.hottest(again.root("model"), 5, deadline_s=0.2)] == [
            prompt(300, seed=2).tolist()
        ]
        tiers.tiers[0].heal()
        assert len(again.hottest(again.root("model"), 5)) == 2


def test_what_a_lost_block_cut_off_is_left_out(config, tmp_path):
    with opened(config) as store:
        root = store.root("model")
        written(store, prompt(1000))
        written(store, prompt(300, seed=2))
        lost = store.lookup(TokenChain(root, prompt(1000)), deadline_s=5).hops[1].id
        (tmp_path / "tier" / lost.name).unlink()
        store.rescan()
        assert sorted(map(len, store.hottest(root, 5))) == [256, 300]


def test_other_roots_and_empty_stores_have_nothing(config):
    with opened(config) as store:
        assert store.hottest(store.root("model"), 5) == []
        written(store, prompt(300))
        assert store.hottest(store.root("other"), 5) == []
        assert store.hottest(store.root("model"), 0) == []
