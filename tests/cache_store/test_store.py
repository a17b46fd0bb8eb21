"""The store, whole: what is saved is restored exactly, by whoever asks, or less of it."""

from dataclasses import replace

import numpy as np
import pytest

from cache_store import BLOCK_TOKENS, Block, BlockId, ChainKey, Kind, Store, StoreConfig, TierConfig, TokenChain
from cache_store.testing import FakeClock
from tests.support.store_kit import (
    Restored,
    end_block,
    files_below,
    key_of,
    logits_of,
    opened,
    prompt,
    restore,
    rows_block,
    save,
    wait_until,
)


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), TierConfig(str(tmp_path / "slow"))))


@pytest.fixture
def store(config):
    with Store(config) as store:
        yield store


def root_of(store: Store):
    return store.root("model")


def test_what_was_saved_is_restored_before_and_after_it_is_written(store):
    root, tokens = root_of(store), prompt(1000)
    assert save(store, root, tokens) == 4
    assert restore(store, root, tokens).n_tokens == 1000
    assert store.flush(10)
    assert restore(store, root, tokens).n_tokens == 1000


def test_flush_waits_for_a_tier_that_survives_the_process(tmp_path):
    config = StoreConfig(
        tiers=(
            TierConfig(f"memory://{tmp_path.name}"),
            TierConfig(str(tmp_path / "disk")),
            TierConfig(str(tmp_path / "far")),
        )
    )
    with Store(config) as store:
        assert store.wait_loaded(10)
        save(store, root_of(store), prompt(1000))
        assert store.flush(10)
        assert len(files_below(tmp_path / "disk")) == 4


def test_closing_copies_everything_down_to_the_last_tier(store, tmp_path):
    save(store, root_of(store), prompt(1000))
    store.close(10)
    assert len(files_below(tmp_path / "slow")) == 4


def test_a_start_copies_down_what_no_lower_tier_has(store, config, tmp_path):
    save(store, root_of(store), prompt(1000))
    store.close(10)
    for path in files_below(tmp_path / "slow"):
        path.unlink()
    opened(config).close(10)
    assert len(files_below(tmp_path / "slow")) == 4


def test_nothing_is_missing_after_a_save_and_only_the_rest_after_a_longer_prompt(store):
    root, tokens = root_of(store), prompt(1000)
    assert [(p.start, p.n_tokens) for p in store.missing(TokenChain(root, tokens), 600)] == [
        (0, 256),
        (256, 256),
        (512, 88),
    ]
    save(store, root, tokens, 600)
    assert store.missing(TokenChain(root, tokens), 600) == []
    assert [(p.start, p.n_tokens) for p in store.missing(TokenChain(root, tokens), 1000)] == [(600, 168), (768, 232)]


def test_an_incremental_conversation_writes_each_token_once(store, tmp_path):
    root, tokens = root_of(store), prompt(20 * 333)
    for turn in range(1, 21):
        save(store, root, tokens, 333 * turn)
    assert store.flush(20)
    sizes = [BlockId.parse(str(p.relative_to(tmp_path / "fast"))).n_tokens for p in files_below(tmp_path / "fast")]
    assert sum(sizes) == len(tokens)
    assert restore(store, root, tokens).n_tokens == len(tokens)


def test_a_prompt_that_differs_inside_a_block_is_restored_to_the_token(store):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens)
    branch = tokens.copy()
    branch[700:] += 1
    assert restore(store, root, branch).n_tokens == 700
    save(store, root, branch)
    assert restore(store, root, branch).n_tokens == 1000
    assert restore(store, root, tokens).n_tokens == 1000


def test_stored_logits_come_with_a_prompt_that_they_end_and_with_no_other(store):
    root, tokens = root_of(store), prompt(600)
    save(store, root, tokens, end=True)
    plan = store.lookup(TokenChain(root, tokens), deadline_s=5)
    fetched = store.read(plan, Restored(tokens), 5)
    assert np.array_equal(fetched.logits, logits_of(tokens))
    longer = np.append(tokens, np.uint32(7))
    fetched = store.read(store.lookup(TokenChain(root, longer), deadline_s=5), Restored(longer), 5)
    assert (fetched.n_tokens, fetched.logits) == (600, None)


def test_a_model_that_needs_checkpoints_is_restored_to_the_longest_one(store):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens, 400, end=True, checkpoint=True)
    save(store, root, tokens, 900, end=True, checkpoint=True)
    save(store, root, tokens, 1000)
    plan = store.lookup(TokenChain(root, tokens), need_end=True, deadline_s=5)
    assert (plan.n_tokens, [end.start for end in plan.ends]) == (900, [900, 400])
    restored = Restored(tokens)
    fetched = store.read(plan, restored, 5)
    assert (fetched.n_tokens, restored.n_tokens) == (900, 900)
    assert np.array_equal(fetched.checkpoint, (np.arange(300) + 900).astype(np.uint8))


