"""A shared tier is brought down to its budget by one process for all: enough, no more, and never
what a chain hangs on.
"""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_store import BlockId, ChainKey, Kind, Store, StoreConfig, TierConfig, TokenChain, root_key
from cache_store.testing import FakeClock, Fault
from tests.support import store_kit
from tests.support.bounds import NO_WAIT_S
from tests.support.store_kit import (
    FaultyTiers,
    Restored,
    end_block,
    files_below,
    prompt,
    restore,
    rows_block,
    save,
    wait_until,
    written,
)
from tests.support.version_1 import VERSION_1_FILE, version_1_name

KB = 1 << 10
BUDGET = 256 * KB  # 28 blocks of the kit, with their heads


def opened(url: object, budget: int | None = BUDGET, **options) -> Store:
    config = StoreConfig(tiers=(TierConfig(str(url), max_bytes=budget),), retry_s=0.01, pin_share=0.9)
    return store_kit.opened(config, **options)


def bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in files_below(directory))


def ids_below(directory: Path) -> set[BlockId]:
    return {BlockId.parse(str(path.relative_to(directory))) for path in files_below(directory)}


def gaps(ids: set[BlockId], root: str) -> list[BlockId]:
    """What cannot be reached: an oracle that knows names only."""
    reached, found = {(root, 0)}, True
    rows = [id for id in ids if id.kind is Kind.ROWS]
    while found:
        found = {(id.key, id.start + id.n_tokens) for id in rows if (id.parent, id.start) in reached} - reached
        reached |= found
    return [id for id in ids if (id.parent, id.start) not in reached]


def gossip(stores: list[Store]) -> None:
    delta = [store.take_delta() for store in stores]
    for store in stores:
        store.apply_deltas(delta)


