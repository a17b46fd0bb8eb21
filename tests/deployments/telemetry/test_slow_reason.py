"""Why a request was slow."""

from __future__ import annotations

import pytest

from deployments.http.errors import SlowReader
from deployments.telemetry.facts import RequestFacts
from deployments.telemetry.slow import SlowLimits, SlowReason, slow_reason
from erllama.events import CacheHitKind, FinishReason, RequestStats, Tokens

LIMITS = SlowLimits(first_token_ms=1000, token_ms=100, unread_ms=1000)


def facts_of(
    *,
    prepare=0.0,
    dispatch=0.0,
    queue=0.0,
    restore=0.0,
    compute=0.0,
    generation=0.0,
    unread=0.0,
    prompt=100,
    cached=0,
    completion=2,
):
    """A request whose parts took so many milliseconds, one after the other."""
    now = [0.0]
    facts = RequestFacts(started_ns=0, clock=lambda: int(now[0] * 1e6))
    now[0] += prepare
    facts.ask("demo")
    now[0] += dispatch + queue + restore + compute
    facts.saw([Tokens((1,), "a")])
    now[0] += generation
    prefill = restore + compute
    facts.add(
        RequestStats(
            *(prompt, completion, cached, queue, prefill, generation, CacheHitKind.PARTIAL, FinishReason.STOP),
            cache_tier="disk",
            restore_ms=restore,
        )
    )
    now[0] += unread
    facts.end(200)
    return facts


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, None),
        ({"queue": 400, "compute": 500}, None),
        ({"queue": 1000}, SlowReason.QUEUED),
        ({"queue": 600, "compute": 500}, SlowReason.QUEUED),
        ({"queue": 500, "compute": 600}, SlowReason.COLD_PREFILL),
        ({"compute": 1100, "cached": 49}, SlowReason.COLD_PREFILL),
        ({"compute": 1100, "cached": 50}, SlowReason.PREFILL),
        ({"restore": 900, "compute": 200, "cached": 90}, SlowReason.SLOW_RESTORE),
        ({"restore": 200, "compute": 900, "cached": 90}, SlowReason.PREFILL),
        ({"prepare": 1500, "compute": 1400}, SlowReason.PREPARING),
        ({"dispatch": 1500, "compute": 1400}, SlowReason.MODEL_LOADING),
        ({"generation": 99, "completion": 2}, None),
        ({"generation": 100, "completion": 2}, SlowReason.SLOW_TOKENS),
        ({"generation": 60_000, "completion": 1000}, None),  # a long reply is not slow
        ({"generation": 60_000, "completion": 1}, None),
        ({"unread": 1000}, SlowReason.SLOW_READER),
        ({"unread": 1000, "queue": 1000}, SlowReason.QUEUED),  # the first thing that went wrong
        ({"unread": 1000, "generation": 500, "completion": 3}, SlowReason.SLOW_TOKENS),
    ],
)
def test_what_took_longest_is_the_reason(parts, reason):
    assert slow_reason(facts_of(**parts), LIMITS) is reason


def test_nothing_is_said_of_what_no_model_computed():
    facts = RequestFacts(clock=lambda: int(60e9))
    facts.end(200)
    assert slow_reason(facts, LIMITS) is None


def test_a_client_that_was_cut_off_read_too_slowly():
    facts = RequestFacts()
    facts.fail(SlowReader("left unread"))
    assert slow_reason(facts, LIMITS) is SlowReason.SLOW_READER


def test_of_several_choices_the_one_that_waited_longest_tells():
    facts = RequestFacts(clock=lambda: int(5e9))
    for queue_ms, restore_ms in ((10.0, 1.0), (3000.0, 2.0), (20.0, 3.0)):
        facts.add(
            RequestStats(
                *(100, 4, 30, queue_ms, 100.0, 300.0, CacheHitKind.PARTIAL, FinishReason.STOP), restore_ms=restore_ms
            )
        )
    assert (facts.queue_ms, facts.restore_ms, facts.prompt, facts.cached, facts.completion) == (3000, 2, 300, 90, 12)
    assert facts.token_ms == 100