def test_a_lost_checkpoint_is_a_shorter_prefix_for_those_who_need_one(store, config, tmp_path):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens, 400, end=True, checkpoint=True)
    save(store, root, tokens, 900, end=True, checkpoint=True)
    assert store.flush(10)
    store.close(10)
    with opened(config) as again:
        plan = again.lookup(TokenChain(root, tokens), need_end=True, deadline_s=5)
        key = key_of(root, tokens[:900])
        for tier in ("fast", "slow"):
            (tmp_path / tier / BlockId(root, Kind.END, key, key, 900).name).unlink(missing_ok=True)
        fetched = again.read(plan, Restored(tokens), 5)
        assert (fetched.n_tokens, fetched.checkpoint[0]) == (400, 400 % 256)


def test_rows_that_end_early_leave_the_longest_checkpoint_within_them(store, config, tmp_path):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens, 400, end=True, checkpoint=True)
    save(store, root, tokens, 900, end=True, checkpoint=True)
    store.close(10)
    with opened(config) as again:
        plan = again.lookup(TokenChain(root, tokens), need_end=True, deadline_s=5)
        for tier in ("fast", "slow"):
            (tmp_path / tier / plan.hops[-1].id.name).unlink(missing_ok=True)
        fetched = again.read(plan, Restored(tokens), 5)
        assert (fetched.n_tokens, fetched.checkpoint[0]) == (400, 400 % 256)


def test_a_model_without_rows_is_restored_by_tokens_and_a_checkpoint(store):
    root, tokens = root_of(store), prompt(600)
    blocks = [Block(p, tokens[p.start : p.start + p.n_tokens]) for p in store.missing(TokenChain(root, tokens), 600)]
    assert store.save([*blocks, end_block(root, tokens, checkpoint=True)]) == 4
    assert store.flush(10)
    seen = []
    fetched = store.read(
        store.lookup(TokenChain(root, tokens), need_end=True, deadline_s=5),
        lambda block, n: seen.append((block.rows, n)),
        5,
    )
    assert (fetched.n_tokens, fetched.checkpoint is None, seen) == (600, False, [((), 256), ((), 256), ((), 88)])


def test_a_replay_is_found_by_its_name_alone_by_any_store(store, config):
    root = root_of(store)
    id = BlockId(root, Kind.REPLAY, key_of(root, prompt(300)), key_of(root, prompt(5, seed=9)))
    ids = prompt(40, seed=3)
    assert store.get(id, 1) is None
    assert store.save([Block(id, ids, reason="finish")]) == 1
    assert np.array_equal(store.get(id, 1).tokens, ids)
    assert store.flush(10)
    with opened(config) as other:
        assert np.array_equal(other.get(id, 1).tokens, ids)


def test_salts_and_namespaces_share_nothing(store):
    tokens = prompt(600)
    save(store, root_of(store), tokens)
    assert restore(store, store.root("other model"), tokens).n_tokens == 0
    with Store(replace(store._config, salt="tenant")) as tenant:
        assert tenant.root("model") != store.root("model")


@pytest.mark.parametrize("with_snapshot", [True, False], ids=["snapshot", "listing only"])
def test_a_restart_finds_everything(config, tmp_path, with_snapshot):
    with Store(config) as store:
        root, tokens = root_of(store), prompt(1000)
        save(store, root, tokens, end=True)
        store.close(10)
    snapshots = [*(tmp_path / "fast").glob("index/*"), *(tmp_path / "slow").glob("index/*")]
    assert snapshots
    for path in snapshots if not with_snapshot else ():
        path.unlink()
    with opened(config) as again:
        assert restore(again, root, tokens).n_tokens == 1000
        branch = tokens.copy()
        branch[700:] += 1
        assert restore(again, root, branch).n_tokens == 700


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b[:40] + b"\xff" + b[41:], lambda b: b""],
    ids=["cut", "flipped", "empty"],
)
def test_a_damaged_snapshot_costs_nothing_but_time(config, tmp_path, damage):
    with Store(config) as store:
        root, tokens = root_of(store), prompt(1000)
        save(store, root, tokens)
        store.close(10)
    for path in tmp_path.glob("*/index/*"):
        path.write_bytes(damage(path.read_bytes()))
    with opened(config) as again:
        assert again.stats().corrupt["snapshot"] >= 1
        assert restore(again, root, tokens).n_tokens == 1000


