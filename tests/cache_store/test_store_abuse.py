"""Whatever happens to its files, its file systems and its processes: never an exception, never a
wrong row, never a hang.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_store import BlockId, Kind, Store, StoreConfig, TierConfig, TokenChain
from cache_store.format.file import decode
from cache_store.testing import Fault
from tests.support.bounds import NO_WAIT_S, STORE_GIVES_UP_S
from tests.support.store_kit import FaultyTiers, Restored, files_below, logits_of, prompt, restore, rows_of, save

TOKENS = prompt(2048)


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), retry_s=0.01)


def filled(config: StoreConfig, tokens: np.ndarray = TOKENS) -> Store:
    """An open store that holds `tokens` and the logits after them."""
    store = Store(config)
    assert store.wait_loaded(10)
    save(store, store.root("model"), tokens, end=True)
    assert store.flush(20)
    return store


def damaged(rng: random.Random, good: bytes, others: list[bytes]) -> bytes:
    """`good` with any one accident that happens to files; never the same bytes."""
    at = rng.randrange(len(good))
    match rng.randrange(8):
        case 0:
            return good[:at]
        case 1:
            return good + rng.randbytes(rng.randrange(1, 100))
        case 2:
            return good[:at] + bytes(len(good) - at) if any(good[at:]) else b""
        case 3:
            return rng.choice([other for other in others if other != good])
        case 4:
            return rng.randbytes(len(good))
        case 5:
            return good[:at] + rng.randbytes(4) + good[at:]
        case _:
            flipped = bytearray(good)
            for _ in range(rng.choice((1, 1, 2, 30))):
                flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            return bytes(flipped) if flipped != good else b""


def test_nine_thousand_damaged_files_are_refused_counted_and_removed(config, tmp_path):
    rng = random.Random(1)
    with filled(config) as store:
        pristine = {path: path.read_bytes() for path in files_below(tmp_path / "tier")}
        ids = {path: BlockId.parse(str(path.relative_to(tmp_path / "tier"))) for path in pristine}
        assert {id.kind for id in ids.values()} == {Kind.ROWS, Kind.END}
        for _ in range(1000):
            for path, good in pristine.items():
                path.write_bytes(damaged(rng, good, list(pristine.values())))
                assert store.get(ids[path], 5) is None
                assert not path.exists()
                path.write_bytes(good)
        assert sum(store.stats().corrupt.values()) == 1000 * len(pristine)
        assert restore(store, store.root("model"), TOKENS).n_tokens == 2048


def test_a_thousand_damaged_chains_are_restored_up_to_the_damage(config, tmp_path):
    rng = random.Random(2)
    with filled(config) as store:
        root = store.root("model")
        pristine = {path: path.read_bytes() for path in files_below(tmp_path / "tier")}
        starts = {path: BlockId.parse(str(path.relative_to(tmp_path / "tier"))).start for path in pristine}
        found = 0
        for _ in range(1000):
            plan = store.lookup(TokenChain(root, TOKENS), deadline_s=5)
            assert (plan.n_tokens, len(plan.ends) == 1) == (2048, True)
            for path in (bad := rng.sample(sorted(pristine), rng.randrange(1, 4))):
                path.write_bytes(damaged(rng, pristine[path], list(pristine.values())))
            restored = Restored(TOKENS)
            fetched = store.read(plan, restored, 5)
            assert fetched.n_tokens == restored.n_tokens == min(2048, *(starts[path] for path in bad))
            assert fetched.logits is None or np.array_equal(fetched.logits, logits_of(TOKENS))
            found, before = sum(store.stats().corrupt.values()), found
            assert found > before
            for path in bad:
                path.write_bytes(pristine[path])


def test_foreign_files_are_left_alone_and_not_counted(config, tmp_path):
    foreign = [
        tmp_path / "tier" / name
        for name in ("README", "a/b/c", "0" * 64 + "/aa/x.arrow", "index/notes.txt", "x.rows.arrow")
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine" * 1000)
    with filled(config) as store:
        root = store.root("model")
        beside = files_below(tmp_path / "tier" / root)[0]
        neighbour = beside.with_name(beside.name[:-10] + "junk")
        neighbour.write_bytes(b"mine")
        store.rescan()
        assert store.stats().tiers[0].objects == 9
        store.evict_bytes("disk", 1 << 40)
        assert store.stats().tiers[0].n_bytes == 0
        store.rescan()
        assert all(path.exists() for path in [*foreign, neighbour])


def test_readers_beside_an_evictor_see_whole_prefixes(config):
    with filled(config) as store, Store(config) as evictor:
        root = store.root("model")
        done = threading.Event()
        seen: list[int] = []
        problems: list[BaseException] = []

        def read() -> None:
            try:
                while not done.is_set():
                    seen.append(restore(store, root, TOKENS).n_tokens)
            except BaseException as problem:
                problems.append(problem)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for _ in range(15):
            evictor.rescan()
            evictor.evict_bytes("disk", 20_000)
            save(store, root, TOKENS)
            assert store.flush(10)
        done.set()
        for reader in readers:
            reader.join(20)
        assert problems == []
        assert seen
        assert all(n % 256 == 0 for n in seen)


@pytest.mark.parametrize("replacement", [None, "file"], ids=["gone", "a file in its place"])
def test_a_directory_that_vanishes_is_a_miss_and_comes_back_if_it_can(config, tmp_path, replacement):
    with filled(config) as store:
        root = store.root("model")
        shutil.rmtree(tmp_path / "tier")
        if replacement:
            (tmp_path / "tier").write_bytes(b"")
        assert restore(store, root, TOKENS).n_tokens == 0
        store.rescan()
        save(store, root, prompt(600, seed=5))
        assert store.flush(10)
        expected = 0 if replacement else 600
        assert restore(store, root, prompt(600, seed=5)).n_tokens == expected
        assert bool(sum(store.stats().dropped.values())) == bool(replacement)


def test_a_hole_in_a_chain_ends_the_prefix_and_is_filled_by_the_next_save(config, tmp_path):
    with filled(config) as store:
        root = store.root("model")
        gap = next(
            path
            for path in files_below(tmp_path / "tier")
            if BlockId.parse(str(path.relative_to(tmp_path / "tier"))).start == 768
        )
        gap.unlink()
        assert restore(store, root, TOKENS).n_tokens == 768
        save(store, root, TOKENS)
        assert store.flush(10)
        assert restore(store, root, TOKENS).n_tokens == 2048


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.READ_ONLY, Fault.NO_SPACE])
@pytest.mark.parametrize("operation", ["*", "read", "list", "stat", "delete", "publish"])
def test_a_tier_that_fails_costs_hits_and_nothing_else(config, fault, operation):
    faulty = FaultyTiers()
    filled(config).close(10)
    with Store(config, open=faulty) as store:
        faulty.tiers[0].inject(operation, fault, times=None)
        root = store.root("model")
        for _ in range(3):
            restore(store, root, TOKENS)
            save(store, root, prompt(300, seed=4))
            store.evict_bytes("disk", 1000)
            store.rescan()
        assert store.flush(10)
        faulty.tiers[0].heal()


def test_a_tier_that_cannot_be_swept_is_listed_all_the_same(config):
    """One that is mounted read-only."""
    filled(config).close(10)

    def read_only(tier):
        faulty = FaultyTiers()(tier)
        for operation in ("publish", "sweep", "delete"):
            faulty.inject(operation, Fault.READ_ONLY, times=None)
        return faulty

    with Store(config, open=read_only) as store:
        assert store.wait_loaded(10)
        assert store.stats().tiers[0].objects > 0
        assert all(store._maintenance.is_listed(tier) for tier in store._stack.tiers)


def test_a_tier_that_hangs_does_not_hold_a_reader_beyond_its_deadline(config):
    faulty = FaultyTiers()
    filled(config).close(10)
    with Store(config, open=faulty) as store:
        assert store.wait_loaded(10)
        root = store.root("model")
        plan = store.lookup(TokenChain(root, TOKENS), deadline_s=5)
        assert plan.n_tokens == 2048
        faulty.tiers[0].inject("*", Fault.HANG, times=None)
        began = time.monotonic()
        assert store.read(plan, Restored(TOKENS), 0.2).n_tokens == 0
        store.lookup(TokenChain(root, prompt(600, seed=7)), deadline_s=0.2)
        assert store.get(plan.hops[0].id, 0.2) is None
        assert store.claim([plan.hops[0].id.key], 10) in (0, 1)
        assert time.monotonic() - began < STORE_GIVES_UP_S
        faulty.tiers[0].heal()


def test_a_tier_whose_every_call_hangs_is_refused_at_once(config):
    faulty = FaultyTiers()
    filled(config).close(10)
    with Store(config, open=faulty) as store:
        assert store.wait_loaded(10)
        plan = store.lookup(TokenChain(store.root("model"), TOKENS), deadline_s=5)
        faulty.tiers[0].inject("read", Fault.HANG, times=None)
        for _ in range(3):
            store.read(plan, Restored(TOKENS), 0.1)
        began = time.monotonic()
        assert store.read(plan, Restored(TOKENS), 30).n_tokens == 0
        assert time.monotonic() - began < NO_WAIT_S
        faulty.tiers[0].heal()


def test_a_read_goes_on_in_the_next_tier_where_the_first_fails(tmp_path):
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), TierConfig(str(tmp_path / "slow"))))
    filled(config).close(10)
    faulty = FaultyTiers()
    with Store(config, open=faulty) as store:
        assert store.wait_loaded(10)
        faulty.tiers[0].inject("read", Fault.FAIL, skip=3, times=1)
        faulty.tiers[0].inject("read", Fault.TEAR, n_bytes=500, skip=2, times=1)
        plan = store.lookup(TokenChain(store.root("model"), TOKENS), deadline_s=5)
        fetched = store.read(plan, Restored(TOKENS), 10)
        assert (fetched.n_tokens, fetched.tier) == (2048, "disk2")
        assert sum(store.stats().corrupt.values()) == 1


def test_a_deadline_that_has_passed_is_a_miss(config):
    with filled(config) as store:
        plan = store.lookup(TokenChain(store.root("model"), TOKENS), deadline_s=0)
        assert store.read(plan, Restored(TOKENS), 0).n_tokens == 0


def test_a_consumer_that_raises_is_heard_and_leaks_nothing(config):
    with filled(config) as store:
        root = store.root("model")

        def refuse(block, n_use):
            raise KeyError(n_use)

        for _ in range(50):
            with pytest.raises(KeyError):
                store.read(store.lookup(TokenChain(root, TOKENS), deadline_s=5), refuse, 5)
        assert restore(store, root, TOKENS).n_tokens == 2048


def test_a_clock_that_jumps_disturbs_nothing(tmp_path):
    jump = [0.0]
    config = StoreConfig(tiers=(TierConfig(str(tmp_path / "tier"), max_bytes=100_000),))
    with Store(config, unix_s=lambda: time.time() + jump[0]) as store:
        root = store.root("model")
        for seed, jump[0] in enumerate((0, 1e9, -2e9, float("nan"), 3600, -1e12, 5)):
            save(store, root, prompt(1000, seed))
            assert store.flush(10)
            assert restore(store, root, prompt(1000, seed)).n_tokens == 1000
            store.rescan()
    assert sum(path.stat().st_size for path in files_below(tmp_path / "tier")) <= 100_000


ROOT = Path(__file__).resolve().parents[2]

_WRITER = """
import sys
sys.path.insert(0, {repo!r})
from tests.support.store_kit import prompt, save
from cache_store import Store, StoreConfig, TierConfig
store = Store(StoreConfig(tiers=(TierConfig({fast!r}), TierConfig({slow!r}))))
print("ready", flush=True)
seed = 0
while True:
    save(store, store.root("model"), prompt(4096, seed), end=True)
    store.flush(10)
    seed += 1
    print(seed, flush=True)
