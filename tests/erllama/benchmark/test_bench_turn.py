"""What is read from a stream: of ours, of llama.cpp's server, of one that tells nothing."""

import json

import pytest

from erllama.benchmark.turn import Turn, read_turn


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def read(*timed):
    """A turn that was sent at 10 s."""
    return read_turn(1, 10.0, [(at_s, json.dumps(chunk)) for at_s, chunk in timed])


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 100, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 60}},
}


def test_times_are_those_of_events_with_text():
    turn = read(
        (11.0, delta(role="assistant", content="")),
        (12.0, delta(content="a")),
        (12.5, delta(content="b")),
        (14.0, delta(content="c")),
        (15.0, END),
        (16.0, USAGE),
    )
    assert (turn.ttft_s, turn.gaps_s, turn.text, turn.finish_reason) == (2.0, [0.5, 1.5], "abc", "stop")
    assert (turn.n_prompt, turn.n_cached, turn.n_computed, turn.n_reply) == (100, 60, 40, 8)
    assert turn.error is None


@pytest.mark.parametrize(("n_cached", "rate"), [(0, 50.0), (50, 25.0), (51, None), (100, None), (None, None)])
def test_a_prompt_that_was_mostly_cached_tells_no_rate_of_prefill(n_cached, rate):
    assert Turn(1, 10.0, (12.0,), "a", n_prompt=100, n_cached=n_cached).seen_prefill_tok_s == rate


def test_the_rate_of_decoding_counts_what_came_behind_the_first_event():
    """Eight tokens in four events: six of them within three seconds."""
    turn = read(*[(12.0 + n, delta(content="ab")) for n in range(4)], (16.0, USAGE))
    assert turn.seen_decode_tok_s == pytest.approx(2.0)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_text_that_arrives_and_no_part_of_the_answer(field):
    turn = read((12.0, delta(**{field: "hm"})), (13.0, delta(content="yes")), (13.0, USAGE))
    assert (turn.ttft_s, turn.text) == (2.0, "yes")


@pytest.mark.parametrize(
    ("last", "n_cached"),
    [
        ({"usage": {"prompt_tokens": 100, "completion_tokens": 8}}, None),
        ({"usage": {"prompt_tokens": 100, "prompt_tokens_details": None}, "timings": {"cache_n": 7}}, 7),
        ({"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}, "timings": {"cache_n": 7}}, 0),
    ],
)
def test_cached_tokens_stand_in_the_usage_or_in_timings(last, n_cached):
    turn = read((12.0, delta(content="a")), (13.0, {"choices": [], **last}))
    assert turn.n_cached == n_cached
    assert (turn.n_computed is None) is (n_cached is None)


def test_a_servers_own_rates_are_kept():
    timings = {"prompt_per_second": 900.0, "predicted_per_second": 31.5}
    turn = read((12.0, delta(content="a")), (13.0, END | {"timings": timings}))
    assert (turn.prefill_tok_s, turn.decode_tok_s) == (900.0, 31.5)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], "no text"),
        ([(12.0, json.dumps(END))], "no text"),
        ([(12.0, json.dumps({"error": {"message": "the queue is full"}}))], "the queue is full"),
        ([(12.0, json.dumps({"error": "gone"}))], "gone"),
        ([(12.0, "data is not JSON")], "no JSON"),
    ],
)
def test_what_is_no_reply_is_an_error(events, told):
    turn = read_turn(1, 10.0, events)
    assert told in turn.error


def test_one_event_has_no_rates():
    turn = Turn(1, 10.0, (12.0,), "all at once", n_reply=3)
    assert (turn.ttft_s, turn.gaps_s, turn.seen_decode_tok_s, turn.seen_prefill_tok_s) == (2.0, [], None, None)
