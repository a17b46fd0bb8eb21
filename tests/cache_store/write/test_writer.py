"""Saving: bounded, in the background, once; what cannot be written is dropped, counted and waited
for by nobody.
"""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from cache_store import Store, StoreConfig, TierConfig, TokenChain, root_key
from cache_store.testing import Fault
from cache_store.tiers.open import open_tier
from cache_store.tiers.remote import RemoteTier
from cache_store.write.staging import StagingPool
from tests.support.bounds import NO_WAIT_S
from tests.support.store_kit import FaultyTiers, files_below, prompt, restore, rows_block, save, wait_until


@pytest.fixture
def faulty():
    return FaultyTiers()


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), TierConfig(str(tmp_path / "slow"))), retry_s=0.01)


@pytest.fixture
def store(config, faulty):
    store = Store(config, open=faulty)
    assert store.wait_loaded(10)
    yield store
    for tier in faulty.tiers:
        tier.heal()
    store.close(5)


@pytest.fixture
def root(store):
    return store.root("model")


def test_the_callers_arrays_are_free_after_a_save(store, root):
    tokens = prompt(256)
    block = rows_block(root, tokens, 0, 256)
    assert store.save([block]) == 1
    for rows in block.rows:
        rows[:] = 255
    restore(store, root, tokens)
    assert store.flush(10)
    assert restore(store, root, tokens).n_tokens == 256


def test_what_finds_no_room_in_the_queue_is_dropped_with_all_that_follows(config, faulty):
    with Store(replace(config, queue_bytes=1 << 20), open=faulty) as store:
        faulty.tiers[0].inject("publish", Fault.HANG, times=1)
        root, tokens = store.root("model"), prompt(256 * 200)
        accepted = save(store, root, tokens)
        assert 0 < accepted < 200
        assert store.stats().dropped == {"queue_full": 200 - accepted}
        assert store.stats().queue_bytes <= 1 << 20
        assert faulty.tiers[0].wait_hanging()
        faulty.tiers[0].release()
        assert store.flush(20)
        assert restore(store, root, tokens).n_tokens == 256 * accepted
        assert store.stats().queue_bytes == 0


def test_a_save_that_may_wait_waits_for_room(config, faulty):
    with Store(replace(config, queue_bytes=1 << 20), open=faulty) as store:
        root, tokens = store.root("model"), prompt(256 * 200)
        blocks = [
            rows_block(root, tokens, p.start, p.start + p.n_tokens) for p in store.missing(TokenChain(root, tokens))
        ]
        assert store.save(blocks, wait_s=30) == 200
        assert store.flush(30)
        assert restore(store, root, tokens).n_tokens == len(tokens)


def test_what_is_under_way_counts_as_stored(store, root, faulty):
    faulty.tiers[0].inject("publish", Fault.HANG)
    tokens = prompt(1000)
    save(store, root, tokens)
    assert faulty.tiers[0].wait_hanging()
    assert store.missing(TokenChain(root, tokens), 1000) == []
    assert save(store, root, tokens) == 0
    assert restore(store, root, tokens).n_tokens == 1000
    assert not store.flush(0.05)
    faulty.tiers[0].release()
    assert store.flush(10)
    assert store.stats().saved == {"cold": 4}


def test_what_is_stored_is_not_written_again(store, root, faulty):
    blocks = [rows_block(root, prompt(256), 0, 256)]
    store.save(blocks)
    assert store.flush(10)
    n_published = faulty.tiers[0].calls["publish"]
    assert store.save(blocks) == 1
    assert store.flush(10)
    assert faulty.tiers[0].calls["publish"] == n_published


def test_a_write_that_fails_is_tried_again(store, root, faulty, tmp_path):
    faulty.tiers[0].inject("publish", Fault.FAIL, times=2)
    save(store, root, prompt(256))
    assert store.flush(10)
    assert len(files_below(tmp_path / "fast")) == 1
    assert store.stats().dropped == {}


