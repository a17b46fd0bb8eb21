"""The engine on the stub, stepped by hand: who runs when, what is delivered, and that nothing is
left behind.
"""

import math

import numpy as np
import pytest

from cache_store import TokenChain
from erllama.engine.submission import check_token_ids
from erllama.errors import ContextOverflow, DecodeFailed, EngineStopped, InvalidParameter, NotSupported
from erllama.events import CacheHitKind, FinishReason, Tokens
from erllama.request import GenerationRequest
from erllama.sequence.machine import State
from erllama.stats import ModelStatus
from erllama.testing.stub_backend import EOG, StubBackend
from tests.support.engine_kit import ROOT, Rig, make_rig, request

FAIL = 7  # a token at which the failing stub refuses the batch
# its prompt is fine, its first token is not: that one shares a batch with others
REPLIES_FAIL = {"logit_bias": ((FAIL, 100.0),)}


@pytest.fixture
def rig() -> Rig:
    return make_rig()


def failing_rig(**settings: object) -> Rig:
    return make_rig(StubBackend(256, 4, reply_tokens=0, fail_tokens=frozenset({FAIL})), **settings)


# --- who runs when --------------------------------------------------------------------------------


def test_beyond_n_parallel_requests_wait_and_are_served_in_order_of_arrival():
    rig = make_rig(n_parallel=2)
    rig.submit(*(request(str(i), max_tokens=3) for i in range(5)))
    order: list[str] = []
    while rig.step():
        order += [name for name in rig.events if name not in order]
        assert len(rig.engine.stats.adapters) == 0
        assert rig.engine.stats.n_running <= 2
    assert order == ["0", "1", "2", "3", "4"]
    assert all(rig.reason(name) is FinishReason.LENGTH for name in order)


def test_a_newcomer_joins_the_running_ones_once_its_prompt_had_a_turn(rig: Rig):
    rig.submit(request("old", max_tokens=9))
    rig.step(3)
    rig.submit(request("new", "other", max_tokens=9))
    rig.step()
    assert rig.backend.plans[-1] == [(1, 0, 5)]
    assert len(rig.ids("new")) == 1
    rig.step()
    assert rig.backend.plans[-1] == [(0, 7, 1), (1, 5, 1)]


def test_the_slices_of_a_long_prompt_take_turns_with_the_tokens_of_the_others(rig: Rig):
    rig.submit(request("old"))
    rig.step()
    rig.submit(request("new", "x" * 40))
    rig.step(5)
    assert rig.backend.plans[1:] == [[(1, 0, 16)], [(0, 5, 1)], [(1, 16, 16)], [(0, 6, 1)], [(1, 32, 8)]]
    assert len(rig.ids("old")) == 3, "one token between two slices, however long the prompt"
    assert len(rig.ids("new")) == 1


def test_a_prompt_alone_is_computed_slice_by_slice(rig: Rig):
    rig.submit(request("one", "x" * 40))
    rig.step(3)
    assert rig.backend.plans == [[(0, 0, 16)], [(0, 16, 16)], [(0, 32, 8)]]


def test_prompts_that_arrive_together_are_computed_one_after_the_other(rig: Rig):
    rig.submit(request("a", "x" * 20), request("b", "y" * 20))
    rig.step(5)
    assert rig.backend.plans == [[(0, 0, 16)], [(0, 16, 4)], [(0, 20, 1)], [(1, 0, 16)], [(0, 21, 1)]]


def test_a_prompt_of_another_adapter_set_takes_turns_with_the_running_ones_too(rig: Rig, tmp_path):
    rig.submit(request("plain"))
    rig.step()
    (tmp_path / "lora").write_text("lora")
    rig.load_adapter(str(tmp_path / "lora"))
    rig.submit(request("adapted", "x" * 60))
    rig.step(6)
    assert [n_tokens for ((_, _, n_tokens),) in rig.backend.plans[1:]] == [16, 1] * 3


def test_a_sequence_finished_in_a_step_makes_room_in_the_next():
    rig = make_rig(n_parallel=1)
    rig.submit(request("first", max_tokens=1), request("second", max_tokens=1))
    rig.step()
    assert rig.reason("first") is FinishReason.LENGTH
    rig.step()
    assert rig.reason("second") is FinishReason.LENGTH


