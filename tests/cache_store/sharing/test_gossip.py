"""What one store tells is what another one knows, at once; and nothing that is told does harm."""

import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import (
    BadDelta,
    Block,
    BlockId,
    IndexDelta,
    Kind,
    Store,
    StoreConfig,
    TierConfig,
    TierDelta,
    TokenChain,
)
from cache_store.index.delta import DeltaLog, Record, pack
from cache_store.testing import Fault
from tests.support.store_kit import FaultyTiers, files_below, key_of, opened, prompt, restore, save, written


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "tier")),), retry_s=0.01)


@pytest.fixture
def pair(config):
    with opened(config) as one, opened(config) as other:
        yield one, other


def known_to(store: Store, tier: int = 0) -> dict[BlockId, int]:
    return {entry.id: entry.n_bytes for entry in store._stack.index.rows(tier)}


def scores_of(store: Store) -> dict[BlockId, int]:
    return {entry.id: entry.hits for entry in store._stack.index.rows(0)}


def test_a_prefix_shorter_than_a_block_is_found_as_soon_as_it_is_heard_of(pair):
    one, other = pair
    root, tokens = one.root("model"), prompt(100)
    written(one, tokens, end=True)
    assert other.lookup(TokenChain(root, tokens), deadline_s=5).n_tokens == 0
    assert other.apply_deltas([one.take_delta()]) == 2
    assert restore(other, root, tokens).n_tokens == 100
    assert restore(other, root, np.append(tokens[:60], prompt(50, seed=2))).n_tokens == 60


def test_what_was_heard_needs_no_probing(pair):
    one, other = pair
    written(one, prompt(1000), end=True)
    other.apply_deltas([one.take_delta()])
    assert restore(other, one.root("model"), prompt(1000)).n_tokens == 1000
    assert other.stats().probes == 0


def test_a_delta_is_told_once(pair):
    one, other = pair
    written(one, prompt(600))
    assert other.apply_deltas([one.take_delta()]) == 3
    assert one.take_delta().is_empty
    assert other.apply_deltas([one.take_delta()]) == 0


def test_a_store_ignores_its_own_delta(pair):
    one, _ = pair
    written(one, prompt(600))
    delta = one.take_delta()
    one.evict_bytes("disk", 1 << 30)
    assert one.apply_deltas([delta]) == 0
    assert one.stats().tiers[0].objects == 0


def test_what_another_removed_is_forgotten(pair):
    one, other = pair
    written(one, prompt(600))
    other.apply_deltas([one.take_delta()])
    one.evict_bytes("disk", 1 << 30)
    assert other.apply_deltas([one.take_delta()]) == 3
    assert other.stats().tiers[0].n_bytes == 0
    assert len(other.missing(TokenChain(one.root("model"), prompt(600)), 600)) == 3


def test_of_a_write_and_a_removal_the_last_one_counts(pair):
    one, other = pair
    written(one, prompt(600))
    one.evict_bytes("disk", 1 << 30)
    written(one, prompt(256))
    other.apply_deltas([one.take_delta()])
    assert known_to(other) == known_to(one)
    assert len(known_to(one)) == 1


def test_an_object_that_was_found_damaged_is_told(pair, tmp_path):
    one, other = pair
    written(one, prompt(256))
    other.apply_deltas([one.take_delta()])
    (path,) = files_below(tmp_path)
    path.write_bytes(b"junk")
    assert restore(one, one.root("model"), prompt(256)).n_tokens == 0
    assert other.apply_deltas([one.take_delta()]) == 1


def test_hits_of_others_count_like_our_own(pair):
    one, other = pair
    written(one, prompt(300))
    other.apply_deltas([one.take_delta()])
    for _ in range(3):
        restore(one, one.root("model"), prompt(300))
    other.apply_deltas([one.take_delta()])
    assert scores_of(other) == scores_of(one)
    assert set(scores_of(one).values()) == {3}


def test_hits_that_were_heard_are_not_told_again(pair):
    one, other = pair
    written(one, prompt(300))
    other.apply_deltas([one.take_delta()])
    restore(one, one.root("model"), prompt(300))
    other.apply_deltas([one.take_delta()])
    assert other.take_delta().is_empty


