"""Pins: what they keep, for how long, in which processes, and up to how much."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import Store, StoreConfig, StoreFull, TierConfig, TokenChain
from cache_store.format.block import BlockId
from cache_store.sharing.pin import LONGEST_S, PREFIX, Pin, decode, encode, holding, newest
from cache_store.testing import Fault
from tests.support.store_kit import FaultyTiers, end_block, key_of, opened, prompt, restore, save, wait_until, written

KB = 1 << 10


class Wall:
    """A wall clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "shared"), max_bytes=256 * KB),), retry_s=0.01, pin_share=0.9)


def chain(store: Store, seed: int = 1, n: int = 512) -> TokenChain:
    return TokenChain(store.root("model"), prompt(n, seed))


def n_kept(store: Store, seed: int, n: int = 512) -> int:
    return restore(store, store.root("model"), prompt(n, seed)).n_tokens


def pin_files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "shared" / "pins").glob("*"))


# --- across processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("by_key", [False, True])
def test_a_pin_of_one_process_holds_in_all_that_share_the_tier(config, wall, by_key):
    with opened(config, unix_s=wall) as one, opened(config, unix_s=wall) as other:
        for seed in (1, 2):
            written(one, prompt(512, seed))
        pinned = chain(one)
        info = one.pin(pinned.key_at(512) if by_key else pinned, ttl_s=60, name="system", owner="ada", wait_s=5)
        assert (info.key, info.n_tokens, info.tiers) == (pinned.key_at(512), 512, ("disk",))
        other.rescan()
        other.evict_bytes("disk", 1 << 30)
        assert [n_kept(other, 1), n_kept(other, 2)] == [512, 0]
        assert [(pin.owner, pin.name, pin.n_tokens) for pin in other.pins()] == [("ada", "system", 512)]
        assert other.unpin("system", "ada", wait_s=5)
        one.evict_bytes("disk", 1 << 30)
        assert (n_kept(one, 1), one.pins()) == (0, ())


def test_garbage_collection_keeps_what_another_process_pinned(config, wall):
    with opened(config, unix_s=wall) as one, opened(config, unix_s=wall) as collector:
        for seed in range(8):
            written(one, prompt(512, seed))
        one.pin(chain(one, 0), ttl_s=60, wait_s=5)
        done = collector.collect_garbage("disk", target_share=0.1, deadline_s=20)
        assert [n_kept(one, 0), done.is_done] == [512, True]
        assert sum(n_kept(one, seed) > 0 for seed in range(1, 8)) == 0


def test_a_pin_holds_after_a_restart(config, wall):
    with opened(config, unix_s=wall) as one:
        written(one, prompt(512))
        one.pin(chain(one), ttl_s=60)  # nobody waits: closing publishes it
    with opened(config, unix_s=wall) as again:
        again.evict_bytes("disk", 1 << 30)
        assert n_kept(again, 1) == 512


def test_pins_are_published_and_learnt_without_being_asked(config, wall):
    with opened(config, unix_s=wall) as one, opened(config, unix_s=wall) as other:
        written(one, prompt(512))
        one.pin(chain(one), ttl_s=60, name="soon")
        wait_until(lambda: [pin.name for pin in other.pins()] == ["soon"])
        one.unpin("soon")
        wait_until(lambda: other.pins() == ())


def test_a_revocation_wins_over_a_copy_that_it_could_not_reach(tmp_path, wall):
    """The pin lies in a tier of one node alone, too; another node takes it back."""
    shared = TierConfig(str(tmp_path / "shared"))
    node = StoreConfig(tiers=(TierConfig(str(tmp_path / "node")), shared), retry_s=0.01)
    with opened(node, unix_s=wall) as one:
        written(one, prompt(512))
        one.pin(chain(one), ttl_s=60, name="mine", wait_s=5)
    with opened(StoreConfig(tiers=(shared,)), unix_s=wall) as other:
        assert other.unpin("mine", wait_s=5)
    with opened(node, unix_s=wall) as again:
        assert again.pins() == ()
        for label in again.tier_labels:
            again.evict_bytes(label, 1 << 30)
        assert n_kept(again, 1) == 0


