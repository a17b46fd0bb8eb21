"""The score: order by decayed hits, whatever the clock does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.index.frecency import HALF_LIFE_S, SteadyTime, after_use, mean_use_s, score_of, worth

HOUR = 3600.0
moments = st.floats(0, 4e9)
unix_times = st.lists(moments, min_size=1, max_size=30)
readings = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30)


class Clock:
    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def decayed_count(uses: list[float], now_s: float) -> float:
    return sum(2.0 ** ((use - now_s) / HALF_LIFE_S) for use in uses)


def test_the_half_life_is_six_hours():
    score = score_of(1, 1.7e9)
    assert [round(worth(score, 1.7e9 + hours * HOUR), 9) for hours in (0, 6, 12, 18)] == [1, 0.5, 0.25, 0.125]


@given(st.lists(st.floats(0, 40 * HOUR), min_size=1, max_size=30))
def test_the_score_is_the_logarithm_of_the_decayed_count(uses: list[float]):
    score = score_of(1, uses[0])
    for use in uses[1:]:
        score = after_use(score, use)
    assert worth(score, 40 * HOUR) == pytest.approx(decayed_count(uses, 40 * HOUR), rel=1e-6)


@given(unix_times)
def test_a_use_never_lowers_a_score_and_adds_at_most_one_hit(uses: list[float]):
    score = score_of(1, uses[0])
    for use in uses[1:]:
        raised = after_use(score, use)
        assert max(score, score_of(1, use)) <= raised <= max(score, score_of(1, use)) + 1
        score = raised


def test_two_hits_now_are_worth_one_more_half_life():
    assert after_use(score_of(1, 0.0), 0.0) == pytest.approx(score_of(1, HALF_LIFE_S))
    assert score_of(8, 0.0) == pytest.approx(score_of(1, 3 * HALF_LIFE_S))


@given(unix_times, st.integers(1, 20))
def test_several_uses_at_once_score_like_as_many_in_a_row(times: list[float], n_uses: int):
    at_once = in_a_row = score_of(1, times[0])
    at_once = after_use(at_once, times[-1], n_uses)
    for _ in range(n_uses):
        in_a_row = after_use(in_a_row, times[-1])
    assert at_once == pytest.approx(in_a_row, rel=1e-12, abs=1e-9)


@given(unix_times)
def test_uses_and_their_mean_moment_give_the_score_back(uses: list[float]):
    score = score_of(1, uses[0])
    for use in uses[1:]:
        score = after_use(score, use)
    mean_s = mean_use_s(len(uses), score)
    assert mean_s <= max(uses) + 1e-3
    assert score_of(len(uses), mean_s) == pytest.approx(score, rel=1e-12, abs=1e-9)


def test_worth_does_not_overflow():
    assert worth(score_of(1, 1e300), 0.0) < math.inf
    assert worth(score_of(1, 0.0), 1e300) == 0


@given(readings)
def test_steady_time_never_goes_back_and_stays_finite(values: list[float]):
    time = SteadyTime(Clock(*values, 0.0))
    seen = [time.now() for _ in values]
    assert seen == sorted(seen)
    assert all(math.isfinite(moment) for moment in seen)


def test_steady_time_passes_as_the_clock_does_after_a_jump_back():
    time = SteadyTime(Clock(1000.0, 1000.0, 400.0, 410.0, 425.0))
    assert [time.now() for _ in range(4)] == [1000, 1000, 1010, 1025]
    assert time.lead_s() == 600


@given(moments, st.floats(-1e6, 1e6), st.floats(allow_nan=True, allow_infinity=True))
def test_a_moment_in_the_clocks_future_is_now(start: float, jump: float, told: float):
    time = SteadyTime(Clock(start, start + jump, start + jump))
    moment = time.from_unix(told)
    assert moment <= time.now()
    if -1e12 < told <= start + jump:
        assert moment == pytest.approx(told + time.lead_s())
