"""What is sent again after a failure, when, and when it is given up. No waiting: the clock is a
number.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.attempt_id import attempt_id, is_attempt_of
from deployments.config import FailoverPolicy
from deployments.model.failover import Attempts, FailoverCall
from erllama.errors import DecodeFailed, EngineStopped, QueueFull
from erllama.events import CacheHitKind, Done, Failed, FinishReason, Progress, RequestStats, Tokens
from erllama.request import GenerationRequest, SamplingParams

LIMITS = FailoverPolicy(max_attempts=4, timeout_s=60, backoff_s=1)
GONE = EngineStopped("gone")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> int:
        return int(self.seconds * 1e9)


def request(**more) -> GenerationRequest:
    return GenerationRequest("r", (1, 2, 3), **{"sampling": SamplingParams(seed=7), "max_tokens": 50, **more})


def done(n: int) -> Done:
    return Done(RequestStats(3, n, 0, 1.0, 2.0, 3.0, CacheHitKind.COLD, FinishReason.STOP), "key")


def test_the_first_attempt_is_the_request_itself():
    assert FailoverCall(request(), Attempts(LIMITS)).request == request()


def test_a_seed_is_drawn_once_for_all_attempts():
    run = FailoverCall(request(sampling=SamplingParams()), Attempts(LIMITS))
    seed = run.request.sampling.seed
    assert seed is not None
    run.attempts.failed(GONE)
    assert run.request.sampling.seed == seed


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple), max_size=8), st.sets(st.integers(0, 7)))
def test_what_was_delivered_is_never_asked_for_again(messages, cuts):
    """Cut anywhere: the next attempt carries all that has come and nothing else; what the caller
    got is the whole reply, once.
    """
    run = FailoverCall(request(), Attempts(FailoverPolicy(max_attempts=20), Clock()))
    got: list[int] = []
    for number, ids in enumerate(messages):
        if number in cuts:
            assert run.attempts.failed(GONE) is not None
        if run.attempts.number > 1:
            assert run.request.resumed == tuple(got)
        events, error = run.take([Tokens(ids, "x")])
        assert error is None
        got += [token for event in events for token in event.ids]
    assert tuple(got) == tuple(token for ids in messages for token in ids)


def test_the_ids_of_an_earlier_life_of_the_request_stay_in_front():
    run = FailoverCall(request(resumed=(9,), salt="a"), Attempts(LIMITS))
    run.take([Tokens((4, 5), "ab")])
    run.attempts.failed(GONE)
    assert (run.request.resumed, run.request.salt) == ((9, 4, 5), "a")


def test_what_came_before_a_failure_in_one_message_is_delivered():
    run = FailoverCall(request(), Attempts(LIMITS))
    assert run.take([Tokens((4,), "a"), Failed(GONE)]) == ([Tokens((4,), "a")], GONE)
    run.attempts.failed(GONE)
    assert run.request.resumed == (4,)


def test_every_attempt_has_an_id_of_its_own_that_names_the_request():
    run = FailoverCall(request(), Attempts(LIMITS))
    ids = [run.request.request_id]
    for _ in range(2):
        run.attempts.failed(GONE)
        ids.append(run.request.request_id)
    assert len(set(ids)) == 3
    assert all(is_attempt_of(engine_id, "r") for engine_id in ids)


@pytest.mark.parametrize("other", ["r~r2x", "q~r2", "r2", "~r2", "r~r"])
def test_another_request_is_no_attempt_of_this_one(other):
    assert not is_attempt_of(other, "r")
    assert is_attempt_of(attempt_id(other, 3), other)


def test_stats_of_an_undisturbed_request_are_those_of_the_engine():
    run = FailoverCall(request(), Attempts(LIMITS))
    run.take([Tokens((4,), "a")])
    assert run.take([done(1)]) == ([done(1)], None)


def test_the_times_of_a_request_that_failed_over_are_those_that_its_caller_has_lived():
    clock = Clock()
    run = FailoverCall(request(), Attempts(LIMITS, clock))
    clock.seconds = 2
    run.take([Tokens((4, 5), "ab")])
    run.attempts.failed(GONE)
    run.take([Tokens((6,), "c")])
    clock.seconds = 12
    ((last,), _) = run.take([done(3)])
    assert last.stats == replace(done(3).stats, queue_ms=0, prefill_ms=2000, generation_ms=10000)


# --- how often ------------------------------------------------------------------------------------


def test_the_first_retry_is_at_once_and_later_ones_back_off():
    attempts = Attempts(LIMITS, Clock())
    assert [attempts.failed(GONE) for _ in range(4)] == [0, 1, 2, None]


def test_an_error_that_is_the_requests_own_is_final():
    assert Attempts(LIMITS, Clock()).failed(DecodeFailed("no")) is None


def test_a_full_queue_is_final_for_a_newcomer_but_not_for_a_stream_that_has_failed_over():
    attempts = Attempts(LIMITS, Clock())
    assert attempts.failed(QueueFull("full")) is None
    attempts.failed(GONE)
    assert attempts.failed(QueueFull("full")) is not None


def test_a_request_that_kills_each_replica_after_a_token_is_given_up():
    run = FailoverCall(request(), Attempts(LIMITS, Clock()))
    for _ in range(3):
        run.take([Tokens((1,), "x")])
        assert run.attempts.failed(GONE) is not None
    run.take([Tokens((1,), "x")])
    assert run.attempts.failed(GONE) is None


def test_a_stream_that_goes_on_long_enough_after_a_move_has_all_its_tries_again():
    clock = Clock()
    run = FailoverCall(request(), Attempts(LIMITS, clock))
    for _ in range(20):
        run.take([Tokens((1,), "x")])
        assert run.attempts.failed(GONE) == 0
        run.take([Tokens((1,), "x")])
        clock.seconds += LIMITS.timeout_s


def test_time_without_an_answer_is_bounded():
    clock = Clock()
    attempts = Attempts(FailoverPolicy(max_attempts=1000, timeout_s=60, backoff_s=1), clock)
    assert attempts.left_s is None
    while (wait_s := attempts.failed(GONE)) is not None:
        clock.seconds += wait_s + 1
        assert attempts.left_s == max(0, 60 - clock.seconds)
    assert clock.seconds <= 60


def test_an_answer_ends_the_countdown():
    run = FailoverCall(request(), Attempts(LIMITS, Clock()))
    run.attempts.failed(GONE)
    assert run.attempts.left_s == LIMITS.timeout_s
    run.take([Tokens((1,), "x")])
    assert run.attempts.left_s is None


def test_the_first_answer_has_its_own_bound_and_what_follows_has_none():
    clock = Clock()
    attempts = Attempts(FailoverPolicy(timeout_s=60), clock, timeout_s=5)
    assert attempts.left_s == 5
    clock.seconds = 3.0
    assert attempts.left_s == 2
    assert attempts.failed(EngineStopped("gone")) == 0.0
    assert attempts.left_s == 2, "the nearer bound counts, and a failure does not extend it"
    attempts.progressed()
    assert attempts.left_s is None
    assert attempts.failed(EngineStopped("gone")) is not None
    assert attempts.left_s == 60


def test_a_failure_when_the_time_for_a_first_answer_is_up_is_final():
    clock = Clock()
    attempts = Attempts(FailoverPolicy(timeout_s=60), clock, timeout_s=5)
    clock.seconds = 6.0
    assert attempts.left_s == 0.0
    assert attempts.failed(EngineStopped("gone")) is None


def test_progress_is_no_answer_and_is_told_anew_until_a_token_has_come():
    clock = Clock()
    run = FailoverCall(request(report_progress=True), Attempts(LIMITS, clock, timeout_s=10))
    told = Progress(3, 0, 1, None, 5.0)
    assert run.take([told]) == ([told], None)
    assert run.attempts.left_s == 10
    assert run.attempts.failed(GONE) == 0
    assert run.request.report_progress
    run.take([told, Tokens((4,), "a")])
    assert run.attempts.left_s is None
    run.attempts.failed(GONE)
    assert not run.request.report_progress
    clock.seconds = 2
    stats = run.take([done(1)])[0][0].stats
    assert (stats.prefill_ms, stats.generation_ms) == (0, 2000)