def test_a_stale_snapshot_is_corrected_by_the_listing(config, tmp_path):
    with Store(config) as store:
        root, tokens = root_of(store), prompt(1000)
        save(store, root, tokens)
        store.close(10)
    for path in files_below(tmp_path):
        path.unlink()
    with opened(config) as again:
        assert again.stats().tiers[0].n_bytes == 0
        assert len(again.missing(TokenChain(root, tokens), 1000)) == 4
        assert restore(again, root, tokens).n_tokens == 0


def test_another_store_finds_by_probing_what_was_written_after_its_start(config):
    with opened(config) as one, opened(config) as other:
        root, tokens = root_of(one), prompt(5000)
        save(one, root, tokens, 4000, end=True)
        assert one.flush(10)
        assert restore(other, root, tokens[:4000]).n_tokens == 4000
        save(one, root, tokens, 4900)
        assert one.flush(10)
        branch = tokens.copy()
        branch[4850:] += 1
        assert restore(other, root, branch).n_tokens == 4850


def test_another_store_finds_ends_by_probing(config):
    with opened(config) as one, opened(config) as other:
        root, tokens = root_of(one), prompt(1000)
        save(one, root, tokens, 900, end=True, checkpoint=True)
        assert one.flush(10)
        assert other.lookup(TokenChain(root, tokens), need_end=True, deadline_s=5).n_tokens == 900


def test_a_miss_costs_one_probe_per_tier(store):
    assert store.wait_loaded(10)
    store.lookup(TokenChain(root_of(store), prompt(8000)), deadline_s=5)
    assert store.stats().probes == 2


def test_short_prompts_are_not_probed(store):
    store.lookup(TokenChain(root_of(store), prompt(100)), deadline_s=5)
    assert store.stats().probes == 0


def test_blocks_read_from_a_slow_tier_are_promoted(config, tmp_path):
    with Store(config) as store:
        root, tokens = root_of(store), prompt(1000)
        save(store, root, tokens)
        store.close(10)
    for path in files_below(tmp_path / "fast"):
        path.unlink()
    again = opened(config)
    assert restore(again, root, tokens).n_tokens == 1000
    again.close(10)
    assert len(files_below(tmp_path / "fast")) == 4


def test_a_promotion_evicts_nothing(tmp_path):
    config = StoreConfig(
        tiers=(TierConfig(str(tmp_path / "fast"), max_bytes=30_000), TierConfig(str(tmp_path / "slow")))
    )
    store = opened(config)
    root, old, new = root_of(store), prompt(512), prompt(512, seed=2)
    for tokens in (old, new):
        save(store, root, tokens)
    store.close(10)
    kept = files_below(tmp_path / "fast")
    with opened(config) as again:
        for tokens in (old, new):
            assert restore(again, root, tokens).n_tokens == 512
        again.close(10)
    assert files_below(tmp_path / "fast") == kept
    assert len(files_below(tmp_path / "slow")) == 4


def test_each_tier_has_its_own_compression(tmp_path):
    tiers = (TierConfig(str(tmp_path / "plain")), TierConfig(str(tmp_path / "small"), compression="zstd"))
    tokens = np.zeros(1024, np.uint32)
    with opened(StoreConfig(tiers=tiers)) as store:
        root = root_of(store)
        save(store, root, tokens)
        store.close(10)
    plain, small = (sum(p.stat().st_size for p in files_below(tmp_path / tier)) for tier in ("plain", "small"))
    assert small < plain
    for path in files_below(tmp_path / "plain"):
        path.unlink()
    with opened(StoreConfig(tiers=tiers)) as again:
        assert restore(again, root, tokens).n_tokens == 1024
        again.close(10)
    assert sum(p.stat().st_size for p in files_below(tmp_path / "plain")) == plain


def test_a_pinned_prefix_survives_eviction(tmp_path):
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path / "only")),))) as store:
        root, tokens, other = root_of(store), prompt(512), prompt(512, seed=2)
        save(store, root, tokens)
        save(store, root, other)
        assert store.flush(10)
        store.pin(TokenChain(root, tokens), ttl_s=60, name="mine")
        assert store.evict_bytes("disk", 1 << 30) > 0
        assert restore(store, root, tokens).n_tokens == 512
        assert restore(store, root, other).n_tokens == 0
        assert store.unpin("mine")
        store.evict_bytes("disk", 1 << 30)
        assert restore(store, root, tokens).n_tokens == 0


def test_a_pin_is_taken_back_whatever_was_saved_meanwhile(store):
    root, tokens = root_of(store), prompt(600)
    store.pin(TokenChain(root, tokens), ttl_s=60, name="mine")
    save(store, root, tokens, 300)
    save(store, root, tokens, 600)
    assert store.flush(10)
    assert [store.unpin("mine"), store.unpin("mine")] == [True, False]
    store.evict_bytes("disk", 1 << 30)
    assert store.stats().tiers[0].n_bytes == 0


