"""The beginning of a next turn, computed while nothing else is asked for: on the stub, stepped by
hand.
"""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import Store
from erllama.cache.policy import SaveReason
from erllama.engine.idle import MAX_SLICE, MIN_SLICE, SLICE_S, idle_slice
from erllama.errors import InvalidParameter
from erllama.events import FinishReason
from erllama.kv.layout import KvKind
from erllama.prompts.next_turn import NextTurn
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import Rig, make_rig, request
from tests.support.flow_kit import ask, flushed, open_store, prompt, reply, rig_of

CLOSING = [1, 2, 3]
REPLY = [104, 105] * 100  # of a next turn, as history shows it without its reasoning
SLICE = 128  # prompts are computed fast by the clock of the rig


def rig_for(store: Store | None = None, **settings: object) -> Rig:
    return rig_of(store, **settings)


def answered(rig: Rig, name: str, tokens: list[int], **params: object) -> list[int]:
    """Prompt and reply of a request that has ended."""
    ask(rig, name, tokens, **params)
    return [*tokens, *rig.ids(name)]


def expect(rig: Rig, name: str, tokens: list[int], n_kept: int, salt: str = "") -> None:
    rig.engine.next_turns.expect(NextTurn(name, tuple(tokens), n_kept, salt))


def cache(rig: Rig):
    rig.step()
    return rig.engine.stats.cache


def idle_counts(rig: Rig) -> tuple[int, int, int, int]:
    it = cache(rig)
    return it.idle_tokens, it.idle_turns, it.idle_given_up, it.idle_used_tokens


def test_only_the_new_text_of_the_next_turn_is_computed():
    rig = rig_for()
    said = answered(rig, "one", prompt(300))
    expect(rig, "one", [*said, *CLOSING], len(said) - 1)
    rig.run()
    n_plans = len(rig.backend.plans)
    after = [*said, *CLOSING, *prompt(40, 1)]
    done = ask(rig, "two", after)
    assert done.stats.cached_tokens == len(said) + len(CLOSING)
    assert rig.computed(n_plans) == 40 + 3, "the new text, and three tokens of the reply"
    assert rig.ids("two") == reply(after)
    assert idle_counts(rig) == (1 + len(CLOSING), 1, 0, 1 + len(CLOSING)), "with the reply's last token"


def test_a_turn_without_the_reasoning_is_computed_in_place_of_it():
    rig = rig_for(n_parallel=1)
    said = answered(rig, "one", prompt(300), max_tokens=90)
    turn = [*prompt(300), *REPLY, *CLOSING]
    assert turn[300] != said[300]
    expect(rig, "one", turn, 300)
    rig.run()
    assert rig.backend.kv == [turn]
    after = [*turn, *prompt(20, 1)]
    n_plans = len(rig.backend.plans)
    assert ask(rig, "two", after).stats.cached_tokens == len(turn)
    assert rig.computed(n_plans) == 20 + 3
    assert rig.ids("two") == reply(after)


def test_slices_are_small_and_end_at_their_multiples():
    rig = rig_for()
    said = answered(rig, "one", prompt(300), max_tokens=2)
    n_plans = len(rig.backend.plans)
    expect(rig, "one", [*prompt(300), *REPLY], 300)
    rig.run()
    assert said[300] != REPLY[0]
    starts = [start for ((_, start, _),) in rig.backend.plans[n_plans:]]
    assert starts == [300, *range(384, 500, SLICE)]


def test_it_is_given_up_between_two_slices_when_a_request_arrives_and_what_was_computed_is_kept():
    rig = rig_for()
    answered(rig, "one", prompt(300))
    turn = [*prompt(300), *REPLY, *CLOSING]
    expect(rig, "one", turn, 300)
    rig.step()
    n_plans, n_idle = len(rig.backend.plans), rig.engine.stats.cache.idle_tokens
    after = [*turn, *prompt(20, 1)]
    rig.submit(request("two", after, max_tokens=4))
    rig.step()
    assert [start for _, start, _ in rig.backend.plans[n_plans]] == [300 + n_idle], "the request, not the next slice"
    rig.run()
    assert rig.done("two").stats.cached_tokens == 300 + n_idle
    assert rig.ids("two") == reply(after)
    assert idle_counts(rig) == (n_idle, 0, 1, n_idle)


@pytest.mark.parametrize(("n_parallel", "ends"), [(1, (0, 0, 1)), (5, (1 + len(CLOSING), 1, 0))])
def test_nothing_is_computed_while_a_request_runs_or_waits(n_parallel: int, ends: tuple[int, int, int]):
    """With one id the others have taken it in the meantime."""
    rig = rig_for(n_parallel=n_parallel)
    said = answered(rig, "one", prompt(300))
    expect(rig, "one", [*said, *CLOSING], len(said) - 1)
    names = [f"other {i}" for i in range(4)]
    rig.submit(*(request(name, prompt(50, i + 1), max_tokens=20) for i, name in enumerate(names[:2])))
    rig.step()
    rig.submit(*(request(name, prompt(50, i + 1), max_tokens=20) for i, name in enumerate(names[2:])))
    while not all(map(rig.ended, names)):
        assert rig.engine.stats.cache.idle_tokens == 0
        rig.step()
    rig.run()
    assert idle_counts(rig)[:3] == ends


