"""A tier as the store uses it: measured, left alone while it fails, and never waited for beyond a
deadline.
"""

import errno
import os
import threading
import time
import weakref

import pytest

from cache_store import TierConfig, TierError
from cache_store.errors import StoreClosed
from cache_store.in_flight import InFlight
from cache_store.testing import Fault, FaultyTier, is_whole, sealed
from cache_store.tiers.bandwidth import Bandwidth
from cache_store.tiers.deadline_pool import THREADS, DeadlinePool
from cache_store.tiers.guarded import FIRST_S, LONGEST_S, THRESHOLD, Breaker, GuardedTier
from cache_store.tiers.open import open_tier
from tests.support.store_kit import wait_until


def soon(seconds=10.0):
    return time.monotonic_ns() + int(seconds * 1e9)


@pytest.fixture
def tier(tmp_path):
    tier = FaultyTier(open_tier(TierConfig(str(tmp_path))))
    yield tier
    tier.heal()


@pytest.fixture
def guarded(tier):
    guarded = GuardedTier(0, tier, "disk")
    yield guarded
    guarded.close()


def test_latency_and_bandwidth_are_learnt_from_reads():
    speed = Bandwidth(1.0, 1e6)
    for n in range(200):
        size = (n % 7 + 1) << 20
        speed.observe(size, 0.01 + size / 100e6)
    assert speed.latency_s == pytest.approx(0.01, rel=0.05)
    assert speed.bytes_per_s == pytest.approx(100e6, rel=0.05)
    assert speed.estimate_s(50_000_000) == pytest.approx(0.51, rel=0.05)


def test_reads_of_one_size_give_estimates_that_fit_that_size():
    speed = Bandwidth(0.001, 1e9)
    for _ in range(500):
        speed.observe(3_000_000, 0.03)
    assert speed.estimate_s(3_000_000) == pytest.approx(0.03, rel=0.05)


def test_noise_never_gives_a_negative_estimate():
    speed = Bandwidth(0.001, 1e9)
    for n in range(100):
        speed.observe(n * 1000, 1.0 / (n + 1))
        assert speed.estimate_s(0) >= 0
        assert speed.estimate_s(10_000_000) > 0


def test_a_guess_is_used_until_something_was_read():
    assert Bandwidth(0.05, 100e6).estimate_s(100_000_000) == pytest.approx(1.05)


def test_a_breaker_opens_after_failures_in_a_row_only():
    breaker = Breaker()
    for _ in range(5):
        for _ in range(THRESHOLD - 1):
            breaker.failed(0)
        breaker.succeeded()
    assert breaker.allows(0)


def test_a_breaker_stays_open_longer_each_time_up_to_a_limit_and_closes_with_a_success():
    breaker, now = Breaker(), 0
    for _ in range(THRESHOLD - 1):
        breaker.failed(now)
    waits = []
    for _ in range(9):
        breaker.failed(now)
        wait = next(s for s in (1, 2, 4, 8, 16, 32, 60, 61) if breaker.allows(now + int(s * 1e9)))
        assert not breaker.allows(now + int(wait * 1e9) - 1)
        waits.append(wait)
        now += int(wait * 1e9)
    assert waits == [FIRST_S, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S, LONGEST_S]
    breaker.succeeded()
    assert breaker.allows(now)


def test_a_result_that_nobody_waits_for_any_more_is_handed_back():
    pool, go, wasted = DeadlinePool("x"), threading.Event(), []
    returned = threading.Event()
    call = pool.call(lambda: go.wait(10), lambda result: (wasted.append(result), returned.set()))
    with pytest.raises(TierError):
        call.wait(soon(0.01))
    go.set()
    assert returned.wait(10)
    assert wasted == [True]
    pool.close()


def test_a_dropped_result_is_handed_back_once():
    pool, wasted = DeadlinePool("x"), []
    call = pool.call(lambda: 7, wasted.append)
    assert pool.call(lambda: 8).wait(soon()) == 8
    while not call._finished:
        time.sleep(0)
    call.drop()
    call.drop()
    assert wasted == [7]
    pool.close()


def test_what_a_call_raises_reaches_its_waiter_as_a_tier_error():
    pool = DeadlinePool("x")
    with pytest.raises(TierError, match="broken"):
        pool.call(lambda: (_ for _ in ()).throw(OSError("broken"))).wait(soon())
    pool.close()
    with pytest.raises(StoreClosed):
        pool.call(lambda: 1)


def test_a_pool_runs_calls_side_by_side():
    pool = DeadlinePool("x")
    together = threading.Barrier(THREADS)
    calls = [pool.call(lambda: together.wait(10)) for _ in range(THREADS)]
    assert sorted(call.wait(soon()) for call in calls) == list(range(THREADS))
    pool.close()


def test_a_thread_without_work_keeps_nothing_of_its_last_call():
    class Result:
        pass

    pool = DeadlinePool("test")
    result = weakref.ref(pool.call(Result).wait(time.monotonic_ns() + 10**10))
    wait_until(lambda: result() is None)
    pool.close()


def test_a_missing_object_is_none_and_gives_its_buffer_back(guarded):
    assert guarded.wait(guarded.start_read("no/such"), soon()) is None
    assert len(guarded._buffers) == 1