def test_a_tier_that_keeps_failing_is_put_aside_and_the_next_one_takes_over(store, root, faulty, tmp_path):
    faulty.tiers[0].inject("publish", Fault.READ_ONLY, times=None)
    tokens = prompt(2560)
    save(store, root, tokens)
    assert store.flush(10)
    assert len(files_below(tmp_path / "slow")) == 10
    assert not store.stats().tiers[0].available
    assert faulty.tiers[0].calls["publish"] < 10
    assert restore(store, root, tokens).n_tokens == 2560


def test_a_bucket_that_answers_and_takes_nothing_is_put_aside_for_writes(config, tmp_path):
    puts = []

    def open_one(tier_config):
        tier = open_tier(tier_config)
        if isinstance(tier, RemoteTier):
            tier._filesystem.pipe_file = refuse
        return tier

    def refuse(path, data):
        puts.append(path)
        raise PermissionError("AccessDenied")

    bucket = TierConfig(f"memory://{tmp_path.name}")
    tokens = prompt(2560)
    with Store(replace(config, tiers=(bucket, config.tiers[1])), open=open_one) as store:
        assert store.wait_loaded(10)
        puts.clear()  # of its id
        save(store, store.root("model"), tokens)
        assert store.flush(10)
        assert not store.stats().tiers[0].available
        assert len(puts) < 10, "every block was sent to the bucket"
        assert store.stats().dropped == {}
        assert restore(store, store.root("model"), tokens).n_tokens == 2560


def test_what_no_tier_takes_is_dropped_counted_and_forgotten(store, root, faulty):
    for tier in faulty.tiers:
        tier.inject("publish", Fault.FAIL, times=None)
    tokens = prompt(1000)
    save(store, root, tokens)
    assert store.flush(10)
    assert sum(store.stats().dropped.values()) == 4
    assert len(store.missing(TokenChain(root, tokens), 1000)) == 4
    assert (store.stats().queue_bytes, store.stats().pending) == (0, 0)


def test_a_full_file_system_makes_the_store_evict_once(store, root, faulty):
    old, new = prompt(512), prompt(256, seed=2)
    save(store, root, old)
    assert store.flush(10)
    faulty.tiers[0].inject("publish", Fault.NO_SPACE, times=1)
    save(store, root, new)
    assert store.flush(10)
    assert restore(store, root, new).n_tokens == 256
    assert store.stats().evicted["no_space"] >= 1


def test_a_slow_lower_tier_does_not_hold_staging_memory(store, root, faulty):
    faulty.tiers[1].inject("publish", Fault.HANG, times=None)
    save(store, root, prompt(1000))
    assert store.flush(10), "the first tier is a disk"
    assert faulty.tiers[1].wait_hanging()
    assert store.stats().queue_bytes == 0


def test_damage_is_not_copied_down(store, root, faulty, tmp_path):
    faulty.tiers[0].inject("publish", Fault.TEAR, n_bytes=1000, times=1)
    save(store, root, prompt(256))
    store.close(5)
    assert files_below(tmp_path / "slow") == []
    assert sum(store.stats().corrupt.values()) == 1


def test_budgets_hold(tmp_path):
    budget = 64 << 10
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path / "only"), max_bytes=budget),))) as store:
        root = store.root("model")
        for seed in range(30):
            save(store, root, prompt(512, seed))
        assert store.flush(10)
        assert 0 < sum(p.stat().st_size for p in files_below(tmp_path / "only")) <= budget
        assert store.stats().tiers[0].n_bytes <= budget
        assert restore(store, root, prompt(512, 29)).n_tokens == 512


def test_nothing_leaves_a_tier_before_it_has_been_copied_to_the_disk_below(tmp_path):
    tiers = (TierConfig(f"memory://{tmp_path.name}", max_bytes=64 << 10), TierConfig(str(tmp_path / "disk")))
    with Store(StoreConfig(tiers=tiers)) as store:
        root, tokens = store.root("model"), prompt(256 * 60)
        save(store, root, tokens)
        assert store.flush(20)
        assert len(files_below(tmp_path / "disk")) == 60
        assert store.stats().dropped == {}
        assert restore(store, root, tokens).n_tokens == len(tokens)