def test_a_tier_that_others_filled_is_brought_down_to_the_target(tmp_path):
    with opened(tmp_path) as collector, opened(tmp_path, None) as writer:
        for seed in range(4):
            written(writer, prompt(4000, seed), end=True)
        before = bytes_below(tmp_path)
        assert before > BUDGET
        done = collector.collect_garbage("disk", target_share=0.5, deadline_s=20)
        assert (done.is_done, done.failure, done.target_bytes) == (True, "", BUDGET // 2)
        assert done.n_bytes == bytes_below(tmp_path) <= BUDGET // 2
        assert done.evicted_bytes == before - done.n_bytes
        assert done.evicted == collector.stats().evicted["garbage"]
        assert BUDGET // 2 - done.n_bytes < 32 * KB, "no more than was needed"
        collector.check_integrity()


def test_a_tier_below_its_target_is_left_alone(tmp_path):
    with opened(tmp_path) as store:
        written(store, prompt(4000))
        done = store.collect_garbage("disk", deadline_s=20)
        assert (done.is_done, done.evicted) == (True, 0)


def test_a_tier_without_a_budget_has_no_target(tmp_path):
    with opened(tmp_path, None) as store:
        written(store, prompt(4000))
        done = store.collect_garbage("disk", deadline_s=20)
        assert (done.is_done, done.evicted, done.target_bytes) == (True, 0, None)


def test_what_is_used_elsewhere_survives_when_hits_are_relayed(tmp_path):
    with opened(tmp_path) as collector, opened(tmp_path, None) as user:
        for seed in range(4):
            written(user, prompt(2000, seed))
        gossip([collector, user])
        for _ in range(3):
            restore(user, user.root("model"), prompt(2000, 1))
        gossip([collector, user])
        collector.collect_garbage("disk", target_share=0.4, deadline_s=20)
        gossip([collector, user])
        lengths = [restore(user, user.root("model"), prompt(2000, seed)).n_tokens for seed in range(4)]
        assert lengths[1] == 2000
        assert sum(lengths) < 4000


def test_pinned_objects_and_what_they_hang_on_stay(tmp_path):
    with opened(tmp_path) as store:
        root = store.root("model")
        written(store, prompt(2000, 1))
        written(store, prompt(2000, 2))
        store.pin(TokenChain(root, prompt(2000, 1)).prefix(1500), ttl_s=60)
        done = store.collect_garbage("disk", target_share=0.001, deadline_s=20)
        assert (done.is_done, done.failure) == (False, "")
        assert restore(store, root, prompt(2000, 1)).n_tokens >= 1500
        assert restore(store, root, prompt(2000, 2)).n_tokens == 0


def test_objects_that_wait_to_be_copied_down_stay(tmp_path):
    tiers = FaultyTiers()
    config = StoreConfig(
        tiers=(TierConfig(str(tmp_path / "fast"), max_bytes=BUDGET), TierConfig(str(tmp_path / "slow"))), retry_s=0.01
    )
    with Store(config, open=tiers) as store:
        assert store.wait_loaded(10)
        tiers.tiers[1].inject("publish", Fault.HANG, times=None)
        save(store, store.root("model"), prompt(2000))
        assert tiers.tiers[1].wait_hanging()
        assert store.flush(10)
        done = store.collect_garbage("disk", target_share=0.001, deadline_s=20)
        assert (done.is_done, done.evicted) == (False, 0)
        tiers.tiers[1].heal()
        store.close(20)
        assert ids_below(tmp_path / "slow") == ids_below(tmp_path / "fast")


def left_by_version_1(tmp_path: Path, tokens: np.ndarray, root: ChainKey) -> list[Path]:
    """The files of a prompt's blocks and its END under the names of the first format, and nothing
    else.
    """
    paths = []
    for block in [rows_block(root, tokens, at, at + 256) for at in range(0, len(tokens), 256)] + [
        end_block(root, tokens)
    ]:
        path = tmp_path / version_1_name(block.id)
        assert path != tmp_path / block.id.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(VERSION_1_FILE)
        paths.append(path)
    return paths


def test_objects_of_the_first_format_are_not_seen_and_are_collected(tmp_path):
    tokens = prompt(1024)
    with opened(tmp_path) as store:
        root = store.root("model")
        old = left_by_version_1(tmp_path, tokens, root)
        (tmp_path / "mine.rows.arrow").write_bytes(VERSION_1_FILE)
        store.rescan()
        assert restore(store, root, tokens).n_tokens == 0
        assert store.stats().tiers[0].objects == 0
        written(store, tokens)
        done = store.collect_garbage("disk", deadline_s=20)
        assert (done.is_done, done.failure, done.evicted) == (True, "", 0)
        assert done.swept <= len(old)  # maintenance may have been at it too
        wait_until(lambda: not any(path.exists() for path in old))
        assert (tmp_path / "mine.rows.arrow").exists()
        assert restore(store, root, tokens).n_tokens == 1024
        assert store.stats().corrupt == {}
        assert store.collect_garbage("disk", deadline_s=20).swept == 0


def test_objects_of_the_first_format_go_without_a_collection(tmp_path):
    old = left_by_version_1(tmp_path, prompt(1024), root_key("model"))
    with opened(tmp_path) as store:
        wait_until(lambda: not any(path.exists() for path in old))
        assert (store.stats().corrupt, store.stats().evicted) == ({}, {})


def test_objects_of_the_first_format_are_not_copied_down(tmp_path):
    old = left_by_version_1(tmp_path / "fast", prompt(1024), root_key("model"))
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), TierConfig(str(tmp_path / "slow"))))
    with store_kit.opened(config) as store:
        wait_until(lambda: not any(path.exists() for path in old))
        assert store.flush(10)
        assert not files_below(tmp_path / "slow")
        assert (store.stats().corrupt, store.stats().dropped) == ({}, {})


