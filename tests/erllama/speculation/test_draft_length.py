"""Which number of rows is chosen, what a row is taken to cost and a proposal to be worth."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.speculation.acceptance import Acceptance
from erllama.speculation.draft_length import LENGTHS, choose_rows
from erllama.speculation.proposal import Proposal, Source
from erllama.speculation.row_costs import RowCosts


class Linear:
    """Each further row of a sequence costs `slope` of a decode of single rows."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def ratio(self, n_sequences: int, n_rows: int) -> float:
        return 1.0 + self.slope * (n_rows - 1)


def chance(probability: float, n: int) -> tuple[float, ...]:
    return tuple(sum(probability**j for j in range(1, i + 1)) for i in range(1, n + 1))


@pytest.mark.parametrize(
    ("expected", "slope", "n_most", "n_rows"),
    [
        ([()], 0.1, 16, 1),  # nothing to propose
        ([(), ()], 0.1, 16, 1),
        ([chance(1.0, 15)], 0.1, 16, 16),
        ([chance(1.0, 15)], 0.1, 7, 4),
        ([chance(1.0, 6)], 0.1, 16, 8),  # the last row is a filler, and cheap enough
        ([chance(0.5, 15)], 0.1, 16, 4),
        ([chance(0.1, 15)], 0.2, 16, 1),
        ([chance(0.9, 15)], 1.0, 16, 1),  # a row costs as much as a decode
        ([chance(0.9, 15), ()], 0.3, 16, 4),  # the other one's rows are computed for nothing
        ([chance(0.9, 15), (), (), ()], 0.3, 16, 1),
        ([chance(0.9, 15)] * 4, 0.3, 16, 8),
    ],
)
def test_the_number_of_rows(expected: list[tuple[float, ...]], slope: float, n_most: int, n_rows: int):
    assert choose_rows(expected, Linear(slope), n_most) == n_rows


@given(
    expected=st.lists(st.integers(0, 15).map(lambda n: chance(0.8, n)), min_size=1, max_size=4),
    slope=st.floats(0.01, 2),
    n_most=st.integers(1, 16),
)
def test_it_is_within_the_bound_and_never_slower(expected: list[tuple[float, ...]], slope: float, n_most: int):
    n_rows = choose_rows(expected, Linear(slope), n_most)
    assert n_rows in LENGTHS
    assert n_rows <= n_most
    tokens = len(expected) + sum(each[min(n_rows - 1, len(each)) - 1] for each in expected if each and n_rows > 1)
    assert tokens / Linear(slope).ratio(1, n_rows) >= len(expected)


def test_costs_are_learned_for_each_number_of_sequences():
    costs = RowCosts()
    for _ in range(60):
        costs.note(1, 1, 0.010)
        costs.note(1, 8, 0.020)
        costs.note(4, 1, 0.030)
        costs.note(4, 8, 0.240)
    assert costs.ratio(1, 8) == pytest.approx(2.0, abs=0.1)
    assert costs.ratio(4, 8) == pytest.approx(8.0, abs=0.5)
    assert 2.0 < costs.ratio(1, 16) < 4.5  # as steep as up to 8
    assert costs.ratio(1, 1) == 1.0


def test_a_pause_of_the_machine_is_no_cost_of_rows():
    costs = RowCosts()
    for i in range(60):
        costs.note(1, 1, 0.010)
        costs.note(1, 4, 5.0 if i % 20 == 10 else 0.013)
    assert costs.ratio(1, 4) < 2.0


def test_what_was_measured_once_is_tried_again_some_day():
    costs = RowCosts()
    costs.note(1, 1, 0.01)
    for _ in range(30):
        costs.note(1, 4, 0.05)
    high = costs.ratio(1, 4)
    for _ in range(200):
        costs.note(1, 8, 0.02)
    assert costs.ratio(1, 4) < high / 1.5


def test_acceptance_follows_what_comes():
    acceptance, numbers = Acceptance(), random.Random(1)
    for _ in range(600):
        came = numbers.random() < 0.2
        acceptance.note(Proposal((1, 2, 3), 3), int(came), 1)
    assert acceptance.probability(Source.LOOKUP, 3) == pytest.approx(0.2, abs=0.08)
    assert acceptance.probability(Source.LOOKUP, 12) > 0.8  # nothing was learned about long matches
    assert acceptance.probability(Source.GRAMMAR, 0) > 0.8


def test_a_reply_that_repeats_nothing_is_soon_known_and_others_learn_little_from_it():
    everybody = Acceptance()
    for _ in range(100):
        everybody.note(Proposal((1,), 3), 1, 1)
    one, other = Acceptance(everybody), Acceptance(everybody)
    assert one.probability(Source.LOOKUP, 3) > 0.9
    for _ in range(6):
        one.note(Proposal((1,), 3), 0, 1)
    assert one.probability(Source.LOOKUP, 3) < 0.3
    assert other.probability(Source.LOOKUP, 3) > 0.8


def test_only_what_was_decided_counts():
    """Behind the first token that differs nothing is known, nor behind the last one that came."""
    acceptance = Acceptance()
    before = [acceptance.probability(Source.LOOKUP, n) for n in range(2, 8)]
    acceptance.note(Proposal((1, 2, 3, 4), 2), 1, 4)  # the second one differed
    after = [acceptance.probability(Source.LOOKUP, n) for n in range(2, 8)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2:] == before[2:]
    acceptance.note(Proposal((1, 2, 3, 4), 5), 2, 2)  # two came, both as proposed
    assert acceptance.probability(Source.LOOKUP, 7) == before[5]


def test_the_expected_number_grows_by_less_and_less():
    values = list(Acceptance().expected(Proposal(tuple(range(10)), 2), 6))
    assert len(values) == 6
    assert values == sorted(values)
    steps = [b - a for a, b in zip([0.0, *values], values, strict=False)]
    assert steps == sorted(steps, reverse=True)
    assert list(Acceptance().expected(Proposal(), 6)) == []
