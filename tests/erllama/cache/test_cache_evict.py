"""Giving the context back, sessions that hold on to it, parents that are waited for, and
deterministic engines.
"""

from dataclasses import replace

import pytest

from cache_store import Store
from erllama.errors import DecodeFailed
from erllama.events import Done
from tests.support.engine_kit import Rig, request
from tests.support.flow_kit import POLICY, ask, flushed, prompt, reply, rig_of

# --- evict ----------------------------------------------------------------------------------------


def test_an_evict_tells_what_it_freed_and_the_next_request_makes_a_new_context(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(600))
    result = rig.engine.evict()
    assert (result.n_tokens, result.n_live) == (603, 0)
    assert result.freed_bytes > 0
    assert (rig.engine.stats.has_context, rig.engine.stats.idle_kv_tokens) == (False, 0)
    ask(rig, "next", prompt(600))
    assert rig.engine.stats.has_context
    assert rig.backend.calls["ensure_context"] == 1


def test_a_second_evict_is_a_no_op(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(600))
    rig.engine.evict()
    assert rig.engine.evict() == type(rig.engine.evict())()
    assert rig.backend.calls["release_context"] == 1


def test_an_evict_beside_a_running_request_keeps_the_context_and_drops_the_idle(store: Store):
    rig = rig_of(store)
    ask(rig, "ended", prompt(600))
    rig.submit(request("running", prompt(300, 1), max_tokens=40))
    rig.step(5)
    result = rig.engine.evict()
    assert (result.n_tokens, result.freed_bytes, result.n_live) == (603, 0, 1)
    rig.check()
    rig.run()
    assert rig.ids("running") == reply(prompt(300, 1), max_tokens=40)


def test_a_context_that_cannot_be_made_again_fails_those_who_wait(store: Store, monkeypatch: pytest.MonkeyPatch):
    rig = rig_of(store)
    rig.engine.evict()

    def fail() -> bool:
        raise DecodeFailed("no memory")

    monkeypatch.setattr(rig.backend, "ensure_context", fail)
    rig.submit(request("it", prompt(300)))
    rig.step()
    assert "no memory" in str(rig.error("it"))
    assert rig.engine.idle


# --- sessions and parents -------------------------------------------------------------------------


def test_a_session_keeps_its_sequence_while_strangers_come_and_go():
    rig = rig_of(None, n_parallel=2)
    ask(rig, "turn 1", prompt(300), session_id="chat")
    for i in range(4):
        ask(rig, f"stranger {i}", prompt(300, i + 1))
    longer = [*rig.engine.sessions.transcript("chat"), 1, 2, 3]
    assert ask(rig, "turn 2", longer, session_id="chat").stats.cached_tokens == 303
    assert rig.engine.stats.sessions == 1


def test_a_session_that_has_ended_is_given_up_like_any_other():
    rig = rig_of(None, n_parallel=2)
    ask(rig, "turn 1", prompt(300), session_id="chat")
    rig.engine.end_session("chat")
    for i in range(4):
        ask(rig, f"stranger {i}", prompt(300, i + 1))
    assert ask(rig, "turn 2", [*prompt(300), 1]).stats.cached_tokens == 0
    assert rig.engine.stats.sessions == 0


def test_a_reset_drops_the_kv_at_once_and_keeps_what_was_saved(store: Store):
    rig = rig_of(store)
    ask(rig, "turn 1", prompt(300), session_id="chat")
    rig.engine.end_session("chat", drop=True)
    flushed(store)
    assert rig.backend.kv == [[], [], [], []]
    assert ask(rig, "again", prompt(300)).stats.cache_tier == "disk"


def test_a_pin_never_keeps_a_request_waiting():
    rig = rig_of(None, n_parallel=1)
    ask(rig, "turn 1", prompt(300), session_id="chat")
    ask(rig, "stranger", prompt(300, 1))
    assert rig.ids("stranger") == reply(prompt(300, 1))


def resumed(rig: Rig, first: Done, tokens: list[int], **params: object) -> Done:
    return ask(rig, "resumed", tokens, parent_key=first.finish_key, **params)