def test_it_counts_as_no_request():
    rig = rig_for()
    said = answered(rig, "one", prompt(300))
    before = rig.engine.stats
    expect(rig, "one", [*said, *CLOSING], len(said) - 1)
    rig.step()
    during = rig.engine.stats
    rig.run()
    after = rig.engine.stats
    assert after.counts == before.counts
    assert (after.cache.hits, after.cache.misses) == (before.cache.hits, before.cache.misses)
    assert (during.n_running, during.n_queued, during.status) == (0, 0, "idle")
    assert list(rig.events) == ["one"]


def test_what_was_computed_is_in_the_store(tmp_path):
    turn = [*prompt(300), *REPLY, *CLOSING]
    with open_store(tmp_path) as store:
        rig = rig_for(store)
        answered(rig, "one", prompt(300))
        expect(rig, "one", turn, 300)
        rig.run()
        assert rig.engine.stats.cache.saves[SaveReason.IDLE] == 1
        flushed(store)
    with open_store(tmp_path) as store:
        other = rig_for(store)
        after = [*turn, *prompt(20, 1)]
        assert ask(other, "two", after).stats.cached_tokens == len(turn)
        assert other.ids("two") == reply(after)


def test_what_a_given_up_prefill_computed_is_saved_before_its_id_goes_to_another(tmp_path):
    turn = [*prompt(300), *REPLY, *CLOSING]
    with open_store(tmp_path) as store:
        rig = rig_for(store, n_parallel=1)
        answered(rig, "one", prompt(300))
        expect(rig, "one", turn, 300)
        rig.step()
        n_idle = rig.engine.stats.cache.idle_tokens
        assert 32 <= n_idle < len(turn) - 300
        ask(rig, "stranger", prompt(100, 7))
        flushed(store)
        after = [*turn, *prompt(20, 1)]
        assert ask(rig, "two", after).stats.cached_tokens == 300 + n_idle
        assert rig.ids("two") == reply(after)


def test_a_few_tokens_are_not_worth_a_save(store: Store):
    rig = rig_for(store)
    said = answered(rig, "one", prompt(300))
    expect(rig, "one", [*said, *CLOSING], len(said) - 1)
    rig.run()
    assert SaveReason.IDLE not in rig.engine.stats.cache.saves


def test_the_kv_of_another_conversation_is_neither_cut_nor_taken():
    rig = rig_for(n_parallel=2)
    answered(rig, "other", prompt(400))
    answered(rig, "one", prompt(300, 1))
    kv = [list(tokens) for tokens in rig.backend.kv]
    expect(rig, "gone", [*prompt(200), *REPLY], 200)
    rig.run()
    assert rig.backend.kv == kv
    expect(rig, "one", [*prompt(300, 1), *REPLY], 300)
    rig.run()
    assert sorted(map(len, rig.backend.kv)) == sorted([len(kv[0]), 300 + len(REPLY)])
    assert kv[0] in rig.backend.kv


@pytest.mark.parametrize(
    "why",
    ["other tokens", "too long", "a session", "another salt", "another root", "switched off", "deterministic", "kind"],
)
def test_where_it_cannot_be_known_or_helped_nothing_is_done(why: str, tmp_path):
    more = {
        "switched off": {"idle_prefill": False},
        "deterministic": {"deterministic": True},
        "kind": {"kind": KvKind.RECURRENT},
    }
    rig = rig_for(**more.get(why, {}))
    tokens = prompt(300)
    said = answered(rig, "one", tokens, session_id="chat" if why == "a session" else None)
    turn = [*said, *CLOSING]
    if why == "other tokens":
        turn[0] ^= 1
    if why == "too long":
        turn += prompt(2048)
    if why == "another root":
        (tmp_path / "lora").write_text("lora")
        rig.load_adapter(str(tmp_path / "lora"))
    kv, n_plans = [list(one) for one in rig.backend.kv], len(rig.backend.plans)
    expect(rig, "one", turn, len(said) - 1, "tenant" if why == "another salt" else "")
    rig.run()
    assert len(rig.backend.plans) == n_plans
    assert rig.backend.kv == kv


def test_an_evict_between_two_slices_ends_it():
    rig = rig_for()
    answered(rig, "one", prompt(300))
    expect(rig, "one", [*prompt(300), *REPLY], 300)
    rig.step()
    n_plans = len(rig.backend.plans)
    assert rig.engine.evict().freed_bytes > 0
    rig.run()
    assert len(rig.backend.plans) == n_plans
    assert not rig.engine.stats.has_context
    assert idle_counts(rig)[1:3] == (0, 1)


