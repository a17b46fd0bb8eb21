"""Claims spare a second replica the prefill that a first one is doing; whatever happens to them,
nobody waits long or breaks.
"""

import json
import threading
import time

import pytest

from cache_store import Store, StoreConfig, TierConfig, TokenChain
from cache_store.sharing.claims import LONGEST_S
from cache_store.testing import Fault
from tests.support.bounds import NO_WAIT_S
from tests.support.store_kit import FaultyTiers, key_of, prompt, restore, save


class WallClock:
    def __init__(self):
        self.now_s = 1_800_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def wall():
    return WallClock()


@pytest.fixture
def config(tmp_path):
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")),))


@pytest.fixture
def pair(config, wall):
    with Store(config, unix_s=wall) as one, Store(config, unix_s=wall) as other:
        assert one.wait_loaded(10)
        assert other.wait_loaded(10)
        yield one, other


TOKENS = prompt(600)


def first_key(store):
    return key_of(store.root("model"), TOKENS[:256])


def test_a_claim_is_seen_by_others_and_not_by_its_owner(pair):
    one, other = pair
    assert one.claim([first_key(one)], 30)
    assert other.claimed(first_key(one)) == pytest.approx(30)
    assert one.claimed(first_key(one)) == 0
    assert not other.claim([first_key(one)], 30)


def test_a_released_claim_is_free_and_only_its_owner_releases_it(pair):
    one, other = pair
    one.claim([first_key(one)], 30)
    other.release([first_key(one)])
    assert other.claimed(first_key(one)) > 0
    one.release([first_key(one)])
    assert other.claimed(first_key(one)) == 0


def test_an_expired_claim_does_not_count(pair, wall):
    one, other = pair
    one.claim([first_key(one)], 30)
    wall.now_s += 31
    assert other.claimed(first_key(one)) == 0
    assert other.claim([first_key(one)], 30)


def test_a_claim_from_a_clock_that_was_ahead_does_not_count(pair, wall):
    one, other = pair
    wall.now_s += 10 * LONGEST_S
    one.claim([first_key(one)], 30)
    wall.now_s -= 10 * LONGEST_S
    assert other.claimed(first_key(one)) == 0


def test_nobody_claims_for_longer_than_the_limit(pair):
    one, other = pair
    one.claim([first_key(one)], 1e9)
    assert 0 < other.claimed(first_key(one)) <= LONGEST_S


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"owner": 1}',
        b'{"owner": "x", "keys": 3, "expires_s": 1800000009}',
        b'{"owner": "x", "keys": [], "expires_s": NaN}',
        b"[" * 4000,
    ],
    ids=range(8),
)
def test_a_claim_that_cannot_be_read_does_not_count_and_is_swept(pair, tmp_path, content):
    one, _ = pair
    path = tmp_path / "fast" / "claims" / f"{first_key(one)}.somebody"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert one.claimed(first_key(one)) == 0
    one.rescan()
    assert not path.exists()


def test_a_sweep_keeps_claims_that_count(pair, tmp_path):
    one, other = pair
    one.claim([first_key(one)], 30)
    other.rescan()
    (path,) = (tmp_path / "fast" / "claims").iterdir()
    assert json.loads(path.read_bytes())["keys"] == [first_key(one)]
    assert other.claimed(first_key(one)) > 0


def test_a_lookup_waits_for_what_another_store_claims_and_then_has_it(pair):
    one, other = pair
    root = one.root("model")
    one.claim([first_key(one), key_of(root, TOKENS[:512])], 30)
    found = []
    waiter = threading.Thread(
        target=lambda: found.append(other.lookup(TokenChain(root, TOKENS), deadline_s=5, share_wait_s=20))
    )
    waiter.start()
    save(one, root, TOKENS)
    assert one.flush(10)
    one.release([first_key(one), key_of(root, TOKENS[:512])])
    waiter.join(20)
    assert found[0].n_tokens >= 512, "all that was claimed"
    assert restore(other, root, TOKENS).n_tokens == 600


def test_a_lookup_waits_no_longer_than_it_may_for_a_claimer_that_died(pair):
    one, other = pair
    one.claim([first_key(one)], 30)
    began = time.monotonic()
    assert other.lookup(TokenChain(one.root("model"), TOKENS), deadline_s=5, share_wait_s=0.1).n_tokens == 0
    assert 0.1 <= time.monotonic() - began < NO_WAIT_S


def test_a_lookup_that_may_not_wait_does_not(pair):
    one, other = pair
    one.claim([first_key(one)], 30)
    began = time.monotonic()
    other.lookup(TokenChain(one.root("model"), TOKENS), deadline_s=5)
    assert time.monotonic() - began < NO_WAIT_S


def test_closing_ends_the_wait_for_a_claim(pair):
    one, other = pair
    one.claim([first_key(one)], 300)
    waiter = threading.Thread(
        target=lambda: other.lookup(TokenChain(one.root("model"), TOKENS), deadline_s=5, share_wait_s=200)
    )
    waiter.start()
    other.close(5)
    waiter.join(20)
    assert not waiter.is_alive()


def test_without_a_local_tier_there_are_no_claims(tmp_path):
    config = StoreConfig(tiers=(TierConfig(f"memory://{tmp_path.name}"),))
    with Store(config) as one, Store(config) as other:
        assert one.claim([first_key(one)], 30), "nobody else's"
        assert other.claimed(first_key(one)) == 0


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.READ_ONLY, Fault.NO_SPACE])
def test_a_failing_tier_makes_claims_vanish_and_raises_nothing(config, fault):
    faulty = FaultyTiers()
    with Store(config, open=faulty) as one:
        assert one.wait_loaded(10)
        faulty.tiers[0].inject("*", fault, times=None)
        assert one.claim([first_key(one)], 30), "nobody else's"
        assert one.claimed(first_key(one)) == 0
        one.release([first_key(one)])
        faulty.tiers[0].heal()


def test_a_claim_is_taken_back_from_a_tier_that_failed_to_write(config, wall):
    faulty = FaultyTiers()
    with Store(config, open=faulty, unix_s=wall) as one, Store(config, unix_s=wall) as other:
        assert one.wait_loaded(10)
        assert one.claim([first_key(one)], 30)
        faulty.tiers[0].inject("publish", Fault.FAIL, times=None)
        for n in range(1, 4):
            save(one, one.root("model"), prompt(300, seed=n))
            one.flush(10)
        assert not one.stats().tiers[0].available
        one.release([first_key(one)])
        assert other.claimed(first_key(other)) == 0


def test_one_claim_covers_all_its_blocks_and_closing_takes_it_back(pair):
    one, other = pair
    keys = [key_of(one.root("model"), TOKENS[:n]) for n in (256, 512)]
    assert one.claim(keys, 30)
    assert other.claimed(keys[1]) > 0
    assert other.claim([], 30)
    one.close(5)
    assert other.claimed(keys[0]) == other.claimed(keys[1]) == 0