def test_objects_of_the_first_format_that_cannot_be_deleted_are_tried_again_after_a_listing(tmp_path):
    tiers = FaultyTiers()
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path), max_bytes=BUDGET),)), open=tiers) as store:
        assert store.wait_loaded(10)
        old = left_by_version_1(tmp_path, prompt(1024), store.root("model"))
        tiers.tiers[0].inject("delete", Fault.READ_ONLY, times=None)
        store.collect_garbage("disk", deadline_s=20)
        assert all(path.exists() for path in old)
        tiers.tiers[0].heal()
        assert store.collect_garbage("disk", deadline_s=20).failure == ""
        wait_until(lambda: not any(path.exists() for path in old))


def test_old_temp_files_are_swept_and_young_ones_are_not(tmp_path):
    with opened(tmp_path) as store:
        for name in ("old", "young"):
            (tmp_path / f".tmp-1-{name}").write_bytes(b"half")
        os.utime(tmp_path / ".tmp-1-old", (1, 1))
        assert store.collect_garbage("disk", deadline_s=20).swept == 1
        assert (tmp_path / ".tmp-1-young").exists()


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_a_wrong_target_or_tier_is_named(tmp_path, share):
    with opened(tmp_path) as store:
        with pytest.raises(ValueError, match="target_share"):
            store.collect_garbage("disk", target_share=share, deadline_s=1)
        with pytest.raises(ValueError, match="'s3': none of"):
            store.collect_garbage("s3", deadline_s=1)
        with pytest.raises(ValueError, match="'s3': none of"):
            store.leave_garbage("s3", 1)


def test_a_listing_that_is_recent_enough_is_trusted(tmp_path):
    clock, tiers = FakeClock(1), FaultyTiers()
    config = StoreConfig(tiers=(TierConfig(str(tmp_path), max_bytes=BUDGET),), rescan_s=1e6, snapshot_s=1e6)
    with Store(config, open=tiers, clock=clock) as store:
        assert store.wait_loaded(10)
        calls = tiers.tiers[0].calls
        n_lists = calls["list"]
        clock.advance(50)
        store.collect_garbage("disk", listing_age_s=60, deadline_s=20)
        assert calls["list"] == n_lists
        clock.advance(50)
        store.collect_garbage("disk", listing_age_s=60, deadline_s=20)
        assert calls["list"] == n_lists + 1


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["list", "sweep", "delete"])
def test_a_tier_that_fails_is_told_and_collected_the_next_time(tmp_path, operation):
    tiers = FaultyTiers()
    with opened(tmp_path, open=tiers) as collector, opened(tmp_path, None) as writer:
        for seed in range(3):
            written(writer, prompt(4000, seed))
        tiers.tiers[0].inject(operation, Fault.FAIL, skip=5 if operation == "delete" else 0)
        done = collector.collect_garbage("disk", deadline_s=20)
        assert not done.is_done
        assert done.failure
        assert gaps(ids_below(tmp_path), collector.root("model")) == []
        assert collector.collect_garbage("disk", deadline_s=20).is_done


@pytest.mark.parametrize("operation", ["list", "sweep", "delete"])
def test_a_tier_that_hangs_does_not_hold_the_collector_beyond_its_deadline(tmp_path, operation):
    tiers = FaultyTiers()
    with opened(tmp_path, open=tiers) as collector, opened(tmp_path, None) as writer:
        for seed in range(3):
            written(writer, prompt(4000, seed))
        tiers.tiers[0].inject(operation, Fault.HANG, times=None)
        began = time.monotonic()
        done = collector.collect_garbage("disk", deadline_s=0.2)
        assert time.monotonic() - began < NO_WAIT_S
        assert (done.is_done, done.failure) == (False, "no answer before the deadline")
        tiers.tiers[0].heal()
        assert collector.collect_garbage("disk", deadline_s=20).is_done
        assert gaps(ids_below(tmp_path), collector.root("model")) == []
        collector.check_integrity()