def test_deterministic_decodes_hold_one_sequence_each():
    rig = make_rig(deterministic=True)
    rig.submit(*(request(str(i), max_tokens=4) for i in range(3)))
    rig.run()
    assert {len(plan) for plan in rig.backend.plans} == {1}
    assert all(len(rig.ids(str(i))) == 4 for i in range(3))


def test_a_step_without_work_decodes_nothing(rig: Rig):
    assert not rig.step()
    assert rig.backend.plans == []
    assert rig.deliveries == []


# --- cancel ---------------------------------------------------------------------------------------


def in_state(state: State) -> Rig:
    """A rig whose request "it" is in `state`, with the one sequence id taken by it, or by "other"
    when it is queued.
    """
    rig = make_rig(n_parallel=1)
    if state is State.QUEUED:
        rig.submit(request("other"))
        rig.step()
    rig.submit(request("it", "x" * 100))
    steps = {State.QUEUED: 1, State.PREFILLING: 1, State.GENERATING: 9}
    rig.step(steps[state])
    assert f"<Sequence it {state} " in repr(rig.engine)
    return rig


@pytest.mark.parametrize("state", [State.QUEUED, State.PREFILLING, State.GENERATING])
def test_cancel_ends_a_request_with_done_and_no_further_token(state: State):
    rig = in_state(state)
    ids, plans = rig.ids("it"), len(rig.backend.plans)
    rig.engine.cancel("it")
    rig.step()
    assert rig.reason("it") is FinishReason.CANCELLED
    assert rig.done("it").stats.cancelled
    assert rig.ids("it") == ids
    assert all(seq_id == 0 and start < 100 for plan in rig.backend.plans[plans:] for seq_id, start, _ in plan)


@pytest.mark.parametrize("state", [State.PREFILLING, State.GENERATING])
def test_cancel_frees_the_sequence_id_at_once_and_the_next_in_line_runs_in_the_same_step(state: State):
    rig = in_state(state)
    rig.submit(request("next", max_tokens=5))
    rig.engine.cancel("it")
    assert "free=[0]" in repr(rig.engine)
    n_steps = rig.engine.stats.counts.steps
    rig.step()
    assert rig.engine.stats.counts.steps == n_steps + 1
    assert len(rig.ids("next")) == 1


def test_cancel_of_a_queued_request_leaves_the_running_ones_alone():
    rig = in_state(State.QUEUED)
    rig.engine.cancel("it")
    rig.step()
    assert not rig.ended("other")
    assert rig.engine.stats.n_queued == 0


def test_the_cancelled_event_is_delivered_even_when_nothing_else_is_left_to_do():
    rig = in_state(State.GENERATING)
    rig.engine.cancel("it")
    assert not rig.step()
    assert rig.ended("it")
    assert rig.engine.idle


def test_cancel_is_idempotent_and_unknown_or_finished_requests_are_fine(rig: Rig):
    rig.submit(request("it", max_tokens=1))
    rig.run()
    for name in ("it", "it", "never seen"):
        rig.engine.cancel(name)
    rig.step()
    assert len([e for e in rig.events["it"] if not isinstance(e, Tokens)]) == 1
    assert rig.engine.stats.counts.requests_cancelled == 0


def test_cancel_releases_held_back_text(rig: Rig):
    rig.submit(request("it", max_tokens=50, stop=("zzzzzzzz", *(c + "\n" for c in "abcdefghijklmnopqrstuvwxyz "))))
    rig.step(4)
    assert len(rig.text("it")) < 4
    rig.engine.cancel("it")
    rig.step()
    assert rig.text("it") == bytes(rig.ids("it")).decode()


# --- how a request ends ---------------------------------------------------------------------------


def test_max_tokens_is_the_number_of_tokens(rig: Rig):
    rig.submit(request("one", max_tokens=1), request("seven", max_tokens=7))
    rig.run()
    assert (len(rig.ids("one")), len(rig.ids("seven"))) == (1, 7)
    assert rig.reason("one") is rig.reason("seven") is FinishReason.LENGTH


def test_max_tokens_zero_prefills_and_generates_nothing(rig: Rig):
    rig.submit(request("it", max_tokens=0))
    rig.step()
    assert rig.backend.plans == [[(0, 0, 5)]]
    assert rig.events["it"] == [rig.done("it")]
    assert rig.reason("it") is FinishReason.LENGTH


