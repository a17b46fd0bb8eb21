"""Requests of two salts never meet: not in the context, not in the store, not by a session's name, not
by what the router is told.
"""

from collections.abc import Callable

import pytest

from cache_store import Block, Kind, Store, TokenChain, tenant_root
from erllama.engine.engine import Engine
from erllama.errors import InvalidParameter, SessionNotFound
from erllama.events import CacheHitKind
from erllama.kv.layout import KvKind
from erllama.request import GenerationRequest
from erllama.session_name import MAX_SALT_CHARS
from tests.support.engine_kit import ROOT, TRANSCRIPT_ROOT, Rig, request
from tests.support.flow_kit import CHECKPOINT_KINDS, LOGITS, ask, flushed, prompt, reply, rig_of

KINDS = [KvKind.ATTENTION, *CHECKPOINT_KINDS]


def evicted(rig: Rig) -> None:
    rig.engine.evict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("between", [lambda rig: None, evicted], ids=["live", "stored"])
def test_another_salt_computes_the_whole_prompt_and_the_same_one_nothing_of_it(
    store: Store, kind: KvKind, between: Callable[[Rig], None]
):
    rig = rig_of(store, LOGITS, kind=kind)
    told = {}
    for name, salt in [("first", "a"), ("other", "b"), ("none", ""), ("again", "a"), ("other again", "b")]:
        n_plans = len(rig.backend.plans)
        told[name] = ask(rig, name, prompt(700), salt=salt, max_tokens=1).stats
        assert rig.computed(n_plans) == (700 if "again" not in name else 0)
        between(rig)
        flushed(store)
    cold = [(told[name].cached_tokens, told[name].cache_hit_kind) for name in ("first", "other", "none")]
    assert cold == [(0, CacheHitKind.COLD)] * 3
    assert [told[name].cached_tokens for name in ("again", "other again")] == [700, 700]
    assert rig.engine.stats.cache.misses == 3


def test_after_a_restart_the_store_knows_whose_a_prefix_is(store: Store):
    ask(rig_of(store), "first", prompt(700), salt="a")
    flushed(store)
    rig = rig_of(store)
    hits = store.stats().hit_tokens
    assert ask(rig, "other", prompt(700), salt="b").stats.cached_tokens == 0
    assert store.stats().hit_tokens == hits
    assert ask(rig, "same", prompt(700), salt="a").stats.cached_tokens == 699
    assert rig.ids("other") == rig.ids("same") == reply(prompt(700))


def test_nobody_waits_for_a_prefill_of_another_salt():
    rig = rig_of(None)
    rig.submit(request("a", prompt(1000), max_tokens=2, salt="a"))
    rig.step()  # half of it is computed
    rig.submit(request("b", prompt(1000), max_tokens=2, salt="b"), request("a2", prompt(1000), max_tokens=2, salt="a"))
    rig.run()
    assert [rig.done(name).stats.cached_tokens for name in ("b", "a2")] == [0, 1000]


def test_the_key_of_a_state_of_another_salt_names_nothing(store: Store):
    rig = rig_of(store)
    key = ask(rig, "first", prompt(700), salt="a").finish_key
    assert TokenChain(tenant_root(ROOT, "a"), [*prompt(700), *rig.ids("first")]).length_of(key)
    rig.engine.evict()
    flushed(store)
    longer = [*prompt(700), *rig.ids("first"), 1]
    assert ask(rig, "thief", longer, salt="b", parent_key=key).stats.cached_tokens == 0
    assert ask(rig, "owner", longer, salt="a", parent_key=key).stats.cached_tokens >= 700


def test_sessions_of_one_name_are_two_when_their_salts_are(store: Store):
    rig = rig_of(store)
    for salt, seed in (("a", 1), ("b", 2)):
        ask(rig, salt, prompt(100, seed), salt=salt, session_id="chat")
    sessions = rig.engine.sessions
    assert len(sessions) == 2
    for salt, seed in (("a", 1), ("b", 2)):
        name = request("x", salt=salt, session_id="chat").session_name
        assert name is not None
        assert list(sessions.transcript(name)[:100]) == prompt(100, seed)
    with pytest.raises(SessionNotFound):
        sessions.transcript("chat")
    assert {held.session_id is not None for held in rig.engine._flow.live.held.values()} == {True}  # both are pinned


def test_a_session_of_another_salt_is_not_gone_on_with_in_place():
    rig = rig_of(None, n_parallel=1)
    ask(rig, "a", prompt(100), salt="a", session_id="chat")
    assert ask(rig, "b", prompt(120), salt="b", session_id="chat").stats.cached_tokens == 0


@pytest.mark.parametrize(
    "wrong",
    [{"salt": "x" * (MAX_SALT_CHARS + 1)}, {"salt": "a\0b"}, {"salt": None}, {"session_id": "a\0chat"}],
    ids=repr,
)
def test_no_salt_or_session_can_be_written_so_that_it_reads_as_another(wrong: dict):
    with pytest.raises(InvalidParameter) as caught:
        GenerationRequest("r", (1,), **wrong)
    assert caught.value.param == next(iter(wrong))


def test_routers_are_told_whose_prefixes_a_context_holds():
    rig = rig_of(None)
    ask(rig, "one", prompt(100, 1), salt="a")
    ask(rig, "two", prompt(100, 2))
    rig.submit(request("three", prompt(100, 3), salt="b"))
    rig.step()
    live = Engine.live_prefixes(rig.engine)
    told = {ids[:100].tolist()[0]: live.salts.get(seq_id, "") for seq_id, ids in (*live.running, *live.idle)}
    assert told == {prompt(100, 1)[0]: "a", prompt(100, 2)[0]: "", prompt(100, 3)[0]: "b"}
    rig.run()


def test_a_recorded_reply_is_stored_under_its_salt(store: Store, monkeypatch: pytest.MonkeyPatch):
    saved: list[Block] = []
    save = store.save
    monkeypatch.setattr(store, "save", lambda blocks, **more: [saved.extend(blocks), save(blocks, **more)][1])
    rig = rig_of(store)
    for salt in ("a", "", "b"):
        ask(rig, f"of {salt}", prompt(100), salt=salt, record_transcript=True)
    replays = [block.id for block in saved if block.id.kind is Kind.REPLAY]
    assert [id.root for id in replays] == [tenant_root(TRANSCRIPT_ROOT, salt) for salt in ("a", "", "b")]
    assert len({id.parent for id in replays}) == 3  # the ids behind a prompt that another tenant has, too