def test_deltas_survive_pickling_and_are_small(pair):
    one, other = pair
    written(one, prompt(256 * 100))
    pickled = pickle.dumps(one.take_delta())
    assert len(pickled) < 100 * (100 + 4 * 256) + 600
    assert other.apply_deltas([pickle.loads(pickled)]) == 100
    assert restore(other, one.root("model"), prompt(256 * 100)).n_tokens == 256 * 100


def test_a_replay_and_an_end_are_told(pair):
    one, other = pair
    root = one.root("model")
    replay = BlockId(root, Kind.REPLAY, key_of(root, prompt(300)), key_of(root, prompt(5, seed=9)))
    one.save([Block(replay, prompt(40))])
    written(one, prompt(300), end=True, checkpoint=True)
    other.apply_deltas([one.take_delta()])
    assert other.has(replay)
    assert other.lookup(TokenChain(root, prompt(300)), need_end=True, deadline_s=5).n_tokens == 300


# --- places ---------------------------------------------------------------------------------------


def test_deltas_about_a_directory_of_the_same_path_elsewhere_do_not_count(config, tmp_path):
    """Another node's disk: the same configuration, another place."""
    with opened(config) as one:
        written(one, prompt(600))
        delta = one.take_delta()
    (tmp_path / "tier").rename(tmp_path / "other node")
    with opened(config) as other:
        assert [tier.url for tier in other.take_delta().tiers] == [tier.url for tier in delta.tiers]
        assert other.apply_deltas([delta]) == 0


def test_deltas_about_one_directory_under_two_paths_count(config, tmp_path):
    """An export that nodes mount wherever they like."""
    (tmp_path / "tier").mkdir()
    (tmp_path / "mount").symlink_to(tmp_path / "tier")
    with opened(config) as one, opened(StoreConfig(tiers=(TierConfig(str(tmp_path / "mount")),))) as other:
        written(one, prompt(600))
        assert other.apply_deltas([one.take_delta()]) == 3


def test_a_tier_is_recognised_whatever_its_level(tmp_path):
    shared = TierConfig(f"memory://{tmp_path.name}")
    with (
        opened(StoreConfig(tiers=(TierConfig(str(tmp_path / "one")), shared))) as one,
        opened(StoreConfig(tiers=(shared,))) as other,
    ):
        save(one, one.root("model"), prompt(600))
        one.close(10)
        assert other.apply_deltas([one.take_delta()]) == 3
        assert restore(other, one.root("model"), prompt(600)).n_tokens == 600


def test_stores_that_start_at_once_know_that_they_share_a_tier(config):
    stores = [Store(config) for _ in range(8)]
    for store in stores:
        assert store.wait_loaded(10)
    tiers = [store.take_delta().tiers[0] for store in stores]
    assert all(tier.ids & other.ids for tier in tiers for other in tiers)
    for store in stores:
        store.close(5)


def test_a_tier_that_can_hold_no_id_is_unknown_to_others_and_works(config):
    tiers = FaultyTiers()

    def read_only(tier):
        faulty = tiers(tier)
        faulty.inject("publish", Fault.READ_ONLY, times=None)
        return faulty

    with opened(config, open=read_only) as store:
        (tier,) = store.take_delta().tiers
        assert tier.ids == frozenset()
        assert store.apply_deltas([IndexDelta("other", (replace(tier, ids=frozenset({"x"})),))]) == 0


# --- lies and bounds ------------------------------------------------------------------------------


def test_an_object_that_is_not_there_costs_one_miss(pair, tmp_path):
    one, other = pair
    root, tokens = one.root("model"), prompt(1000)
    written(one, tokens)
    other.apply_deltas([one.take_delta()])
    for path in files_below(tmp_path):
        path.unlink()
    assert restore(other, root, tokens).n_tokens == 0
    written(other, tokens)
    assert restore(other, root, tokens).n_tokens == 1000