def test_a_tier_that_fails_again_and_again_is_left_alone(guarded, tier):
    tier.inject("stat", Fault.FAIL, times=None)
    for _ in range(THRESHOLD):
        assert guarded.available
        with pytest.raises(TierError):
            guarded.stat("x", soon())
    assert not guarded.available
    assert guarded.stats(0, 0).errors == THRESHOLD


def test_a_full_file_system_is_no_failing_tier(guarded, tier):
    tier.inject("publish", Fault.NO_SPACE, times=None)
    for _ in range(THRESHOLD + 1):
        with pytest.raises(TierError):
            guarded.publish_now("x", memoryview(b"x"))
    assert guarded.available


def stored(guarded, name):
    loaded = guarded.load(name)
    try:
        return bytes(loaded.data)
    finally:
        loaded.free()


def test_an_object_that_verifies_is_adopted_and_not_written(guarded, tier):
    guarded.publish_now("r/one", sealed(b"first"))
    guarded.publish_now("r/one", sealed(b"second"), verify=is_whole)
    assert stored(guarded, "r/one") == bytes(sealed(b"first"))
    assert (tier.calls["publish"], guarded.stats(0, 0).written_bytes) == (1, len(sealed(b"first")))


def test_an_object_that_verifies_is_adopted_from_a_tier_that_cannot_be_written(guarded, tier):
    guarded.publish_now("r/one", sealed(b"first"))
    tier.inject("publish", Fault.READ_ONLY, times=None)
    guarded.publish_now("r/one", sealed(b"second"), verify=is_whole)
    assert stored(guarded, "r/one") == bytes(sealed(b"first"))


def test_an_object_that_does_not_verify_is_replaced(guarded):
    guarded.publish_now("r/one", sealed(b"first")[:-1])
    guarded.publish_now("r/one", sealed(b"second"), verify=is_whole)
    assert stored(guarded, "r/one") == bytes(sealed(b"second"))


def test_the_check_is_not_asked_where_there_is_nothing(guarded):
    asked = []
    guarded.publish_now("r/one", sealed(b"x"), verify=asked.append)
    assert (asked, stored(guarded, "r/one")) == ([], bytes(sealed(b"x")))


def test_an_object_that_cannot_be_read_is_replaced(guarded, monkeypatch):
    """A bad sector under a good name must not keep its content out of the tier for good."""
    guarded.publish_now("r/one", sealed(b"x"))
    monkeypatch.setattr(os, "preadv", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "bad sector")))
    guarded.publish_now("r/one", sealed(b"y"), verify=is_whole)
    with pytest.raises(TierError, match=r"read r/one in .*bad sector"):
        guarded.load("r/one")
    monkeypatch.undo()
    assert stored(guarded, "r/one") == bytes(sealed(b"y"))


def test_a_tier_that_lets_its_callers_wait_in_vain_is_left_alone(guarded, tier):
    tier.inject("stat", Fault.HANG, times=None)
    for _ in range(THRESHOLD):
        with pytest.raises(TierError):
            # of which more than 0.05 must be left when waiting begins, on a busy machine too
            guarded.stat("x", soon(0.2))
    assert not guarded.available


def test_a_deadline_that_was_too_short_says_nothing_about_the_tier(guarded, tier):
    tier.inject("stat", Fault.HANG, times=THRESHOLD)
    for _ in range(THRESHOLD):
        with pytest.raises(TierError):
            guarded.stat("x", soon(0.001))
    assert guarded.available


def test_waiting_for_pending_work_covers_what_was_open_and_not_what_comes_later():
    in_flight = InFlight()
    in_flight.opened("a")
    assert not in_flight.wait(0.01)
    waiter = threading.Thread(target=lambda: in_flight.wait(20))
    waiter.start()
    in_flight.opened("a")
    in_flight.settled("a")
    assert len(in_flight) == 1
    in_flight.opened("b")
    in_flight.settled("a")
    waiter.join(10)
    assert len(in_flight) == 1
    in_flight.settled("b")
    assert in_flight.wait(0)


def test_a_tier_that_answers_and_takes_nothing_is_read_and_not_written(guarded, tier):
    guarded.publish_now("r/one", sealed(b"x"))
    tier.inject("publish", Fault.FAIL, times=None)
    for _ in range(THRESHOLD):
        assert guarded.writable
        guarded.stat_now("r/two")
        with pytest.raises(TierError):
            guarded.publish_now("r/two", sealed(b"y"), verify=is_whole)
    assert guarded.available
    assert not guarded.writable
    assert not guarded.stats(0, 0).available
    assert stored(guarded, "r/one") == bytes(sealed(b"x"))
    assert not guarded.writable
    tier.heal()
    guarded.publish_now("r/two", sealed(b"y"))
    assert guarded.writable


def test_reads_that_overlap_make_a_series_cheaper_than_its_reads():
    speed = Bandwidth(0.05, 100e6)
    alone = speed.estimate_s(3_000_000)
    assert speed.series_s([3_000_000]) == alone
    assert speed.series_s([3_000_000] * 8) == pytest.approx(8 * alone)
    for _ in range(40):
        speed.observe_series(wall_s=2.0, reads_s=8.0)
    assert speed.series_s([3_000_000] * 8) == pytest.approx(2 * alone, rel=0.01)
    assert speed.series_s([3_000_000]) == alone
    for wall_s in (100.0, 0.0):  # waiting for the consumer; a clock that stands still
        for _ in range(60):
            speed.observe_series(wall_s=wall_s, reads_s=8.0)
        assert 0 < speed.overlap <= 1
