"""Log probabilities of what tokens were drawn from, for requests that ask for those."""

import math

import pytest

from erllama.errors import InvalidParameter
from erllama.events import Tokens
from erllama.grammar.reasoning_budget import ReasoningBudget
from tests.support.engine_kit import make_rig, request

WIDE = {"temperature": 1.5, "top_k": 4, "top_p": 1.0, "min_p": 0.0}


def told(rig, name="r"):
    return [entry for event in rig.events[name] if isinstance(event, Tokens) for entry in event.logprobs or ()]


def test_the_likeliest_are_those_that_the_chain_left_and_sum_up_to_one():
    rig = make_rig()
    rig.submit(request("r", max_tokens=8, logprobs=6, post_sampling=True, **WIDE))
    rig.submit(request("raw", max_tokens=8, logprobs=6, **WIDE))
    rig.run()
    assert rig.ids("r") == rig.ids("raw")
    assert len(told(rig)) == 8
    for entry, raw in zip(told(rig), told(rig, "raw"), strict=True):
        assert len(entry.top) == 4
        assert math.fsum(math.exp(logprob) for _, _, logprob in entry.top) == pytest.approx(1)
        assert (entry.token, entry.logprob) in [(token, logprob) for token, _, logprob in entry.top]
        assert [token for token, *_ in entry.top] == [token for token, *_ in raw.top[:4]]
        assert entry.logprob > raw.logprob


def test_a_greedy_token_is_certain():
    rig = make_rig()
    rig.submit(request("r", max_tokens=3, logprobs=2, post_sampling=True, temperature=0.0))
    rig.run()
    assert [(entry.logprob, len(entry.top)) for entry in told(rig)] == [(0.0, 1)] * 3


def test_so_is_one_that_was_not_drawn():
    rig = make_rig()
    budget = ReasoningBudget(2, tuple(b"</t>"))
    rig.submit(request("r", max_tokens=9, logprobs=1, post_sampling=True, reasoning=budget, **WIDE))
    rig.run()
    forced = told(rig)[2:6]
    assert bytes(entry.token for entry in forced) == b"</t>"
    assert [(entry.logprob, entry.top[0][0]) for entry in forced] == [(0.0, token) for token in b"</t>"]


def test_it_is_about_logprobs():
    with pytest.raises(InvalidParameter, match="logprobs"):
        request("r", post_sampling=True)
    with pytest.raises(InvalidParameter, match="post_sampling"):
        request("r", logprobs=1, post_sampling=1)
    with pytest.raises(InvalidParameter, match="report_progress"):
        request("r", report_progress="yes")
