"""What an engine measures for people: how fast it computes prompts, what need not be computed, how long
a request waited for what was stored, and where the sequences are.
"""

import pytest

from tests.support.engine_kit import OnCall, make_rig, request
from tests.support.flow_kit import ask, flushed, open_store, prompt, rig_of

LONG = prompt(100)


def test_what_is_taken_over_is_priced_by_measured_speed():
    rig = make_rig(prefill_slice=64)
    ask(rig, "first", LONG, max_tokens=1)
    speed = rig.engine.stats.cache.prefill_tokens_per_s
    assert speed > 0
    assert rig.engine.stats.cache.saved_prefill_ms == 0
    cached = ask(rig, "second", LONG, max_tokens=1).stats.cached_tokens
    assert cached > 0
    after = rig.engine.stats.cache
    assert after.prefill_tokens_per_s == speed  # a slice of one token says nothing
    assert after.saved_prefill_ms == pytest.approx(1e3 * cached / speed)


def test_what_was_taken_over_before_a_prefill_is_priced_with_the_first_one(tmp_path):
    with open_store(tmp_path) as store:
        ask(rig_of(store), "earlier", prompt(1000))
        flushed(store)
        rig = rig_of(store)  # a restart: nothing was computed yet
        cached = ask(rig, "warm", prompt(1000)).stats.cached_tokens
        before = rig.engine.stats.cache
        assert (before.prefill_tokens_per_s, before.saved_prefill_ms) == (0, 0)
        ask(rig, "cold", prompt(256, seed=1), max_tokens=0)
        after = rig.engine.stats.cache
        assert after.saved_prefill_ms == pytest.approx(1e3 * cached / after.prefill_tokens_per_s, rel=0.01)


def test_a_request_tells_how_long_it_waited_for_what_was_stored(tmp_path):
    with open_store(tmp_path) as store:
        ask(rig_of(store), "earlier", prompt(1000))
        flushed(store)
        reads = OnCall()
        rig = rig_of(store, executor=reads)
        rig.submit(request("r", prompt(1000), max_tokens=1))
        rig.step(5)
        [sequence] = rig.engine.stats.running
        assert (sequence.state, sequence.n_cached, sequence.n_kv) == ("restoring", 0, 0)
        reads.run()
        rig.run()
        warm = rig.done("r").stats
        assert 0 < warm.restore_ms < warm.prefill_ms
        ask(rig, "short", prompt(10, seed=2), max_tokens=1)
        assert rig.done("short").stats.restore_ms == 0  # nothing was looked for


def test_sequences_that_run_are_told_as_they_are():
    rig = make_rig(n_parallel=2)
    rig.submit(*(request(name, f"{name}, a prompt of several slices", max_tokens=3) for name in "abc"))
    rig.step()
    states = [(one.request_id, one.state) for one in rig.engine.stats.running]
    assert [name for name, _ in states] == ["a", "b"]
    assert {state for _, state in states} <= {"prefilling", "generating"}
    rig.prefill()
    for one in rig.engine.stats.running:
        assert (one.state, one.n_given) == ("generating", 29)
        assert one.n_kv in (one.n_tokens - 1, one.n_tokens)
    rig.run()
    assert rig.engine.stats.running == ()