def test_an_adapter_that_is_unloaded_between_two_slices_ends_it(tmp_path: Path):
    """No request holds it for a turn, so it is freed at once."""
    (tmp_path / "lora").write_text("lora")
    rig = rig_for()
    handle = rig.load_adapter(str(tmp_path / "lora"))
    said = answered(rig, "one", prompt(300))
    expect(rig, "one", [*said, *CLOSING, *prompt(300, 1)], len(said) - 1)
    rig.step()
    n_plans = len(rig.backend.plans)
    rig.engine.adapters.unload(handle)
    rig.run()
    assert len(rig.backend.plans) == n_plans
    assert idle_counts(rig)[1:3] == (0, 1)


def test_a_slice_that_fails_costs_the_kv_of_its_conversation_alone():
    rig = rig_for(fail_tokens=frozenset({7}), n_parallel=2)
    answered(rig, "other", [9] * 200)
    answered(rig, "one", [8] * 300)
    expect(rig, "one", [*[8] * 300, *[9] * 100, 7, *[9] * 100], 300)
    rig.run()
    assert sorted(map(len, rig.backend.kv)) == [0, 203]
    assert ask(rig, "two", [8] * 310).stats.finish_reason is FinishReason.LENGTH


def test_a_slice_that_hangs_is_aborted_and_the_engine_lives(store: Store):
    rig = rig_for(store, decode_budget_s=0.05)
    watcher = threading.Thread(target=rig.engine.watchdog.watch)
    watcher.start()
    try:
        answered(rig, "one", prompt(300))
        rig.backend.hangs = 1
        expect(rig, "one", [*prompt(300), *REPLY], 300)
        rig.run()
        after = [*prompt(300), *prompt(20, 1)]
        ask(rig, "two", after)
        assert rig.ids("two") == reply(after)
    finally:
        rig.engine.watchdog.close()
        watcher.join()


def test_no_more_turns_are_expected_than_there_are_ids():
    rig = rig_for(n_parallel=2)
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        said = answered(rig, name, prompt(100, seed))
        expect(rig, name, [*said, *CLOSING], len(said) - 1)
    assert repr(rig.engine.next_turns) == "<IdlePrefill 1 turns>", "the others were computed, or went with their ids"
    for name in names:
        expect(rig, name, prompt(90), 1)
    assert repr(rig.engine.next_turns) == "<IdlePrefill 2 turns>"


def test_a_session_forgets_nothing_when_an_arrival_shows_that_the_turn_came_otherwise():
    rig = rig_for()
    said = answered(rig, "one", prompt(300))
    expect(rig, "one", [*said, *REPLY], len(said) - 1)
    rig.step()
    ask(rig, "two", [*said, *prompt(30, 3)])
    n_plans = len(rig.backend.plans)
    rig.run()
    assert len(rig.backend.plans) == n_plans, "nobody waits for the rest of it any more"


@pytest.mark.parametrize("rate", [0.0, 1.0, 100.0, 400.0, 700.0, 1e4])
def test_a_slice_takes_no_longer_than_a_request_may_wait(rate: float):
    n = idle_slice(rate)
    assert MIN_SLICE <= n <= MAX_SLICE
    assert n % MIN_SLICE == 0
    assert rate == 0 or n == MIN_SLICE or n / rate <= SLICE_S


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tokens": (1, "2")}, "tokens"),
        ({"tokens": (1, -1)}, "tokens"),
        ({"tokens": (1, 2**33)}, "tokens"),
        ({"n_kept": 9}, "n_kept"),
        ({"n_kept": 0}, "n_kept"),
        ({"salt": 3}, "salt"),
        ({"salt": "s" * 257}, "salt"),
    ],
)
def test_a_turn_of_the_wrong_kind_is_refused(changed: dict, param: str):
    with pytest.raises(InvalidParameter) as refused:
        NextTurn(**{"request_id": "one", "tokens": (1, 2, 3), "n_kept": 2, **changed})
    assert refused.value.param == param


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=12))
def test_whatever_comes_when_replies_are_those_of_an_engine_without_it(story: list[tuple[int, int, int]]):
    """Conversations that go on as expected, otherwise, or not at all, after any number of slices; the
    rig checks its books after every step.
    """
    rig = make_rig(StubBackend(512, 2, reply_tokens=0), n_parallel=2, n_ctx=512)
    plain = make_rig(StubBackend(512, 2, reply_tokens=0), n_parallel=2, n_ctx=512, idle_prefill=False)
    turns: dict[int, list[int]] = {}
    for number, (chat, n_kept, n_steps) in enumerate(story):
        history = turns.get(chat, [chat] * 40)
        tokens = [*history[: len(history) - n_kept % 3], 200 + chat, number][:400]
        for one in (rig, plain):
            one.submit(request(str(number), tokens, max_tokens=5))
            one.run()
        assert rig.ids(str(number)) == plain.ids(str(number))
        said = [*tokens, *rig.ids(str(number))]
        kept = max(1, len(said) - 1 - n_kept)
        turns[chat] = [*said[:kept], *[77] * 30, 5]
        expect(rig, str(number), turns[chat], kept)
        rig.step(n_steps)
    rig.run()
