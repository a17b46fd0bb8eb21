"""Prefixes that are taken over from the context itself: from sequences that ended, that run, and
that will have them soon.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_store import BLOCK_TOKENS, Store, TokenChain
from cache_store.testing import Fault
from erllama.errors import DecodeFailed
from erllama.events import CacheHitKind, FinishReason
from erllama.kv.layout import KvKind
from tests.support.bounds import NO_WAIT_S
from tests.support.engine_kit import OnCall, request, root_of
from tests.support.flow_kit import (
    CHECKPOINT_KINDS,
    POLICY,
    SAMPLED,
    WAIT_S,
    Faulty,
    ask,
    flushed,
    lookups_of,
    open_store,
    problem,
    prompt,
    reply,
    rig_of,
)

# --- live -----------------------------------------------------------------------------------------


def test_a_conversation_goes_on_in_place():
    rig = rig_of(None)
    ask(rig, "turn 1", prompt(500), max_tokens=10)
    second = [*prompt(500), *rig.ids("turn 1"), *prompt(30, 1)]
    stats = ask(rig, "turn 2", second).stats
    assert (stats.cached_tokens, stats.cache_tier) == (509, "live")
    assert rig.backend.calls["copy_prefix"] == 0
    assert [bool(kv) for kv in rig.backend.kv] == [True, False, False, False]
    assert rig.ids("turn 2") == reply(second)


def test_a_branch_is_copied_and_the_long_conversation_survives():
    rig = rig_of(None)
    ask(rig, "long", prompt(1500))
    whole = [*prompt(1500), *rig.ids("long"), 1, 2, 3]
    stats = ask(rig, "side", [*prompt(1500)[:300], *prompt(20, 1)]).stats
    assert (stats.cached_tokens, stats.cache_tier) == (300, "live")
    assert rig.backend.calls["copy_prefix"] == 1
    assert ask(rig, "on", whole).stats.cached_tokens == 1503
    assert rig.ids("on") == reply(whole)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "sampled"])
def test_the_same_prompt_again_decodes_nothing_before_its_first_token(sampling: dict):
    rig = rig_of(None)
    ask(rig, "first", prompt(500), **sampling)
    n_plans = len(rig.backend.plans)
    stats = ask(rig, "second", prompt(500), **sampling).stats
    assert (stats.cached_tokens, stats.cache_tier, stats.cache_hit_kind) == (500, "live", CacheHitKind.EXACT)
    assert rig.computed(n_plans) == 3
    assert rig.ids("second") == rig.ids("first")


def test_a_running_neighbour_with_the_same_prompt_is_gone_on_from():
    rig = rig_of(None)
    rig.submit(request("running", prompt(500), max_tokens=50))
    rig.step(10)
    n_tokens = rig.computed()
    rig.submit(request("new", prompt(500), max_tokens=1))
    rig.step()
    assert rig.done("new").stats.cached_tokens == 500
    assert rig.computed() - n_tokens == 1, "the neighbour's next token"
    rig.run()
    assert rig.ids("new") == rig.ids("running")[:1]
    assert rig.ids("running") == reply(prompt(500), max_tokens=50)


def test_replies_that_need_no_decode_do_not_keep_the_queue_waiting():
    """The engine sleeps when a step says that there is nothing to do; nobody would wake it."""
    rig = rig_of(None, n_parallel=1)
    ask(rig, "first", prompt(500))
    rig.submit(*(request(str(i), prompt(500), max_tokens=1) for i in range(5)))
    rig.run()
    assert all(rig.ended(str(i)) for i in range(5))


def test_a_sampled_token_leaves_no_trace_in_live_logits():
    rig = rig_of(None)
    ban = tuple((token, -100.0) for token in range(256) if token != ord("z"))
    ask(rig, "biased", prompt(500), logit_bias=ban)
    ask(rig, "biased again", prompt(500), logit_bias=ban)
    ask(rig, "plain", prompt(500))
    assert rig.text("biased") == rig.text("biased again") == "zzzz"
    assert rig.ids("plain") == reply(prompt(500))


def test_equal_prompts_that_arrive_together_are_computed_once():
    rig = rig_of(None)
    rig.submit(*(request(name, prompt(500), max_tokens=1, seed=seed, **SAMPLED) for seed, name in enumerate("abcd")))
    rig.run()
    assert rig.computed() <= 500 + 3
    assert all(
        rig.ids(name) == reply(prompt(500), max_tokens=1, seed=seed, **SAMPLED) for seed, name in enumerate("abcd")
    )


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_a_prefill_of_a_state_that_cannot_be_cut_serves_the_same_prompt(kind: KvKind):
    rig = rig_of(None, kind=kind)
    ask(rig, "prefill", prompt(500), max_tokens=0)
    assert ask(rig, "it", prompt(500)).stats.cached_tokens == 500
    assert rig.ids("it") == reply(prompt(500))


def test_the_prefix_of_a_running_neighbour_is_copied():
    rig = rig_of(None)
    rig.submit(request("running", prompt(500), max_tokens=50))
    rig.prefill()
    other = [*prompt(500)[:400], 256]
    rig.submit(request("new", other, max_tokens=5))
    rig.run()
    assert rig.done("new").stats.cached_tokens == 400
    assert rig.ids("new") == reply(other, max_tokens=5)
    assert rig.ids("running") == reply(prompt(500), max_tokens=50)


def test_a_copy_that_fails_is_computed_instead(monkeypatch: pytest.MonkeyPatch):
    rig = rig_of(None)
    ask(rig, "long", prompt(1500))

    def fail(source: int, target: int, n_tokens: int) -> bool:
        raise DecodeFailed("no")

    monkeypatch.setattr(rig.backend, "copy_prefix", fail)
    side = [*prompt(1500)[:300], 256]
    assert ask(rig, "side", side).stats.cached_tokens == 0
    assert rig.ids("side") == reply(side)
    assert "no" in problem(rig)


# --- two at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [False, True])
def test_a_prefix_that_two_requests_share_is_computed_once(store: Store, with_store: bool):
    rig = rig_of(store if with_store else None)
    tails = {name: prompt(40, seed) for seed, name in enumerate("abc", 1)}
    rig.submit(*(request(name, [*prompt(1000), *tail], max_tokens=1) for name, tail in tails.items()))
    rig.run()
    assert rig.computed() == 1000 + 3 * 40
    for name, tail in tails.items():
        assert rig.ids(name) == reply([*prompt(1000), *tail], max_tokens=1)
    assert [rig.done(name).stats.cached_tokens for name in "abc"] == [0, 1000, 1000]
    assert problem(rig) == ""


def test_little_in_common_is_not_waited_for():
    rig = rig_of(None)
    rig.submit(*(request(name, [*prompt(63), *prompt(500, seed)], max_tokens=1) for seed, name in enumerate("ab", 1)))
    rig.step()
    assert repr(rig.engine).count(" prefilling seq_id=") == 2


def test_who_waits_for_a_cancelled_prefill_goes_on_with_what_it_had_computed():
    rig = rig_of(None)
    rig.submit(request("a", [*prompt(1000), 1]), request("b", [*prompt(1000), 2], max_tokens=3))
    rig.step(2)
    assert rig.backend.plans == [[(0, 0, 256)], [(0, 256, 256)]]
    rig.engine.cancel("a")
    rig.run()
    assert rig.done("b").stats.cached_tokens == 512
    assert rig.ids("b") == reply([*prompt(1000), 2], max_tokens=3)


def test_who_waits_for_a_prefill_that_fails_computes_by_itself():
    bad = 255
    shared = [token % 255 for token in prompt(600)]
    rig = rig_of(None, fail_tokens=frozenset({bad}))
    rig.submit(request("a", [*shared, bad]), request("b", [*shared, 2], max_tokens=3))
    rig.run()
    assert isinstance(rig.error("a"), DecodeFailed)
    assert rig.ids("b") == reply([*shared, 2], max_tokens=3)


def test_who_waits_can_be_cancelled():
    rig = rig_of(None)
    rig.submit(request("a", [*prompt(1000), 1], max_tokens=3), request("b", [*prompt(1000), 2]))
    rig.step()
    rig.engine.cancel("b")
    rig.run()
    assert rig.reason("b") is FinishReason.CANCELLED
    assert rig.ids("a") == reply([*prompt(1000), 1], max_tokens=3)


SHARED = replace(POLICY, share_wait_s=WAIT_S, cold_step_tokens=256)


def test_a_prefix_that_another_replica_computes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processes on one directory, each with a store of its own. The wait is made of many short
    ones.
    """
    monkeypatch.setattr("erllama.cache.read._SHARE_SLICE_S", 0.01)
    with open_store(tmp_path) as here, open_store(tmp_path) as there, ThreadPoolExecutor() as threads:
        first, second = rig_of(here, SHARED), rig_of(there, SHARED, executor=threads)
        first.submit(request("it", [*prompt(1000), 1], max_tokens=2))
        first.step()
        second.submit(request("it", [*prompt(1000), 2], max_tokens=2))
        looks = lookups_of(there, monkeypatch)
        second.step()
        while len(looks) < 3:
            time.sleep(0.001)
        first.run()
        flushed(here)
        second.engine.check_integrity()
        while not second.ended("it"):
            second.step()
        assert second.done("it").stats.cached_tokens >= 968  # the blocks, and the tail that was saved with them
        assert second.ids("it") == reply([*prompt(1000), 2], max_tokens=2)