def test_collections_of_a_tier_that_hangs_do_not_pile_up_threads(tmp_path):
    def n_threads() -> int:
        return sum(thread.name.startswith("cache-garbage") for thread in threading.enumerate())

    tiers = FaultyTiers()
    with opened(tmp_path, open=tiers) as collector:
        tiers.tiers[0].inject("sweep", Fault.HANG, times=None)
        before = n_threads()
        failures = [collector.collect_garbage("disk", deadline_s=0.1).failure for _ in range(20)]
        assert n_threads() - before <= 8
        assert set(failures) == {"no answer before the deadline", "garbage-disk: every call hangs"}
        tiers.tiers[0].heal()


# --- chains ---------------------------------------------------------------------------------------

_saves = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 1500), st.integers(0, 2), st.booleans()), min_size=5, max_size=25
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    saves=_saves,
    share=st.sampled_from((0.1, 0.4, 0.8)),
    fail_at=st.none() | st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_after_a_collection_every_chain_is_whole_wherever_it_ended(tmp_path_factory, saves, share, fail_at, seed):
    directory = tmp_path_factory.mktemp("tier")
    tiers = FaultyTiers()
    with opened(directory, 120 * KB, open=tiers) as collector, opened(directory, None) as writer:
        root, base = writer.root("model"), prompt(1500, seed)
        for branch, upto, at, end in saves:
            tokens = base.copy()
            tokens[(0, 300, 700)[at] :] += np.uint32(branch)
            written(writer, tokens, upto, end=end)
        if saves[0][3]:  # a chain that another process cut otherwise
            writer.save([rows_block(root, base, start, min(start + 90, 256)) for start in range(0, 256, 90)])
            assert writer.flush(10)
        gossip([collector, writer])
        assert gaps(ids_below(directory), root) == []
        pinned = base[: 1 + seed * 10]
        collector.pin(TokenChain(root, pinned), ttl_s=60)
        n_pinned = collector.lookup(TokenChain(root, pinned), deadline_s=5).n_tokens
        if fail_at is not None:
            tiers.tiers[0].inject("delete", Fault.FAIL, skip=fail_at)
        done = collector.collect_garbage("disk", target_share=share, deadline_s=20)
        left = ids_below(directory)
        assert gaps(left, root) == []
        assert restore(collector, root, pinned).n_tokens >= n_pinned
        assert done.n_bytes == bytes_below(directory)
        if done.is_done:
            assert done.n_bytes <= share * 120 * KB
        gossip([collector, writer])
        assert {entry.id for entry in writer._stack.index.rows(0)} == left


# --- beside others --------------------------------------------------------------------------------


def test_one_collects_what_many_wrote_and_nobody_evicts_more(tmp_path):
    stores = [opened(tmp_path) for _ in range(4)]
    root = stores[0].root("model")
    written_bytes = 0
    for round_ in range(6):
        for store in stores:
            store.leave_garbage("disk", 0 if store is stores[0] else 600)
        for n, store in enumerate(stores):
            save(store, root, prompt(600, 10 * round_ + n))
        for store in stores:
            assert store.flush(10)
        gossip(stores)
        assert stores[0].collect_garbage("disk", target_share=0.6, deadline_s=20).is_done
        gossip(stores)
        written_bytes = sum(store.stats().tiers[0].written_bytes for store in stores)
        for store in stores[1:]:
            store.rescan()
    evicted = written_bytes - bytes_below(tmp_path)
    assert evicted > BUDGET
    assert evicted - (written_bytes - 0.6 * BUDGET) < 32 * KB, "what was needed, and not a block for everyone"
    assert [sum(store.stats().evicted.values()) for store in stores[1:]] == [0, 0, 0]
    views = [{entry.id for entry in store._stack.index.rows(0)} for store in stores]
    assert all(view == ids_below(tmp_path) for view in views)
    for store in stores:
        store.close(5)


