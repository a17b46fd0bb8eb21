"""Token buckets under a clock of the test's own."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.access.limit_headers import duration
from deployments.access.rate_limit import RateLimit, RateLimited


@dataclass
class Clock:
    ns: int = 0

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def admitted(limit: RateLimit) -> bool:
    try:
        limit.admit()
    except RateLimited:
        return False
    return True


@given(
    per_minute=st.integers(1, 200),
    waits=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_whatever_the_pace_no_more_is_admitted_than_a_full_bucket_and_what_has_flowed_in(per_minute, waits):
    clock = Clock()
    limit = RateLimit(requests_per_minute=per_minute, clock=clock)
    n_admitted, started = 0, clock.ns
    for wait in waits:
        clock.wait(wait)
        n_admitted += admitted(limit)
        assert n_admitted <= per_minute + (clock.ns - started) / 1e9 * per_minute / 60 + 1e-4


@given(per_minute=st.integers(1, 100_000), spent=st.integers(1, 1_000_000))
def test_who_waits_as_long_as_was_said_is_admitted_and_who_comes_sooner_is_not(per_minute, spent):
    clock = Clock()
    limit = RateLimit(tokens_per_minute=per_minute, clock=clock)
    limit.admit()
    limit.charge(spent)
    if spent < per_minute:
        assert admitted(limit)
        return
    with pytest.raises(RateLimited) as caught:
        limit.admit()
    wait_s = float(caught.value.message.rpartition("try again in ")[2].removesuffix("s."))
    assert 0 <= caught.value.retry_after_s - wait_s < 1
    if wait_s > 0.2:  # the time is rounded up, by less than 0.1 s
        clock.wait(wait_s - 0.12)
        assert not admitted(limit)
    clock.ns = round(wait_s * 1e9) + 1
    assert admitted(limit)


def test_a_request_that_is_refused_costs_nothing_and_says_which_limit_it_met():
    clock = Clock()
    limit = RateLimit(2, 100, clock=clock)
    limit.admit()
    limit.charge(150)
    for _ in range(5):
        with pytest.raises(RateLimited, match="100 tokens per minute"):
            limit.admit()
    clock.wait(60)
    limit.admit()
    limit.admit()
    with pytest.raises(RateLimited, match=r"2 requests per minute.* try again in 30.0s\.") as caught:
        limit.admit()
    assert (caught.value.http_status, caught.value.code, caught.value.retry_after_s) == (429, "rate_limit_exceeded", 30)


def test_standings_tell_what_is_left_and_when_all_is_there_again():
    clock = Clock()
    limit = RateLimit(60, 6000, clock=clock)
    limit.admit()
    limit.charge(7000)
    told = [(s.what, s.limit, s.remaining, s.reset_s) for s in limit.standings]
    assert told == [("requests", 60, 59, pytest.approx(1.0)), ("tokens", 6000, 0, pytest.approx(70.0))]
    clock.wait(40)
    assert [s.remaining for s in limit.standings] == [60, 3000]
    assert RateLimit().standings == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (90.25, "1m30.25s")],
)
def test_times_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text