def test_who_comes_from_a_replica_that_hangs_does_not_wait_for_its_claim(tmp_path: Path):
    with open_store(tmp_path) as here, open_store(tmp_path) as there:
        first, second = rig_of(here, SHARED), rig_of(there, SHARED)
        first.submit(request("it", prompt(1000), max_tokens=2))
        first.step()  # and never again
        began = time.monotonic()
        second.submit(request("it~r2", prompt(1000), max_tokens=2, waits_for_others=False))
        second.run()
        assert time.monotonic() - began < NO_WAIT_S < SHARED.share_wait_s
        assert second.done("it~r2").stats.cached_tokens <= 256  # what the other one had saved before it hung
        assert second.ids("it~r2") == reply(prompt(1000), max_tokens=2)


def test_a_claim_is_kept_until_what_it_stands_for_is_written(faulty: Faulty, tmp_path: Path):
    executor = OnCall()
    rig = rig_of(faulty.store, SHARED, executor=executor)
    rig.submit(request("it", prompt(1000), max_tokens=1))
    rig.step()
    executor.run()
    faulty.tier.inject("publish", Fault.HANG, times=None)
    rig.run()
    key = TokenChain(root_of(()), prompt(1000)).key_at(BLOCK_TOKENS)
    with open_store(tmp_path / "kv") as other, ThreadPoolExecutor() as threads:
        releasing = threads.submit(executor.run)
        assert faulty.tier.wait_hanging()
        assert other.claimed(key) > 0
        faulty.tier.heal()
        faulty.tier.release()
        releasing.result(WAIT_S)
        assert other.claimed(key) == 0
        assert (
            other.lookup(TokenChain(root_of(()), np.asarray(prompt(1000), np.uint32)), deadline_s=WAIT_S).n_tokens
            >= 768
        )


@pytest.mark.parametrize("when", ["reading", "read", "computing"])
def test_the_claim_of_a_cancelled_request_is_taken_back(tmp_path: Path, when: str):
    with open_store(tmp_path) as here, open_store(tmp_path) as there:
        executor = OnCall()
        first = rig_of(here, SHARED, executor=executor)
        first.submit(request("it", prompt(1000)))
        first.step()
        if when != "reading":
            executor.run()
        if when == "computing":
            first.step()
        first.engine.cancel("it")
        first.step()
        executor.run()
        first.step()
        executor.run()
        key = TokenChain(root_of(()), prompt(1000)).key_at(BLOCK_TOKENS)
        assert there.claimed(key) == 0
        assert "claims=0" in repr(first.engine)
