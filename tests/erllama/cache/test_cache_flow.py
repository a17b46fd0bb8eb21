"""What of a prompt is found in the store, and what it spares."""

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import Store, StoreConfig, TierConfig
from cache_store.testing import Fault
from erllama.cache.policy import CachePolicy
from erllama.events import CacheHitKind
from erllama.kv.layout import KvKind
from tests.support.engine_kit import request
from tests.support.flow_kit import (
    LOGITS,
    N_CTX,
    POLICY,
    SAMPLED,
    Faulty,
    ask,
    flushed,
    open_store,
    problem,
    prompt,
    reply,
    rig_of,
)

# --- from the store -------------------------------------------------------------------------------


def test_after_an_evict_the_same_prompt_is_restored(store: Store):
    rig = rig_of(store)
    ask(rig, "first", prompt(1000))
    rig.engine.evict()
    assert not rig.backend.has_context
    flushed(store)
    n_plans = len(rig.backend.plans)
    stats = ask(rig, "second", prompt(1000)).stats
    assert (stats.cached_tokens, stats.cache_tier, stats.cache_hit_kind) == (999, "disk", CacheHitKind.EXACT)
    assert rig.computed(n_plans) == 1 + 3
    assert rig.ids("second") == rig.ids("first")
    assert rig.engine.stats.cache.hits == {"exact:disk": 1}
    assert problem(rig) == ""


def test_what_the_store_has_not_written_yet_is_restored_from_its_memory(faulty: Faulty):
    faulty.tier.inject("publish", Fault.HANG, times=None)
    rig = rig_of(faulty.store)
    ask(rig, "first", prompt(1000))
    assert faulty.tier.wait_hanging()
    rig.engine.evict()
    stats = ask(rig, "second", prompt(1000)).stats
    assert (stats.cached_tokens, stats.cache_tier) == (999, "staged")
    assert rig.ids("second") == rig.ids("first")


def test_another_engine_on_the_same_store_restores_what_the_first_computed(store: Store):
    ask(rig_of(store), "first", prompt(1000))
    other = rig_of(store)
    assert ask(other, "second", [*prompt(1000), *prompt(50, 1)]).stats.cached_tokens == 1000
    assert other.ids("second") == reply([*prompt(1000), *prompt(50, 1)])
    assert problem(other) == ""


def test_a_restart_on_the_same_directory_restores(tmp_path: Path):
    with open_store(tmp_path) as store:
        ask(rig_of(store), "first", prompt(1000))
    with open_store(tmp_path) as store:
        rig = rig_of(store)
        assert ask(rig, "second", prompt(1000)).stats.cached_tokens == 999
        assert rig.ids("second") == reply(prompt(1000))


@pytest.mark.parametrize("n_shared", [33, 255, 256, 257, 700, 999])
def test_a_prefix_is_restored_to_the_token(store: Store, n_shared: int):
    ask(rig_of(store), "first", prompt(1000))
    other = [*prompt(1000)[:n_shared], 256, *prompt(100, 1)]  # 256 is in no prompt
    rig = rig_of(store)
    assert ask(rig, "second", other).stats.cached_tokens == n_shared
    assert rig.ids("second") == reply(other)
    assert problem(rig) == ""


def test_a_stored_prefix_that_wins_too_little_is_not_restored(store: Store):
    ask(rig_of(store), "first", prompt(1000))
    rig = rig_of(store)
    assert ask(rig, "second", [*prompt(1000)[:31], 256, *prompt(100, 1)]).stats.cached_tokens == 0
    assert rig.engine.stats.cache.misses == 1


def test_what_the_store_adds_to_live_kv_is_restored(store: Store):
    ask(rig_of(store), "first", prompt(1000))
    flushed(store)
    rig = rig_of(store)
    ask(rig, "part", [*prompt(1000)[:300], 256])
    stats = ask(rig, "whole", prompt(1000)).stats
    assert (stats.cached_tokens, stats.cache_tier) == (999, "disk")
    assert problem(rig) == ""