def test_a_long_running_store_lists_its_tiers_again_and_writes_its_index_down(tmp_path):
    clock = FakeClock(1)
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "only")),), rescan_s=60, snapshot_s=120)
    with Store(config, clock=clock) as store, Store(config) as other:
        assert store.wait_loaded(10)
        save(other, root_of(other), prompt(600))
        assert other.flush(10)
        assert store.stats().tiers[0].objects == 0
        clock.advance(130)
        wait_until(
            lambda: store.stats().tiers[0].objects == 3 and list((tmp_path / "only" / "index").glob("*.parquet"))
        )


def test_only_what_a_lower_tier_has_is_evicted_if_so_asked(store, tmp_path):
    root, tokens = root_of(store), prompt(1024)
    save(store, root, tokens)
    assert store.flush(10)
    store.close(10)
    paths = files_below(tmp_path / "slow")
    assert paths, "copied down"
    with opened(store._config) as again:
        id = BlockId.parse(str(paths[0].relative_to(tmp_path / "slow")))
        paths[0].unlink()
        again.rescan()
        again.evict_bytes("disk", 1 << 30, only_if_lower=True)
        assert (tmp_path / "fast" / id.name).exists()
        assert restore(again, root, tokens).n_tokens == 1024


def test_the_stored_prefixes_are_listed_without_those_that_something_continues(store):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens, 600)
    save(store, root, tokens, 1000)
    assert store.flush(10)
    (leaf,) = store.prefixes(root)
    assert (leaf.n_tokens, leaf.key, "disk" in leaf.tiers) == (1000, key_of(root, tokens), True)
    assert store.prefixes(store.root("other")) == ()


def test_statistics_add_up(store):
    root, tokens = root_of(store), prompt(1000)
    save(store, root, tokens)
    assert store.flush(10)
    restore(store, root, tokens)
    stats = store.stats()
    assert (stats.saved, stats.dropped, stats.corrupt, stats.queue_bytes) == ({"cold": 4}, {}, {}, 0)
    assert (stats.hit_tokens, stats.looked_up_tokens) == (1000, 1000)
    assert stats.tiers[0].objects == 4
    assert stats.tiers[0].read_bytes > 0
    assert store.tier_labels == ("disk", "disk2")


def test_a_closed_store_takes_no_saves_and_closing_twice_is_fine(store):
    store.close(5)
    store.close(5)
    root, tokens = root_of(store), prompt(300)
    assert store.save([rows_block(root, tokens, 0, 256)]) == 0
    assert store.stats().dropped == {"closed": 1}
    assert restore(store, root, tokens).n_tokens == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tiers": ()}, "tiers"),
        ({"queue_bytes": 1}, "queue_bytes"),
        ({"rescan_s": 0}, "rescan_s"),
        ({"rescan_share": 2}, "rescan_share"),
        ({"reads_in_flight": 0}, "reads_in_flight=0: must be at least 1"),
        ({"reads_in_flight": 65}, "reads_in_flight=65: must be at most 64"),
        ({"read_ahead_bytes": -1}, "read_ahead_bytes=-1: must be at least 0"),
    ],
)
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        StoreConfig(**{"tiers": (TierConfig("/tmp/x"),), **settings})


def test_a_chain_with_lost_files_is_whole_again_after_the_next_save(tmp_path):
    tokens = np.arange(5 * BLOCK_TOKENS, dtype=np.uint32)
    rows = np.arange(len(tokens) * 8, dtype=np.uint8).reshape(-1, 8)

    def save(store: Store, root: ChainKey) -> int:
        pieces = store.missing(TokenChain(root, tokens))
        blocks = [
            Block(p, tokens[p.start :][: p.n_tokens], columns=("k0",), rows=(rows[p.start :][: p.n_tokens],))
            for p in pieces
        ]
        assert store.save(blocks) == len(blocks)
        assert store.flush(10)
        return len(blocks)

    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path)),))) as store:
        root = store.root("namespace")
        assert save(store, root) == 5
        for file in tmp_path.rglob("*.rows.arrow"):
            file.unlink()
        plan = store.lookup(TokenChain(root, tokens), deadline_s=5)
        assert store.read(plan, lambda block, n_use: None, 5).n_tokens == 0
        assert save(store, root) == 5
        plan = store.lookup(TokenChain(root, tokens), deadline_s=5)
        assert store.read(plan, lambda block, n_use: None, 5).n_tokens == len(tokens)