def test_a_tier_that_fails_costs_the_pin_and_not_the_caller(config, wall):
    tiers = FaultyTiers()
    with opened(config, unix_s=wall, open=tiers) as store:
        written(store, prompt(512))
        tiers.tiers[0].inject("publish", Fault.FAIL, times=None)
        tiers.tiers[0].inject("list", Fault.FAIL, times=None)
        assert store.pin(chain(store), ttl_s=60, wait_s=1) is not None
        store.evict_bytes("disk", 1 << 30)
        tiers.tiers[0].heal()
        assert n_kept(store, 1) == 512


def test_a_pin_that_nobody_waits_for_is_made_on_a_thread_of_the_store(config):
    with opened(config) as store:
        written(store, prompt(512))
        store.pin_soon(chain(store), 60, "ada")
        wait_until(lambda: [pin.owner for pin in store.pins()] == ["ada"])
        store.pin_soon(chain(store), -1)
        wait_until(lambda: store.stats().dropped == {"pin": 1})
        store.pin_soon(chain(store), 600)
    with opened(config) as again:  # closing makes what was wanted
        assert len(again.pins()) == 2


# --- time -----------------------------------------------------------------------------------------


def test_an_expired_pin_holds_nothing_and_its_file_goes(config, wall, tmp_path):
    with opened(config, unix_s=wall) as store:
        written(store, prompt(512))
        store.pin(chain(store), ttl_s=60, wait_s=5)
        assert len(pin_files(tmp_path)) == 1
        wall.now_s += 59
        store.evict_bytes("disk", 1 << 30)
        assert n_kept(store, 1) == 512
        wall.now_s += 2
        store._pins.judge(always=True)  # sizes and times are looked at again every few seconds
        store.evict_bytes("disk", 1 << 30)
        assert (n_kept(store, 1), store.pins(), pin_files(tmp_path)) == (0, (), [])


def test_the_same_name_again_is_a_new_end_in_one_file(config, wall, tmp_path):
    with opened(config, unix_s=wall) as store:
        written(store, prompt(512))
        for ttl_s in (60, 600, 30):
            wall.now_s += 1
            store.pin(chain(store), ttl_s=ttl_s, name="mine", wait_s=5)
        (pin,) = store.pins()
        assert pin.expires_s == wall.now_s + 30
        store.evict_bytes("disk", 1)  # lists the pins
        assert len(pin_files(tmp_path)) == 1


def test_a_pin_that_is_asked_for_again_soon_writes_nothing(config, wall, tmp_path):
    with opened(config, unix_s=wall) as store:
        written(store, prompt(512))
        store.pin(chain(store), ttl_s=300, wait_s=5)
        before = pin_files(tmp_path)
        wall.now_s += 30
        store.pin(chain(store), ttl_s=300, wait_s=5)
        store.pin(chain(store).prefix(256), ttl_s=300, wait_s=5)  # a part of the same
        assert pin_files(tmp_path) == before
        wall.now_s += 60
        store.pin(chain(store), ttl_s=300, wait_s=5)
        assert [pin.expires_s for pin in store.pins()] == [wall.now_s + 300]


def test_a_longer_prefix_takes_the_place_of_the_shorter_one(config, wall, tmp_path):
    """As a conversation grows: but a pin that has a name, or lasts longer, stays."""
    with opened(config, unix_s=wall) as store:
        written(store, prompt(1024))
        whole = chain(store, n=1024)
        store.pin(whole.prefix(256), ttl_s=600, name="named")
        store.pin(whole.prefix(300), ttl_s=9000)
        for n in (512, 700, 1024):
            store.pin(whole.prefix(n), ttl_s=300 + n, wait_s=5)
        assert sorted(pin.n_tokens for pin in store.pins()) == [256, 300, 1024]
        store.evict_bytes("disk", 1)
        assert len(pin_files(tmp_path)) == 3


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan, math.inf, LONGEST_S + 1])
def test_times_out_of_bounds_are_refused(config, ttl_s):
    with opened(config) as store, pytest.raises(ValueError, match="ttl_s"):
        store.pin(chain(store), ttl_s=ttl_s)


def test_what_is_not_stored_can_be_pinned_as_a_prompt_only(config):
    with opened(config) as store:
        assert store.pin(chain(store).key_at(512), ttl_s=60) is None
        assert store.pin(chain(store), ttl_s=60).n_bytes == 0
        written(store, prompt(512))
        store.evict_bytes("disk", 1 << 30)
        assert n_kept(store, 1) == 512