def test_the_end_of_the_context_ends_a_reply_by_length(rig: Rig):
    rig.submit(request("it", "x" * 250))
    rig.run()
    assert len(rig.ids("it")) == 6
    assert rig.reason("it") is FinishReason.LENGTH


def test_a_prompt_that_fills_the_context_can_be_prefilled_but_not_continued(rig: Rig):
    rig.submit(request("full", "x" * 256, max_tokens=0))
    rig.run()
    assert rig.reason("full") is FinishReason.LENGTH
    with pytest.raises(ContextOverflow, match=r"256 tokens.* holds 256"):
        rig.engine.validate(request("over", "x" * 256))
    with pytest.raises(ContextOverflow, match="257"):
        rig.engine.validate(request("over", "x" * 257, max_tokens=0))


def ending_rig(**settings: object) -> Rig:
    return make_rig(StubBackend(256, 4, reply_tokens=8), **settings)


def test_the_models_end_ends_a_reply_by_stop_and_is_no_token_of_it():
    rig = ending_rig()
    rig.submit(request("it"))
    rig.run()
    assert rig.reason("it") is FinishReason.STOP
    assert rig.done("it").stats.stop_sequence is None
    assert 0 < len(rig.ids("it")) < 200
    assert EOG not in rig.ids("it")


def test_ignore_eos_generates_past_the_models_end():
    rig = ending_rig()
    rig.submit(request("it", ignore_eos=True))
    rig.run()
    assert len(rig.ids("it")) == 251
    assert EOG not in rig.ids("it")


def test_ignore_eos_leaves_room_for_every_bias_that_a_request_may_have():
    rig = ending_rig()
    rig.submit(request("it", ignore_eos=True, max_tokens=3, logit_bias=tuple((97, 0.0) for _ in range(2048))))
    rig.run()
    assert len(rig.ids("it")) == 3


def test_a_stop_string_ends_the_reply_before_it_and_is_named(rig: Rig):
    rig.submit(request("whole", max_tokens=30))
    rig.run()
    whole = rig.text("whole")
    stop = whole[10:13]
    rig.submit(request("cut", max_tokens=30, stop=("never!", stop)))
    rig.run()
    assert rig.text("cut") == whole[: whole.index(stop)]
    assert rig.reason("cut") is FinishReason.STOP
    assert rig.done("cut").stats.stop_sequence == stop


def test_a_stop_string_that_waits_for_a_longer_one_still_stops_when_the_budget_ends(rig: Rig):
    rig.submit(request("whole", max_tokens=10))
    rig.run()
    whole = rig.text("whole")
    rig.submit(request("cut", max_tokens=10, stop=(whole[8:], whole[8:] + "!")))
    rig.run()
    assert rig.text("cut") == whole[:8]
    assert rig.reason("cut") is FinishReason.STOP
    assert rig.done("cut").stats.stop_sequence == whole[8:]


def test_a_grammar_forces_the_reply_and_then_its_end(rig: Rig):
    rig.submit(request("it", grammar='root ::= "forced 42!"'))
    rig.run()
    assert rig.text("it") == "forced 42!"
    assert rig.reason("it") is FinishReason.STOP


def test_the_end_of_a_grammar_ends_the_reply_even_of_a_request_that_ignores_the_models_end(rig: Rig):
    rig.submit(request("it", grammar='root ::= "abc"', ignore_eos=True))
    rig.run()
    assert rig.text("it") == "abc"
    assert rig.reason("it") is FinishReason.STOP


def test_a_grammar_that_does_not_parse_fails_its_request_alone(rig: Rig):
    with pytest.raises(InvalidParameter):
        rig.engine.validate(request("bad", grammar="root ::= ("))
    rig.submit_unchecked(request("bad", grammar="root ::= ("), request("good", max_tokens=2))
    rig.run()
    assert isinstance(rig.error("bad"), InvalidParameter)
    assert rig.error("bad").param == "grammar"
    assert rig.reason("good") is FinishReason.LENGTH


def test_the_matcher_of_a_grammar_is_freed_however_the_request_ends(rig: Rig):
    matchers = rig.kept_matchers()
    rig.submit(*(request(name, grammar='root ::= "abcdef"') for name in ("ended", "cancelled", "failed")))
    rig.prefill()
    rig.engine.cancel("cancelled")
    while not rig.ended("ended"):
        rig.step()
    rig.engine.fail_all(EngineStopped("bye"))
    assert [matcher() for matcher in matchers] == [None] * 3


