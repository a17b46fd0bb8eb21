"""What turns amount to, what they cannot tell, and what is asked."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.benchmark.summary import percentile, summarise
from erllama.benchmark.turn import Turn
from erllama.benchmark.workload import Workload, first_messages, next_messages, text, words_for
from erllama.errors import InvalidParameter

WORKLOAD = Workload(prompt_tokens=100, concurrency=1, turns=2, reply_tokens=4)
COLD = Turn(
    1, 0.0, (1.0, 1.1, 1.2, 1.4), "abcd", "length", n_prompt=100, n_cached=0, n_reply=4, prefill_tok_s=200.0,
    decode_tok_s=20.0,
)  # fmt: skip
WARM = replace(COLD, number=2, sent_s=2.0, arrived_s=(2.1, 2.2, 2.3, 2.4), n_prompt=120, n_cached=104)


def test_cold_and_warm_turns_stand_apart():
    told = summarise([COLD, WARM, replace(WARM, number=3, n_prompt=140, n_cached=124)], WORKLOAD)
    assert [(turn.number, turn.n_prompt, turn.n_cached) for turn in told.turns] == [
        (1, 100, 0),
        (2, 120, 104),
        (3, 140, 124),
    ]
    assert (told.cold.ttft_s, told.cold.prefill_tok_s) == (1.0, 100.0)
    assert told.warm.n_turns == 2
    assert told.warm.ttft_s == pytest.approx(0.1)


def test_the_rate_of_all_replies_is_that_of_the_whole_run():
    other = replace(COLD, sent_s=0.5, arrived_s=(1.5, 2.0))
    assert summarise([COLD, other], WORKLOAD).output_tok_s == pytest.approx(8 / 2.0)
    assert summarise([COLD, replace(other, n_reply=None)], WORKLOAD).output_tok_s is None


def test_failed_turns_count_as_errors_and_nothing_else():
    failed = Turn(2, 2.0, (), "", error="the queue is full")
    told = summarise([COLD, failed, replace(failed, number=3)], WORKLOAD)
    assert (len(told.turns), told.errors, told.warm) == (1, ("the queue is full",), None)
    nothing = summarise([failed], WORKLOAD)
    assert (nothing.turns, nothing.cold, nothing.output_tok_s, nothing.unknown) == ((), None, None, ())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n_cached": None}, "does not tell cached tokens"),
        ({"n_cached": 60}, "the first turn was not cold"),
        ({"n_reply": 40}, "an event has 10.0 tokens"),
        ({"decode_tok_s": None}, "no timings of its own"),
        ({"n_reply": 3}, "1 of 1 replies ended by themselves before 4 tokens"),
    ],
)
def test_what_figures_cannot_tell_is_said(changed, told):
    always = summarise([COLD], WORKLOAD).unknown
    assert not any(told in line for line in always)
    assert any(told in line for line in summarise([replace(COLD, **changed)], WORKLOAD).unknown)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_nothing_has_no_percentile():
    assert percentile([], 0.5) is None


def test_prompts_of_runs_and_conversations_differ_from_their_beginning():
    heads = {first_messages(50, run, number)[0]["content"][:40] for run in ("a", "b") for number in range(8)}
    assert len(heads) == 16
    assert text(50, "a") == text(50, "a")


def test_a_conversation_goes_on_from_what_was_said():
    before = first_messages(5, "run", 0)
    after = next_messages(before, "answer", "run", 1)
    assert after[:1] == before
    assert [message["role"] for message in after] == ["user", "assistant", "user"]
    assert after[1]["content"] == "answer"
    assert next_messages(after, "x", "run", 2)[-1] != after[-1]


@given(st.integers(20, 100_000), st.floats(0.5, 3.0), st.integers(5, 15))
def test_so_many_words_make_a_prompt_of_the_wanted_length(wanted, per_word, empty):
    sample = empty + round(200 * per_word)
    n_words = words_for(wanted, 200, sample, empty)
    measured = empty + n_words * (sample - empty) / 200
    assert abs(measured - wanted) <= 3.1


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"prompt_tokens": 15}, "--prompt-tokens must be between 16 and 1000000, got 15"),
        ({"concurrency": 0}, "--concurrency"),
        ({"turns": 101}, "--turns"),
        ({"reply_tokens": 1}, "--reply-tokens"),
    ],
)
def test_what_cannot_be_asked_is_told_with_the_option_and_its_limits(fields, option):
    with pytest.raises(InvalidParameter, match=option):
        Workload(**fields)


def test_a_context_must_hold_all_turns():
    workload = Workload(prompt_tokens=1000, turns=3, reply_tokens=100)
    workload.check_context(None)
    workload.check_context(workload.context)
    with pytest.raises(InvalidParameter, match=str(workload.context)):
        workload.check_context(workload.context - 1)