def test_the_end_of_a_model_that_goes_on_from_checkpoints_alone_stays(config):
    with opened(config) as store:
        root, tokens = store.root("model"), prompt(512)
        save(store, root, tokens, end=True, checkpoint=True)
        assert store.flush(10)
        store.pin(TokenChain(root, tokens), ttl_s=60)
        store.evict_bytes("disk", 1 << 30)
        assert restore(store, root, tokens, need_end=True).n_tokens == 512
        assert store.has(end_block(root, tokens).id)


# --- how much -------------------------------------------------------------------------------------


def test_pins_never_keep_a_tier_from_evicting(tmp_path, wall):
    """Everything is pinned, by four owners; the tier takes new prompts all the same."""
    tier = TierConfig(str(tmp_path / "tier"), max_bytes=128 * KB)
    with opened(StoreConfig(tiers=(tier,), retry_s=0.01), unix_s=wall) as store:
        for seed in range(20):
            wall.now_s += 1
            written(store, prompt(512, seed))
            store.pin(chain(store, seed), ttl_s=6000, owner=f"owner {seed % 4}")
        assert store.stats().dropped == {}
        assert n_kept(store, 19) == 512
        assert store.stats().tiers[0].n_bytes <= 128 * KB
        held = [pin for pin in store.pins() if pin.tiers]
        assert 0 < sum(pin.n_bytes for pin in held) <= 32 * KB


def test_over_its_quota_an_owner_loses_its_oldest_pins(config, wall):
    with opened(replace(config, pin_quota_bytes=45 * KB), unix_s=wall) as store:
        for seed in range(5):
            wall.now_s += 1
            written(store, prompt(512, seed))
            store.pin(chain(store, seed), ttl_s=600, owner="ada" if seed else "bob")
        assert [bool(pin.tiers) for pin in store.pins()] == [True, False, False, True, True]
        store.evict_bytes("disk", 1 << 30)
        assert [n_kept(store, seed) > 0 for seed in range(5)] == [True, False, False, True, True]


def test_what_no_tier_could_keep_is_refused(config):
    with opened(replace(config, pin_quota_bytes=10 * KB)) as store:
        written(store, prompt(512))
        with pytest.raises(StoreFull, match="more than may be pinned"):
            store.pin(chain(store), ttl_s=60)
        assert store.pins() == ()


IDS = [
    BlockId.of_rows(TokenChain(key_of("00" * 32, prompt(1)), prompt(2560)), i * 256, i * 256 + 256) for i in range(10)
]
PIN = st.builds(
    lambda owner, made, first, n: Pin(f"{made}-{first}", owner, IDS[0].root, IDS[0].key, n, float(made), 1e10, tuple(IDS[first : first + n])),
    st.sampled_from("abc"), st.integers(0, 99), st.integers(0, 8), st.integers(0, 5),
)  # fmt: skip


@given(st.lists(PIN, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_what_holds_fits_and_the_newest_of_each_owner_is_kept(pins, share, quota):
    pins = newest(pins, 1e10 - 1)
    kept = holding(pins, lambda id: 1, share, quota)
    size = lambda some: len({id for pin in some for id in pin.ids})  # noqa: E731
    assert size(kept) <= share
    for owner in "abc":
        own, held = [pin for pin in pins if pin.owner == owner], [pin for pin in kept if pin.owner == owner]
        assert size(held) <= quota
        fitting = [pin for pin in own if len(pin.ids) <= min(share, quota)]
        assert held == fitting[len(fitting) - len(held) :], "the oldest go first"
        if size(fitting) <= quota and size(pins) <= share:
            assert held == fitting


# --- the file -------------------------------------------------------------------------------------


@given(PIN)
def test_a_pin_is_read_back(pin):
    assert decode(encode(pin)) == pin


@given(PIN, st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_damaged_pin_is_another_pin_or_none(pin, at, flip):
    """No digest covers it: it decides what stays, and never what is read."""
    data = bytearray(encode(pin))
    data[at % len(data)] ^= flip
    found = decode(bytes(data))
    assert found is None or isinstance(found, Pin)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"nonsense", b'{"ids": 3}', b"\xff" * 40])
def test_what_is_no_pin_is_counted_and_removed(config, wall, tmp_path, data):
    with opened(config, unix_s=wall) as store:
        written(store, prompt(512))
        (tmp_path / "shared" / "pins").mkdir(exist_ok=True)
        (tmp_path / "shared" / PREFIX / "bad").write_bytes(data)
        wait_until(lambda: pin_files(tmp_path) == [])
        assert store.stats().corrupt == {"pin": 1}