def test_restoring_is_skipped_where_computing_is_faster(store: Store, monkeypatch: pytest.MonkeyPatch):
    policy = replace(POLICY, restore_always=False)
    ask(rig_of(store), "first", prompt(1000))
    lookup = store.lookup
    monkeypatch.setattr(store, "lookup", lambda *args, **more: replace(lookup(*args, **more), estimated_s=1e6))
    rig = rig_of(store, policy)
    ask(rig, "other", prompt(500, 1))  # how fast this engine prefills is known now
    assert ask(rig, "second", prompt(1000)).stats.cached_tokens == 0
    assert rig.engine.stats.cache.restores_skipped == 1
    assert rig.ids("second") == reply(prompt(1000))


def test_before_the_speed_of_prefilling_is_known_everything_is_restored(store: Store, monkeypatch: pytest.MonkeyPatch):
    ask(rig_of(store), "first", prompt(1000))
    lookup = store.lookup
    monkeypatch.setattr(store, "lookup", lambda *args, **more: replace(lookup(*args, **more), estimated_s=1e6))
    assert ask(rig_of(store, replace(POLICY, restore_always=False)), "second", prompt(1000)).stats.cached_tokens == 999


def test_adapters_and_none_share_nothing(store: Store, tmp_path: Path):
    rig = rig_of(store)
    ask(rig, "plain", prompt(1000))
    (tmp_path / "lora").write_text("lora")
    rig.load_adapter(str(tmp_path / "lora"))
    assert ask(rig, "adapted", prompt(1000)).stats.cached_tokens == 0
    rig.engine.evict()
    assert ask(rig, "again", prompt(1000)).stats.cached_tokens == 999
    assert rig.ids("again") == rig.ids("adapted") != rig.ids("plain")


# --- stored logits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}],
    ids=["greedy", "sampled"],
)
def test_with_stored_logits_nothing_is_decoded_before_the_first_token(store: Store, sampling: dict):
    first = rig_of(store, LOGITS)
    ask(first, "first", prompt(1000), **sampling)
    rig = rig_of(store, LOGITS)
    stats = ask(rig, "second", prompt(1000), **sampling).stats
    assert (stats.cached_tokens, stats.cache_hit_kind) == (1000, CacheHitKind.EXACT)
    assert rig.backend.plans[0] == [(0, 1000, 1)]
    assert rig.ids("second") == first.ids("first")
    assert problem(rig) == ""


def test_with_stored_logits_a_reply_of_one_token_decodes_nothing(store: Store):
    ask(rig_of(store, LOGITS), "first", prompt(1000))
    rig = rig_of(store, LOGITS)
    ask(rig, "second", prompt(1000), max_tokens=1)
    assert rig.backend.plans == []
    assert rig.ids("second") == reply(prompt(1000), max_tokens=1)


def test_stored_logits_are_like_computed_ones_to_whoever_changes_them(store: Store):
    params = {"max_tokens": 2, "logprobs": 3, "logit_bias": ((ord("e"), -100.0),), "temperature": 0.0}
    first = rig_of(store, LOGITS)
    ask(first, "it", prompt(1000), **params)
    flushed(store)
    rig = rig_of(store, LOGITS)
    assert ask(rig, "it", prompt(1000), **params).stats.cached_tokens == 1000
    assert rig.events["it"][:-1] == first.events["it"][:-1]


def test_logits_of_a_prefill_are_stored_with_its_end(store: Store):
    ask(rig_of(store, LOGITS), "prefill", prompt(1000), max_tokens=0)
    rig = rig_of(store, LOGITS)
    assert ask(rig, "it", prompt(1000)).stats.cached_tokens == 1000
    assert rig.ids("it") == reply(prompt(1000))