WAITING = replace(POLICY, session_resume_wait_ms=300)


@pytest.mark.parametrize("n_generated", [1, 30])
def test_a_parent_that_is_stored_is_not_waited_for(store: Store, lookups: list[int], n_generated: int):
    first = rig_of(store, WAITING)
    done = ask(first, "first", prompt(600), max_tokens=n_generated)
    longer = [*prompt(600), *first.ids("first"), *prompt(100, 1)]
    lookups.clear()
    rig = rig_of(store, WAITING)
    assert resumed(rig, done, longer).stats.cached_tokens == 600 + n_generated - 1
    assert lookups == [600 + n_generated - 1]
    (hit,) = rig.engine.stats.cache.hits
    assert hit in ("partial:disk", "partial:staged")  # the file may not be written yet
    assert rig.engine.stats.cache.parent_hits == 1


def test_a_parent_too_short_to_be_saved_is_not_waited_for(store: Store, lookups: list[int]):
    policy = replace(WAITING, min_tokens=5000, cold_min_tokens=5000)
    first = rig_of(store, policy)
    done = ask(first, "first", prompt(600))
    lookups.clear()
    resumed(rig_of(store, policy), done, [*prompt(600), *first.ids("first"), *prompt(100, 1)])
    assert len(lookups) == 1


def test_a_parent_that_is_live_is_not_waited_for(store: Store, lookups: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "save", lambda blocks, *, wait_s=0.0: 0)
    rig = rig_of(store, WAITING)
    done = ask(rig, "first", prompt(600))
    lookups.clear()
    assert resumed(rig, done, [*prompt(600), *rig.ids("first"), *prompt(100, 1)]).stats.cached_tokens == 603
    assert len(lookups) == 1


def test_a_parent_that_is_saved_meanwhile_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch):
    """The other replica's save lands between two looks."""
    first = rig_of(store, replace(WAITING, min_tokens=5000, cold_min_tokens=5000))
    done = ask(first, "first", prompt(600))
    lookup, n_looks = store.lookup, 0

    def late(*args: object, **more: object) -> object:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 3:
            ask(rig_of(store, WAITING), "saver", [*prompt(600), *first.ids("first")], max_tokens=0)
        return lookup(*args, **more)

    monkeypatch.setattr(store, "lookup", late)
    rig = rig_of(store, replace(WAITING, session_resume_wait_ms=20_000))
    assert resumed(rig, done, [*prompt(600), *first.ids("first"), *prompt(100, 1)]).stats.cached_tokens >= 603


def test_a_parent_that_never_comes_is_waited_for_no_longer_than_told(store: Store, lookups: list[int]):
    first = rig_of(store, replace(WAITING, min_tokens=5000, cold_min_tokens=5000))
    done = ask(first, "first", prompt(600))
    lookups.clear()
    rig = rig_of(store, replace(WAITING, session_resume_wait_ms=100))
    longer = [*prompt(600), *first.ids("first"), *prompt(100, 1)]
    resumed(rig, done, longer)
    assert 2 <= len(lookups) <= 6
    assert rig.ids("resumed") == reply(longer)


def test_a_parent_key_that_names_no_prefix_of_the_prompt_is_not_waited_for(store: Store, lookups: list[int]):
    rig = rig_of(store, WAITING)
    ask(rig, "it", prompt(600), parent_key="f" * 64)
    assert len(lookups) == 1


# --- deterministic --------------------------------------------------------------------------------


def test_deterministic_engines_take_over_whole_slices_only(store: Store):
    rig = rig_of(store, deterministic=True)
    ask(rig, "first", prompt(1000))
    stats = ask(rig, "live", [*prompt(1000)[:700], 256]).stats
    assert (stats.cached_tokens, stats.cache_tier) == (512, "live")
    rig.engine.evict()
    flushed(store)
    stats = ask(rig, "stored", [*prompt(1000)[:700], 256, 1]).stats
    assert (stats.cached_tokens, stats.cache_tier) == (512, "disk")
    assert all(start % 256 == 0 or n == 1 for plan in rig.backend.plans for _, start, n in plan)