def test_a_tier_goes_on_without_the_tier_below(tmp_path, faulty):
    tiers = (TierConfig(f"memory://{tmp_path.name}", max_bytes=64 << 10), TierConfig(str(tmp_path / "disk")))
    with Store(StoreConfig(tiers=tiers, retry_s=0.001), open=faulty) as store:
        assert store.wait_loaded(10)
        faulty.tiers[1].inject("publish", Fault.FAIL, times=None)
        root = store.root("model")
        for seed in range(20):
            save(store, root, prompt(512, seed))
            wait_until(lambda: store.stats().queue_bytes == 0)
        assert restore(store, root, prompt(512, 19)).n_tokens == 512
        store.close(0.1)


def test_a_slow_object_store_does_not_block_the_tier_above(tmp_path, faulty):
    tiers = (TierConfig(str(tmp_path / "disk"), max_bytes=64 << 10), TierConfig(f"memory://{tmp_path.name}"))
    with Store(StoreConfig(tiers=tiers), open=faulty) as store:
        assert store.wait_loaded(10)
        faulty.tiers[1].inject("publish", Fault.HANG, times=None)
        for seed in range(20):
            save(store, store.root("model"), prompt(512, seed))
            assert store.flush(10)
        assert restore(store, store.root("model"), prompt(512, 19)).n_tokens == 512
        assert store.stats().evicted["uncopied"] > 0
        store.close(0.1)


def test_budgets_hold_for_all_writers_together(tmp_path):
    budget = 128 << 10
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "only"), max_bytes=budget),))
    with Store(config) as one, Store(config) as other:
        for seed in range(12):
            save((one, other)[seed % 2], one.root("model"), prompt(512, seed))
        assert one.flush(10)
        assert other.flush(10)
        one.rescan()
        assert sum(p.stat().st_size for p in files_below(tmp_path / "only")) <= budget


def test_a_chain_larger_than_its_tier_keeps_its_beginning(tmp_path):
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path / "only"), max_bytes=64 << 10),))) as store:
        root, tokens = store.root("model"), prompt(256 * 40)
        save(store, root, tokens)
        assert store.flush(10)
        n_tokens = restore(store, root, tokens).n_tokens
        assert n_tokens >= 256
        assert n_tokens == 256 * store.stats().tiers[0].objects


def test_two_writers_of_one_key_leave_one_good_object(config, tmp_path):
    with Store(config) as one, Store(config) as other:
        root, tokens = one.root("model"), prompt(256 * 8)
        threads = [threading.Thread(target=save, args=(store, root, tokens)) for store in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.flush(10)
        assert other.flush(10)
        assert len(files_below(tmp_path / "fast")) == 8
        assert restore(one, root, tokens).n_tokens == restore(other, root, tokens).n_tokens == 2048


def test_closing_while_a_tier_hangs_ends_in_time(store, root, faulty):
    for tier in faulty.tiers:
        tier.inject("*", Fault.HANG, times=None)
    save(store, root, prompt(1000))
    began = time.monotonic()
    store.close(0.5)
    assert time.monotonic() - began < NO_WAIT_S
    assert sum(store.stats().dropped.values()) >= 3, "what waited behind the hanging one"


def test_staging_memory_is_used_again_and_never_under_a_reader():
    pool = StagingPool(1 << 20)
    block = rows_block(root_key("model"), prompt(256), 0, 256)
    first = pool.copy(block)
    address = first.block.rows[0].ctypes.data
    assert first.hold()
    first.release()
    second = pool.copy(block)
    assert second.block.rows[0].ctypes.data != address
    first.release()
    assert not first.hold()
    third = pool.copy(block)
    assert third.block.rows[0].ctypes.data == address
    assert np.array_equal(third.block.rows[1], block.rows[1])


def test_staging_memory_is_bounded():
    pool = StagingPool(1 << 20)
    block = rows_block(root_key("model"), prompt(256), 0, 256)
    staged = []
    while (copy := pool.copy(block)) is not None:
        staged.append(copy)
    assert pool.used_bytes <= 1 << 20
    staged.pop().release()
    assert pool.copy(block) is not None
