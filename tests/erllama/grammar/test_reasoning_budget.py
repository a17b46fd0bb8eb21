"""The budget of a model's reasoning: its end is forced once, at one place, whoever goes on with the reply."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.grammar.reasoning_budget import ReasoningBudget

CLOSE = (90, 91)


def run(budget, draw, n, given_tokens=(1, 2, 3)):
    """A reply of `n` tokens: what `draw` says, except where a token is forced."""
    tokens = list(given_tokens)
    for position in range(n):
        forced = budget.forced(tokens, 3)
        tokens.append(draw[position % len(draw)] if forced is None else forced)
    return tokens[3:]


def test_the_end_is_forced_after_the_budget_and_only_once():
    assert run(ReasoningBudget(3, CLOSE), [7], 8) == [7, 7, 7, 90, 91, 7, 7, 7]


def test_a_budget_of_nothing_ends_the_reasoning_at_once():
    assert run(ReasoningBudget(0, CLOSE), [7], 4) == [90, 91, 7, 7]


def test_reasoning_that_ends_by_itself_is_left_alone():
    assert run(ReasoningBudget(4, CLOSE), [7, 90, 91, 8, 9], 5) == [7, 90, 91, 8, 9]


def test_a_model_that_does_not_think_is_left_alone():
    assert run(ReasoningBudget(2, CLOSE, opening=(50,)), [7], 6) == [7] * 6
    assert run(ReasoningBudget(2, CLOSE, opening=(50,)), [50, 7, 7, 7, 7, 7], 6) == [50, 7, 7, 90, 91, 7]


@given(st.lists(st.sampled_from([7, 50, 90, 91]), min_size=12, max_size=12), st.integers(0, 5), st.integers(0, 11))
def test_a_resumed_reply_is_the_same(draw, n_budget, cut):
    for opening in ((), (50,)):
        budget = ReasoningBudget(n_budget, CLOSE, opening)
        whole = run(budget, draw, 12)
        tokens = [1, 2, 3, *whole[:cut]]
        for position in range(cut, 12):
            forced = budget.forced(tokens, 3)
            tokens.append(draw[position] if forced is None else forced)
        assert tokens[3:] == whole


def test_a_negative_budget_is_refused():
    with pytest.raises(InvalidParameter) as caught:
        ReasoningBudget(-1, CLOSE)
    assert caught.value.param == "thinking_budget"