"""


def test_a_writer_that_is_killed_leaves_nothing_but_good_objects(tmp_path):
    code = _WRITER.format(repo=str(ROOT), fast=str(tmp_path / "fast"), slow=str(tmp_path / "slow"))
    for wait_for in (2, 1, 3):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(1 + wait_for):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    n_objects = 0
    for tier in ("fast", "slow"):
        for path in files_below(tmp_path / tier):
            decode(path.read_bytes(), BlockId.parse(str(path.relative_to(tmp_path / tier))))
            n_objects += 1
    assert n_objects >= 17
    temp = tmp_path / "fast" / ".tmp-1-dead"
    temp.write_bytes(b"half")
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), TierConfig(str(tmp_path / "slow"))))) as store:
        assert store.wait_loaded(10)
        assert restore(store, store.root("model"), prompt(4096, 0)).n_tokens == 4096
        assert temp.exists(), "young: its writer may live"
    os.utime(temp, (1, 1))
    with Store(StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")),))) as store:
        assert store.wait_loaded(10)
        assert not temp.exists()


def test_a_block_whose_tokens_are_not_the_prompts_is_not_consumed(config):
    """What an index that was told wrong (by a snapshot) makes a plan of."""
    with filled(config) as store:
        root = store.root("model")
        plan = store.lookup(TokenChain(root, TOKENS), deadline_s=5)
        lie = replace(plan, chain=TokenChain(root, np.concatenate([TOKENS[:600], TOKENS[601:], TOKENS[:1]])))
        assert store.read(lie, Restored(lie.chain.ids), 5).n_tokens == 512
        assert restore(store, root, TOKENS).n_tokens == 2048


def test_rows_of_the_kit_tell_positions_apart():
    assert not np.array_equal(rows_of(TOKENS, 0, 256)[0], rows_of(TOKENS, 256, 512)[0])