# --- failures -------------------------------------------------------------------------------------


def test_a_failed_decode_fails_the_sequences_of_its_batch_and_no_others():
    rig = failing_rig(n_parallel=4, deterministic=True)
    rig.submit(request("good", max_tokens=5), request("bad", [FAIL]), request("also good", max_tokens=5))
    rig.run()
    assert isinstance(rig.error("bad"), DecodeFailed)
    assert rig.reason("good") is rig.reason("also good") is FinishReason.LENGTH


def test_a_failed_decode_fails_everything_in_the_batch_and_the_engine_goes_on():
    rig = failing_rig(n_parallel=2)
    rig.submit(request("good", max_tokens=5), request("bad", **REPLIES_FAIL), request("later", max_tokens=5))
    rig.prefill()
    rig.step()
    assert isinstance(rig.error("good"), DecodeFailed)
    assert isinstance(rig.error("bad"), DecodeFailed)
    assert not rig.ended("later")
    rig.run()
    assert rig.reason("later") is FinishReason.LENGTH
    assert rig.engine.stats.counts.requests_failed == 2


def test_a_prompt_that_fails_takes_no_running_sequence_along():
    rig = failing_rig()
    rig.submit(request("old", max_tokens=5))
    rig.step(3)
    rig.submit(request("bad", [FAIL]))
    rig.run()
    assert isinstance(rig.error("bad"), DecodeFailed)
    assert rig.reason("old") is FinishReason.LENGTH


def test_a_failed_decode_drops_the_kv_of_its_sequences():
    rig = failing_rig()
    rig.submit(request("old"))
    rig.step(3)
    rig.submit(request("bad", "other", **REPLIES_FAIL))
    rig.prefill()
    assert sum(map(bool, rig.backend.kv)) == 2
    rig.step()
    assert rig.backend.kv == [[], [], [], []]
    assert rig.engine.idle


@pytest.mark.parametrize("poison", [math.nan, -math.inf])
def test_a_row_without_a_choice_fails_its_sequence_alone(rig: Rig, poison: float):
    decode = rig.backend.decode

    def poisoned(plan):
        rows = decode(plan)
        for row, logits in zip(plan.rows, rows, strict=True):
            if row.sequence.request.request_id == "bad" and row.sequence.n_generated == 2:
                logits[-1][:] = poison
        return rows

    rig.backend.decode = poisoned  # type: ignore[method-assign]
    rig.submit(request("good", max_tokens=5), request("bad", max_tokens=5))
    rig.run()
    assert isinstance(rig.error("bad"), DecodeFailed)
    assert len(rig.ids("bad")) == 2
    assert rig.reason("good") is FinishReason.LENGTH


def test_a_second_request_of_an_id_in_flight_is_refused_and_the_first_goes_on(rig: Rig):
    rig.engine.submit(request("it", max_tokens=3))
    rig.engine.submit(request("it", "another"))
    rig.engine.step()
    assert "in flight" in str(rig.events["it"][0].error)
    del rig.events["it"][0]
    rig.run()
    assert len(rig.ids("it")) == 3
    assert rig.reason("it") is FinishReason.LENGTH


def test_an_id_may_be_used_again_once_its_request_has_ended(rig: Rig):
    for _ in range(2):
        rig.events.clear()
        rig.submit(request("it", max_tokens=3))
        rig.run()
        assert len(rig.ids("it")) == 3


def test_fail_all_ends_every_request_with_the_error():
    rig = make_rig(n_parallel=1)
    rig.submit(request("running"), request("queued"))
    rig.step()
    rig.engine.fail_all(EngineStopped("bye"))
    rig.check()
    assert [str(rig.error(name)) for name in ("running", "queued")] == ["bye", "bye"]
    assert rig.engine.idle
    assert rig.engine.stats.n_free_seq_ids == 1


# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, 257, 2**40])
def test_a_token_outside_the_vocabulary_is_refused_and_named(rig: Rig, token: int):
    with pytest.raises(InvalidParameter, match=rf"prompt holds token id {token}; the vocabulary has ids 0 to 256"):
        rig.engine.validate(GenerationRequest("it", (1, token)))