def test_while_another_collects_only_the_slack_is_defended(tmp_path):
    clock = FakeClock(1)
    config = StoreConfig(tiers=(TierConfig(str(tmp_path), max_bytes=BUDGET),), rescan_s=1e6, snapshot_s=1e6)
    with Store(config, clock=clock) as store:
        assert store.wait_loaded(10)
        store.leave_garbage("disk", 60)
        largest = 0
        for seed in range(12):
            written(store, prompt(1000, seed))
            largest = max(largest, bytes_below(tmp_path))
        assert BUDGET < largest <= BUDGET * 1.05
        clock.advance(61)
        store.rescan()
        assert bytes_below(tmp_path) <= BUDGET
        store.leave_garbage("disk", 60)
        store.leave_garbage("disk", 0)
        written(store, prompt(1000, 99))
        assert bytes_below(tmp_path) <= BUDGET


def test_what_somebody_else_deleted_first_is_not_counted(tmp_path):
    with opened(tmp_path) as one, opened(tmp_path) as other:
        written(one, prompt(2000))
        gossip([one, other])
        assert one.evict_bytes("disk", 1 << 30) > 0
        other.evict_bytes("disk", 1 << 30)
        assert other.stats().tiers[0].objects == 0
        assert other.stats().evicted == {}
        assert other.take_delta().is_empty


@pytest.mark.parametrize("label", ["disk", "memory"])
def test_readers_beside_a_collector_have_misses_and_nothing_worse(tmp_path, label):
    url = tmp_path if label == "disk" else f"memory://{tmp_path.name}"
    with opened(url) as collector, opened(url, None) as reader:
        root = reader.root("model")
        done = threading.Event()
        seen: list[int] = []
        problems: list[BaseException] = []

        def read(seed: int) -> None:
            rng = random.Random(seed)
            try:
                while not done.is_set():
                    tokens = prompt(3000, rng.randrange(4))
                    plan = reader.lookup(TokenChain(root, tokens), deadline_s=20)
                    restored = Restored(tokens)
                    assert reader.read(plan, restored, 20).n_tokens == restored.n_tokens
                    seen.append(restored.n_tokens)
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            for seed in range(4):
                written(reader, prompt(3000, seed), end=True)
            assert collector.collect_garbage(label, target_share=0.3, deadline_s=20).is_done
            gossip([collector, reader])
        done.set()
        for thread in threads:
            thread.join(20)
        assert problems == []
        assert 3000 in seen
        reader.check_integrity()
        assert reader.stats().corrupt == {}


ROOT = Path(__file__).resolve().parents[3]

_READER = """
import sys
sys.path.insert(0, {repo!r})
from tests.support.store_kit import prompt, restore
from cache_store import Store, StoreConfig, TierConfig
with Store(StoreConfig(tiers=(TierConfig({tier!r}),))) as store:
    assert store.wait_loaded(10)
    for line in sys.stdin:
        print(*(restore(store, store.root("model"), prompt(3000, seed)).n_tokens for seed in range(4)), flush=True)
    assert store.stats().corrupt == {{}}
"""


def test_a_reader_in_another_process_has_misses_and_nothing_worse(tmp_path):
    code = _READER.format(repo=str(ROOT), tier=str(tmp_path))
    with opened(tmp_path) as collector, opened(tmp_path, None) as writer:
        for seed in range(4):
            written(writer, prompt(3000, seed))
        reader = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        lines: list[list[int]] = []
        with reader:
            for share in (1.0, 0.7, 0.4, 0.2, 0.1):
                reader.stdin.write("\n")
                reader.stdin.flush()
                collector.collect_garbage("disk", target_share=share, deadline_s=20)
                lines.append([int(n) for n in reader.stdout.readline().split()])
            reader.stdin.close()
        assert reader.returncode == 0
        assert [len(line) for line in lines] == [4] * 5
        assert sum(lines[0]) > sum(lines[-1]) > 0