def test_tokens_that_a_name_does_not_prove_are_not_believed(pair):
    one, other = pair
    root, tokens, lie = one.root("model"), prompt(100), prompt(100, seed=2)
    written(one, tokens)
    delta = one.take_delta()
    forged = tuple(
        replace(p, written=p.written.replace(tokens.astype(">u4").tobytes(), lie.astype(">u4").tobytes()))
        for p in delta.tiers
    )
    assert forged != delta.tiers
    other.apply_deltas([replace(delta, tiers=forged)])
    assert other.lookup(TokenChain(root, lie), deadline_s=5).n_tokens == 0
    assert restore(other, root, tokens).n_tokens == 100


def test_tokens_are_proven_wherever_in_a_block_an_object_begins(pair):
    one, other = pair
    root, tokens = one.root("model"), prompt(700)
    for upto in (100, 200, 300, 650, 700):
        written(one, tokens[:upto])
    other.apply_deltas([one.take_delta()])
    for n in (50, 150, 250, 280, 400, 640, 670, 690):
        assert (
            other._stack.index.longest_prefix(
                TokenChain(root, np.append(tokens[:n], tokens[n] + np.uint32(1)))
            ).n_tokens
            == n
        )


def test_deltas_that_make_no_sense_are_counted_and_nothing_else(pair):
    one, other = pair
    written(one, prompt(1000), end=True)
    restore(one, one.root("model"), prompt(1000))
    delta = one.take_delta()
    rng = random.Random(1)
    for _ in range(500):
        tier = delta.tiers[0]
        field = rng.choice(("written", "removed"))
        junk = bytearray(tier.written)
        for _ in range(rng.choice((1, 3, 30))):
            junk[rng.randrange(len(junk))] = rng.randrange(256)
        bad = replace(tier, **{field: bytes(junk[: rng.randrange(len(junk))])})
        other.apply_deltas(
            [
                replace(
                    delta, tiers=(bad,), roots=rng.choice((delta.roots, delta.roots[:9], b"")), used=rng.randbytes(99)
                )
            ]
        )
        other.check_integrity()
    assert other.stats().corrupt["delta"] > 400
    other.rescan()
    assert known_to(other) == known_to(one)
    assert restore(other, one.root("model"), prompt(1000)).n_tokens == 1000


def test_deltas_about_everything_there_is_cost_no_io(config):
    tiers = FaultyTiers()
    with opened(config) as one, opened(config, open=tiers) as other:
        written(one, prompt(2560))
        calls = sum(tiers.tiers[0].calls.values())
        tiers.tiers[0].inject("*", Fault.HANG, times=None)
        assert other.apply_deltas([one.take_delta()]) == 10
        assert other.take_delta().is_empty
        assert sum(tiers.tiers[0].calls.values()) == calls
        tiers.tiers[0].heal()


def test_the_newest_objects_are_kept_and_the_loss_is_told():
    log = DeltaLog(2, max_objects=10)
    root = key_of("0" * 64, prompt(1))
    ids = [BlockId(root, Kind.ROWS, key_of(root, prompt(1)), key_of(root, prompt(n)), 1, n) for n in range(2, 20)]
    for id in ids[:10]:
        log.wrote(id, 1, 5)
    log.used(ids)
    changes = log.take()
    assert (changes.incomplete, len(changes.tiers[1]), list(changes.used)) == (False, 10, ids[-10:])
    for id in ids:
        log.wrote(id, 1, 5)
        log.removed(id, 0)
    changes = log.take()
    assert changes.incomplete
    assert list(changes.tiers[0]) == list(changes.tiers[1]) == ids[-10:]
    assert not log.take().incomplete


def test_deltas_that_left_something_out_are_not_empty():
    assert not IndexDelta("owner", incomplete=True).is_empty
    assert IndexDelta("owner", (TierDelta("disk", "file:///x", True, frozenset({"a"})),)).is_empty


_keys = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def items(draw):
    kind = draw(st.sampled_from(list(Kind)))
    n_tokens = draw(st.integers(1, 256)) if kind is Kind.ROWS else 0
    tokens = draw(st.none() | st.binary(min_size=4 * n_tokens, max_size=4 * n_tokens)) if n_tokens else None
    id = BlockId(draw(_keys), kind, draw(_keys), draw(_keys), draw(st.integers(0, (1 << 32) - 1)), n_tokens)
    return Record(id, draw(st.integers(0, (1 << 64) - 1)), tokens)