def test_a_bias_outside_the_vocabulary_is_refused(rig: Rig):
    with pytest.raises(InvalidParameter, match="logit_bias holds token id 257"):
        rig.engine.validate(request("it", logit_bias=((257, 1.0),)))


def test_no_tokens_are_fine_for_the_id_check():
    check_token_ids([], 5, "tokens")


def test_an_encoder_model_refuses_to_generate():
    backend = StubBackend(256, 4)
    backend.generates = False
    with pytest.raises(NotSupported):
        make_rig(backend).engine.validate(request("it"))


# --- seeds: the same tokens in any company --------------------------------------------------------

SAMPLED = {"seed": 77, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 20}


def alone() -> list[int]:
    rig = make_rig()
    rig.submit(request("it", **SAMPLED))
    rig.run()
    return rig.ids("it")


OTHERS = [
    request("a", "quick", max_tokens=30),
    request("b", "x" * 70, max_tokens=9),
    request("c", "brown fox", max_tokens=15),
]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("settings", [{}, {"n_parallel": 2}, {"deterministic": True}, {"n_batch": 32}], ids=str)
def test_a_request_gets_the_same_tokens_alone_and_in_any_company(place: int, settings: dict):
    rig = make_rig(**settings)
    rig.submit(*OTHERS[:place], request("it", **SAMPLED), *OTHERS[place:])
    rig.run()
    assert rig.ids("it") == alone()


def test_a_request_that_joins_late_gets_the_same_tokens(rig: Rig):
    rig.submit(*OTHERS)
    rig.step(5)
    rig.submit(request("it", **SAMPLED))
    rig.run()
    assert rig.ids("it") == alone()


def test_a_prompt_continued_by_its_own_reply_goes_on_as_the_reply_did(rig: Rig):
    whole = alone()
    rig.submit(request("it", [*b"hello", *whole[:8]], **{**SAMPLED, "max_tokens": 12}))
    rig.run()
    assert rig.ids("it") == whole[8:]


def test_another_seed_gives_other_tokens(rig: Rig):
    rig.submit(request("it", **{**SAMPLED, "seed": 78}))
    rig.run()
    assert rig.ids("it") != alone()


def test_without_a_seed_every_request_draws_its_own(rig: Rig):
    rig.submit(*(request(str(i), **{**SAMPLED, "seed": None}) for i in range(2)))
    rig.run()
    assert rig.ids("0") != rig.ids("1")


# --- events ---------------------------------------------------------------------------------------


def test_the_events_of_a_step_leave_as_one_delivery(rig: Rig):
    rig.submit(*(request(str(i)) for i in range(4)))
    rig.prefill()
    rig.deliveries.clear()
    rig.step()
    assert [[name for name, _ in events] for events in rig.deliveries] == [["0", "1", "2", "3"]]


def test_the_text_of_the_events_is_the_text_of_the_tokens(rig: Rig):
    rig.submit(request("it", max_tokens=40))
    rig.run()
    assert rig.text("it") == bytes(rig.ids("it")).decode()


def test_characters_split_over_tokens_are_held_back_until_they_are_whole(rig: Rig):
    rig.submit(request("it", grammar='root ::= "h\u00e9\U0001f600"'))
    rig.run()
    assert [e.text for e in rig.events["it"] if isinstance(e, Tokens)] == ["h", "", "\u00e9", "", "", "", "\U0001f600"]


@pytest.mark.parametrize("n_top", [0, 3])
def test_there_is_one_logprob_for_every_id(rig: Rig, n_top: int):
    rig.submit(request("it", max_tokens=20, logprobs=n_top, stop=("!",)))
    rig.run()
    tokens = [e for e in rig.events["it"] if isinstance(e, Tokens)]
    assert all(e.logprobs is not None and [p.token for p in e.logprobs] == list(e.ids) for e in tokens)
    assert all(len(p.top) == n_top for e in tokens for p in e.logprobs or ())


def test_a_control_token_among_the_likeliest_has_its_name():
    rig = ending_rig()
    rig.submit(request("it", max_tokens=40, logprobs=20, ignore_eos=True))
    rig.run()
    entries = [p for e in rig.events["it"] if isinstance(e, Tokens) for p in e.logprobs or ()]
    assert all(piece == (b"<end>" if token == EOG else bytes([token])) for p in entries for token, piece, _ in p.top)
    assert any(token == EOG for p in entries for token, _, _ in p.top)
    assert not any(p.hidden for p in entries)