def test_a_sampled_token_leaves_no_trace_in_the_stored_logits(store: Store):
    """A bias is written into the row of logits that is sampled from."""
    ban = tuple((token, -100.0) for token in range(256) if token != ord("z"))
    ask(rig_of(store, LOGITS), "biased", prompt(1000), logit_bias=ban)
    rig = rig_of(store, LOGITS)
    ask(rig, "plain", prompt(1000))
    assert rig.ids("plain") == reply(prompt(1000))


def test_logits_of_another_vocabulary_are_not_used(store: Store):
    ask(rig_of(store, LOGITS), "first", prompt(1000))
    rig = rig_of(store, LOGITS)
    rig.backend.n_vocab += 1
    assert ask(rig, "second", prompt(1000)).stats.cached_tokens == 999


# --- the same tokens, whatever way ----------------------------------------------------------------


@settings(max_examples=25)
@given(
    n_prompt=st.integers(1, 900),
    seed=st.integers(0, 3),
    cut=st.integers(0, 40),
    sampling=st.sampled_from([{"temperature": 0.0}, SAMPLED]),
    kind=st.sampled_from([kind for kind in KvKind if kind is not KvKind.OPAQUE]),
    policy=st.sampled_from([POLICY, LOGITS]),
    deterministic=st.booleans(),
    way=st.sampled_from(["live", "evicted", "other engine", "running neighbour"]),
)
def test_a_reply_is_the_same_cold_live_restored_and_resumed_anywhere(
    n_prompt: int, seed: int, cut: int, sampling: dict, kind: KvKind, policy: CachePolicy, deterministic: bool, way: str
):
    whole = reply(prompt(n_prompt, seed), max_tokens=40, **sampling)
    with Store(StoreConfig(tiers=(TierConfig(f"memory://{uuid.uuid4()}"),))) as store:
        rig = rig_of(store, policy, kind=kind, deterministic=deterministic)
        first = request("first", prompt(n_prompt, seed), max_tokens=40, **sampling)
        rig.submit(first)
        if way == "running neighbour":
            rig.prefill()
        else:
            rig.run()
            assert rig.ids("first") == whole
        if way == "evicted":
            rig.engine.evict()
        if way == "other engine":
            rig = rig_of(store, policy, kind=kind, deterministic=deterministic)
        ask(rig, "on", [*prompt(n_prompt, seed), *whole[:cut]], max_tokens=40 - cut, **sampling)
        assert rig.ids("on") == whole[cut:]
        assert problem(rig) == ""


TURN = st.tuples(
    st.integers(1, 400),
    st.integers(0, 30),
    st.sampled_from(["on", "branch", "again"]),
    st.sampled_from(["-", "evict", "move"]),
)


@settings(max_examples=25)
@given(
    turns=st.lists(TURN, min_size=2, max_size=6),
    kind=st.sampled_from([KvKind.ATTENTION, KvKind.HYBRID]),
    n_parallel=st.integers(1, 3),
)
def test_a_conversation_gets_the_same_replies_whatever_happens_between_its_turns(
    turns: list, kind: KvKind, n_parallel: int
):
    with Store(StoreConfig(tiers=(TierConfig(f"memory://{uuid.uuid4()}"),))) as store:
        rig = rig_of(store, kind=kind, n_parallel=n_parallel)
        tokens: list[int] = []
        for i, (n_new, n_reply, then, between) in enumerate(turns):
            base = tokens[: len(tokens) // 2] if then == "branch" else tokens
            asked = base if then == "again" and base else [*base, *prompt(n_new, i)]
            asked = asked[: N_CTX - 40]
            ask(rig, f"turn {i}", asked, max_tokens=n_reply)
            assert rig.ids(f"turn {i}") == reply(asked, max_tokens=n_reply)
            assert problem(rig) == ""
            tokens = [*asked, *rig.ids(f"turn {i}")]
            if between == "evict":
                rig.engine.evict()
            elif between == "move":
                rig = rig_of(store, kind=kind, n_parallel=n_parallel)