@given(st.lists(items(), max_size=20))
def test_what_is_packed_is_unpacked(told):
    roots = {}
    records = pack(told, roots)
    assert list(IndexDelta("owner", roots=bytes.fromhex("".join(roots))).unpacked(records)) == told


@given(st.lists(items(), min_size=1, max_size=3), st.data())
def test_records_that_are_cut_are_refused(told, data):
    roots = {}
    records = pack(told, roots)
    whole = {len(pack(told[:n], roots)) for n in range(len(told))}
    cut = data.draw(st.integers(0, len(records) - 1).filter(lambda n: n not in whole))
    with pytest.raises(BadDelta):
        list(IndexDelta("owner", roots=bytes.fromhex("".join(roots))).unpacked(records[:cut]))


def test_stores_that_hear_of_each_other_converge_to_what_is_on_disk(config, tmp_path):
    rng = random.Random(3)
    stores = [opened(config) for _ in range(3)]
    root = stores[0].root("model")
    for _ in range(40):
        store = rng.choice(stores)
        tokens = prompt(2000, seed=rng.randrange(4))
        match rng.randrange(4):
            case 0:
                store.evict_bytes("disk", rng.randrange(1, 30_000))
            case 1:
                restore(store, root, tokens)
            case _:
                save(store, root, tokens, rng.randrange(1, 2000), end=True)
                assert store.flush(10)
        delta = [store.take_delta() for store in stores]
        for store in stores:
            store.apply_deltas(delta)
            store.check_integrity()
    tier = Path(tmp_path / "tier")
    on_disk = {BlockId.parse(str(path.relative_to(tier))): path.stat().st_size for path in files_below(tier)}
    assert len(on_disk) > 5
    for store in stores:
        assert known_to(store) == on_disk
        store.close(5)


# --- what is believed and gone --------------------------------------------------------------------


@pytest.mark.parametrize("n_lost", [1, 2, 4])
def test_a_chain_that_goes_on_from_objects_that_are_gone_heals_with_the_next_save(pair, tmp_path, n_lost):
    """One hears of what the other wrote, writes behind it, and only then the other's objects go
    without a word.
    """
    one, other = pair
    root, tokens = one.root("model"), prompt(1500)
    written(one, tokens, upto=1024)
    other.apply_deltas([one.take_delta()])
    lost = files_below(tmp_path)
    written(other, tokens, end=True)
    for path in sorted(lost, key=lambda path: BlockId.parse(str(path.relative_to(tmp_path / "tier"))).start)[
        4 - n_lost :
    ]:
        path.unlink()
    one.apply_deltas([other.take_delta()])
    for store in (one, other):
        assert restore(store, root, tokens).n_tokens == 1024 - n_lost * 256
        assert store.missing(TokenChain(root, tokens), 1500)[0].start == 1024 - n_lost * 256
    written(one, tokens)
    other.apply_deltas([one.take_delta()])
    for store in (one, other):
        assert restore(store, root, tokens).n_tokens == 1500


def test_what_found_no_room_once_may_be_continued_when_another_has_written_it(tmp_path):
    tier = TierConfig(str(tmp_path / "tier"), max_bytes=24_000)
    with (
        opened(StoreConfig(tiers=(tier,), pin_share=0.9)) as one,
        opened(StoreConfig(tiers=(replace(tier, max_bytes=None),))) as other,
    ):
        root, pinned, tokens = one.root("model"), prompt(512, seed=2), prompt(512)
        written(one, pinned)
        one.pin(TokenChain(root, pinned), ttl_s=60, name="mine")
        written(one, tokens, upto=256)
        assert one.stats().dropped == {"full": 1}
        one.unpin("mine")
        one.evict_bytes("disk", 1 << 30)
        written(other, tokens, upto=256)
        one.apply_deltas([other.take_delta()])
        written(one, tokens)
        assert one.stats().dropped == {"full": 1}
        assert restore(other, root, tokens).n_tokens == 512