def test_without_logprobs_there_are_none(rig: Rig):
    rig.submit(request("it", max_tokens=3))
    rig.run()
    assert all(e.logprobs is None for e in rig.events["it"] if isinstance(e, Tokens))


def test_logprobs_are_of_the_raw_distribution_whatever_was_done_to_it(rig: Rig):
    plain = request("plain", max_tokens=1, logprobs=20, temperature=0.0)
    rig.submit(plain)
    rig.run()
    first = rig.events["plain"][0].logprobs[0]
    rig.submit(request("biased", max_tokens=1, logprobs=20, temperature=0.0, logit_bias=((first.token, -100.0),)))
    rig.run()
    other = rig.events["biased"][0].logprobs[0]
    assert other.top == first.top
    assert other.token != first.token
    assert other.logprob <= first.logprob


def test_alternatives_come_likeliest_first_with_their_bytes(rig: Rig):
    rig.submit(request("it", max_tokens=1, logprobs=5, temperature=0.0))
    rig.run()
    chosen = rig.events["it"][0].logprobs[0]
    values = [p for _, _, p in chosen.top]
    assert values == sorted(values, reverse=True)
    assert chosen.top[0][0] == chosen.token
    assert all(piece == bytes([token]) for token, piece, _ in chosen.top)


def test_the_finish_key_names_prompt_and_reply(rig: Rig):
    rig.submit(request("it", max_tokens=4))
    rig.run()
    chain = TokenChain(ROOT, [*b"hello", *rig.ids("it")])
    assert rig.done("it").finish_key == chain.key_at(len(chain))


# --- stats ----------------------------------------------------------------------------------------


def test_the_status_follows_the_sequences(rig: Rig):
    seen = [rig.engine.stats.status]
    rig.submit(request("it", "x" * 20, max_tokens=2))
    while rig.step():
        seen.append(rig.engine.stats.status)
    assert seen == [ModelStatus.IDLE, ModelStatus.PREFILLING, ModelStatus.GENERATING, ModelStatus.IDLE]


def test_counters_add_up(rig: Rig):
    rig.submit(request("a", max_tokens=3), request("b", max_tokens=5), request("cancelled"))
    rig.prefill()
    rig.engine.cancel("cancelled")
    rig.submit_unchecked(request("bad grammar", grammar="?"))
    rig.run()
    counts = rig.engine.stats.counts
    assert (counts.requests_admitted, counts.requests_finished, counts.requests_cancelled, counts.requests_failed) == (
        3,
        3,
        1,
        1,
    )
    assert (counts.prompt_tokens, counts.completion_tokens) == (15, 3 + 5 + 1)
    assert counts.steps == len(rig.backend.plans) == 7


def test_a_snapshot_does_not_change_afterwards(rig: Rig):
    rig.submit(request("it", max_tokens=5))
    rig.step()
    stats, text = rig.engine.stats, repr(rig.engine.stats)
    rig.run()
    assert repr(stats) == text
    assert rig.engine.stats.counts.completion_tokens == 5


def test_a_finished_request_says_what_it_cost(rig: Rig):
    rig.submit(request("it", max_tokens=3))
    rig.run()
    stats = rig.done("it").stats
    assert (stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens) == (5, 3, 0)
    assert stats.cache_hit_kind is CacheHitKind.COLD
    assert min(stats.queue_ms, stats.prefill_ms, stats.generation_ms) > 0


def test_a_request_cancelled_in_the_queue_has_spent_all_its_time_there():
    rig = in_state(State.QUEUED)
    rig.engine.cancel("it")
    rig.step()
    stats = rig.done("it").stats
    assert stats.queue_ms > 0
    assert (stats.prefill_ms, stats.generation_ms) == (0, 0)


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def lora(tmp_path) -> str:
    path = tmp_path / "lora.gguf"
    path.write_text("lora")
    return str(path)


def test_a_request_keeps_the_adapters_it_came_with(rig: Rig, lora: str):
    rig.submit(request("before", **SAMPLED))
    handle = rig.load_adapter(lora)
    rig.submit(request("with", **SAMPLED))
    rig.step(2)
    rig.engine.adapters.set_scale(handle, 0.5)
    rig.engine.adapters.unload(handle)
    rig.submit(request("after", **SAMPLED))
    rig.run()
    assert rig.ids("before") == rig.ids("after") == alone()
    assert rig.ids("with") != alone()


