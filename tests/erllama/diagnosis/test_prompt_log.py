"""What is recorded of requests, on engines with the stub and a real store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cache_store import Store
from cache_store.testing import Fault
from erllama.cache.setup import make_prompt_log
from erllama.config import EngineConfig
from erllama.diagnosis.prompt_log import MAX_RECORDS, PromptLog
from erllama.diagnosis.record import SIDE_TOKENS
from erllama.kv.layout import KvKind
from tests.support.engine_kit import Rig
from tests.support.flow_kit import CHECKPOINT_KINDS, POLICY, WAIT_S, Faulty, ask, prompt, rig_of


@contextmanager
def logging(store: Store | None, **more: object) -> Iterator[tuple[Rig, PromptLog]]:
    """An engine, and what it records."""

    policy = replace(POLICY, min_tokens=256, cold_min_tokens=256, read_timeout_s=0.3)
    rig = rig_of(store, policy, **more)
    log = make_prompt_log(rig.backend, EngineConfig(path="stub"), policy, store)
    rig.engine._flow.prompt_log = log
    try:
        yield rig, log
    finally:
        log.close()
        log.close()


def cause(log: PromptLog, name: str) -> str:
    record = log.record(name)
    assert record is not None, name
    return record.cause


def changed(tokens: list[int], at: int) -> list[int]:
    return [*tokens[:at], (tokens[at] + 1) % 256, *tokens[at + 1 :]]


def test_each_request_is_recorded_with_both_sides_of_the_point_where_it_leaves_the_others(store: Store):
    with logging(store) as (rig, log):
        first = prompt(700)
        ask(rig, "first", first)
        reply = rig.ids("first")
        ask(rig, "turn", [*first, *reply, *prompt(50, 2)])
        ask(rig, "changed", changed(first, 300))
        assert [cause(log, name) for name in ("first", "turn", "changed")] == [
            "first_seen",
            "extended",
            "edited_history",
        ]
        turn, record = log.record("turn"), log.record("changed")
        assert turn is not None
        assert record is not None
        assert (turn.n_known, turn.n_cached, turn.tier, len(turn.stored)) == (704, 703, "live", 0)
        assert (record.n_known, record.n_cached, record.n_computed) == (300, 300, 400)
        assert record.before.tolist() == first[300 - SIDE_TOKENS : 300]
        assert record.prompt.tolist() == changed(first, 300)[300 : 300 + SIDE_TOKENS]
        assert record.stored.tolist() == first[300 : 300 + SIDE_TOKENS]
        assert record.cost_ms is not None
        assert rig.step() is False
        counted = rig.engine.stats.causes
        assert {name: count.requests for name, count in counted.items()} == dict.fromkeys(counted, 1)
        assert counted["edited_history"].computed_tokens == 400


def test_after_a_restart_the_store_tells_where_a_prompt_leaves_it(store: Store):
    tokens = prompt(700)
    ask(rig_of(store), "before", tokens)
    assert store.flush(WAIT_S)
    with logging(store) as (rig, log):
        ask(rig, "changed", changed(tokens, 600))
        record = log.record("changed")
        assert record is not None
        assert (record.known_in, record.n_known, record.n_cached, record.tier) == ("store", 600, 600, "disk")
        assert record.stored.tolist() == tokens[600 : 600 + SIDE_TOKENS]


def test_what_was_lost_is_told_from_what_is_new(store: Store):
    with logging(store) as (rig, log):
        tokens = prompt(700)
        ask(rig, "first", tokens)
        rig.engine.evict()
        ask(rig, "restored", tokens)
        assert cause(log, "restored") == "extended"
        rig.engine.evict()
        for prefix in store.prefixes():
            store.transfer.evict(prefix.key)
        ask(rig, "evicted", tokens)
        assert cause(log, "evicted") == "evicted"
        short = prompt(200, 3)
        ask(rig, "short", short)
        rig.engine.evict()
        ask(rig, "again", short)
        assert cause(log, "again") == "below_threshold"


def test_a_tier_that_fails_is_the_cause(faulty: Faulty):
    with logging(faulty.store) as (rig, log):
        tokens = prompt(700)
        ask(rig, "first", tokens)
        assert faulty.store.flush(WAIT_S)
        rig.engine.evict()
        faulty.tier.inject("read", Fault.FAIL, times=None)
        ask(rig, "second", tokens)
        assert (cause(log, "second"), rig.done("second").stats.cached_tokens) == ("store_unavailable", 0)


def test_without_a_store_what_left_the_context_is_gone():
    with logging(None) as (rig, log):
        tokens = prompt(700)
        ask(rig, "first", tokens)
        ask(rig, "same", tokens)
        rig.engine.evict()
        ask(rig, "later", tokens)
        assert [cause(log, name) for name in ("same", "later")] == ["extended", "evicted"]


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_what_cannot_be_restored_in_the_middle_is_not_called_evicted(store: Store, kind: KvKind):
    with logging(store, kind=kind) as (rig, log):
        first = prompt(700)
        ask(rig, "first", first)
        ask(rig, "turn", [*first, *rig.ids("first"), *prompt(50, 2)])
        ask(rig, "changed", changed(first, 600))
        assert [cause(log, name) for name in ("turn", "changed")] == ["extended", "edited_history"]


def test_tenants_are_kept_apart(store: Store):
    with logging(store) as (rig, log):
        for salt in ("a", "b"):
            ask(rig, f"of-{salt}", prompt(400), salt=salt)
        assert cause(log, "of-b") == "first_seen"
        assert [record.request_id for record in log.records(9, "a")] == ["of-a"]
        assert log.record("of-b", "a") is None


def test_requests_that_only_restore_are_not_recorded(store: Store):
    with logging(store) as (rig, log):
        ask(rig, "warm", prompt(400), max_tokens=0, restore_only=True)
        assert log.records(9) == []


def test_the_records_are_bounded():
    with logging(None) as (rig, log):
        for i in range(MAX_RECORDS + 5):
            ask(rig, f"r{i}", [i % 256, i // 256, 1], max_tokens=1)
            if i % 100 == 0:
                log.records(1)  # as often as somebody looks
        records = log.records(2 * MAX_RECORDS)
        assert (len(records), records[0].request_id) == (MAX_RECORDS, f"r{MAX_RECORDS + 4}")


def test_a_prompt_that_cannot_be_explained_costs_its_record_alone(store: Store):
    with logging(store) as (rig, log):

        def fail(token: int) -> bytes:
            raise RuntimeError("a bug")

        text_of, log._text_of = log._text_of, fail
        tokens = prompt(700)
        ask(rig, "first", tokens)
        ask(rig, "lost", changed(tokens, 300))
        assert log.record("lost") is None
        log._text_of = text_of
        ask(rig, "kept", changed(tokens, 200))
        assert cause(log, "kept") == "edited_history"


def test_what_comes_after_the_end_is_not_recorded_and_does_no_harm(store: Store):
    with logging(store) as (rig, log):
        ask(rig, "first", prompt(300))
        assert log.record("first") is not None
        log.close()
        ask(rig, "late", prompt(300, 4))
        assert log.record("late") is None