def test_an_unloaded_adapter_is_freed_when_its_last_request_ends(rig: Rig, lora: str):
    handle = rig.load_adapter(lora)
    rig.submit(request("it", max_tokens=5))
    rig.step()
    rig.engine.adapters.unload(handle)
    assert handle in rig.backend.adapters
    rig.run()
    assert rig.backend.adapters == {}


def test_an_unloaded_adapter_is_freed_when_its_last_request_is_cancelled_and_nothing_else_runs(rig: Rig, lora: str):
    handle = rig.load_adapter(lora)
    rig.submit(request("it"))
    rig.step()
    rig.engine.adapters.unload(handle)
    rig.engine.cancel("it")
    assert not rig.step()
    assert rig.backend.adapters == {}


def test_different_scales_do_not_share_a_batch(rig: Rig, lora: str):
    handle = rig.load_adapter(lora)
    rig.submit(request("one", max_tokens=5))
    rig.engine.adapters.set_scale(handle, 0.5)
    rig.submit(request("half", max_tokens=5))
    rig.run()
    assert {len(plan) for plan in rig.backend.plans} == {1}
    assert len(rig.ids("one")) == len(rig.ids("half")) == 5


def test_every_row_of_logits_is_the_engines_to_change(rig: Rig):
    """Bias and grammar write into rows; the next decode must not see it."""
    rig.submit(
        request("it", max_tokens=2, logit_bias=((int(np.frombuffer(b"e", np.uint8)[0]), -100.0),), temperature=0.0)
    )
    rig.run()
    assert ord("e") not in rig.ids("it")


# --- hand-over of events --------------------------------------------------------------------------


def test_the_first_token_and_the_end_leave_at_once_and_what_lies_between_gathers():
    rig = make_rig(stream_interval_ms=1e9)
    rig.submit(request("it", max_tokens=6))
    rig.step()
    assert len(rig.ids("it")) == 1
    rig.step(4)
    assert len(rig.ids("it")) == 1
    rig.step()
    assert len(rig.ids("it")) == 6
    assert rig.reason("it") is FinishReason.LENGTH
    assert len(rig.deliveries) == 2


def test_tokens_of_a_long_reply_leave_at_the_interval():
    rig = make_rig(stream_interval_ms=20)  # the rig's clock ticks a millisecond at every look
    rig.submit(request("it", max_tokens=100))
    rig.run()
    assert len(rig.ids("it")) == 100
    assert 3 < len(rig.deliveries) < 50


def test_a_newcomers_first_token_takes_the_others_tokens_along():
    rig = make_rig(stream_interval_ms=1e9)
    rig.submit(request("old", max_tokens=50))
    rig.step(5)
    assert len(rig.ids("old")) == 1
    rig.submit(request("new", "other", max_tokens=50))
    rig.step()
    assert len(rig.ids("new")) == 1
    assert len(rig.ids("old")) == 5


# --- dense ids ------------------------------------------------------------------------------------


def test_a_hole_in_the_running_ids_is_filled_by_the_highest_one_and_its_reply_does_not_change():
    alone = make_rig(n_parallel=4)
    alone.submit(request("d", "prompt d", max_tokens=30))
    alone.run()

    rig = make_rig(n_parallel=4)
    rig.submit(*(request(name, f"prompt {name}", max_tokens=30) for name in "abcd"))
    rig.prefill()
    rig.engine.cancel("b")
    rig.step(2)
    assert sorted(seq_id for seq_id, _, _ in rig.backend.plans[-1]) == [0, 1, 2]
    rig.run()
    assert rig.ids("d") == alone.ids("d")


def test_a_hole_is_left_to_whoever_waits():
    rig = make_rig(n_parallel=2)
    rig.submit(*(request(name, f"{name} prompt", max_tokens=30) for name in "abc"))
    rig.prefill()
    rig.engine.cancel("a")
    rig.step(2)
    assert rig.backend.plans[-2:] == [[(1, 8, 1)], [(0, 0, 8)]], "b stays where it is, c takes the hole"
    assert len(rig.ids("c")) == 1
