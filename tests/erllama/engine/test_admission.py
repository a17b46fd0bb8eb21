"""The queue and the sequence ids: first in, first out, and no id is ever lost or given twice."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.engine.admission import Admission
from erllama.sequence.machine import State, Step
from erllama.sequence.sequence import Sequence
from tests.support.engine_kit import make_sequence


def filled(n_parallel: int, n: int) -> tuple[Admission, list[Sequence]]:
    admission = Admission(n_parallel)
    waiting = [make_sequence(str(i)) for i in range(n)]
    for sequence in waiting:
        admission.enqueue(sequence)
    return admission, waiting


def admit(admission: Admission, choose: Callable[[frozenset[int]], int] = min) -> list[Sequence]:
    """Start whoever may run, as the engine does; `choose` picks an id of those that are free."""
    admitted = []
    while (sequence := admission.next) is not None:
        admission.start(sequence, choose(admission.free))
        sequence.apply(Step.ADMIT_COLD)
        admitted.append(sequence)
    return admitted


def test_the_oldest_are_admitted_first_until_the_ids_run_out():
    admission, waiting = filled(2, 4)
    assert admit(admission) == waiting[:2]
    assert list(admission.waiting) == waiting[2:]
    assert [s.seq_id for s in admission.running] == [0, 1]
    assert admission.n_free == 0


def test_a_released_id_goes_to_the_next_in_line():
    admission, waiting = filled(2, 3)
    admit(admission)
    assert admission.release(waiting[0]) == 0
    assert admit(admission) == [waiting[2]]
    assert waiting[2].seq_id == 0
    assert list(admission.running) == [waiting[1], waiting[2]]


def test_releasing_twice_frees_an_id_once():
    admission, waiting = filled(2, 1)
    admit(admission)
    assert [admission.release(waiting[0]), admission.release(waiting[0])] == [0, None]
    assert admission.n_free == 2
    admission.check_integrity()


def test_releasing_a_waiting_sequence_takes_it_out_of_the_queue_and_frees_no_id():
    admission, waiting = filled(1, 3)
    admit(admission)
    assert admission.release(waiting[1]) is None
    assert list(admission.waiting) == [waiting[2]]
    assert admission.n_free == 0


def test_releasing_a_stranger_is_fine():
    admission = Admission(1)
    assert admission.release(make_sequence()) is None
    admission.check_integrity()


def test_only_queued_sequences_are_enqueued():
    with pytest.raises(AssertionError):
        Admission(1).enqueue(make_sequence(state=State.GENERATING))


def test_an_id_that_is_lost_or_held_twice_fails_the_integrity_check():
    admission, waiting = filled(2, 2)
    admit(admission)
    waiting[0].seq_id = 1
    with pytest.raises(AssertionError):
        admission.check_integrity()


@given(st.integers(1, 5), st.lists(st.integers(-1, 9), max_size=40))
def test_ids_are_neither_lost_nor_given_twice(n_parallel: int, actions: list[int]):
    """-1 enqueues a sequence and admits; a number releases the one at that place among all of them,
    again and again.
    """
    admission, everyone = Admission(n_parallel), []
    admitted: list[Sequence] = []
    for action in actions:
        if action < 0:
            everyone.append(make_sequence(str(len(everyone))))
            admission.enqueue(everyone[-1])
        elif action < len(everyone):
            gone = everyone[action]
            admission.release(gone)
            gone.state = State.FINISHED
        admitted += admit(admission)
        admission.check_integrity()
        assert not (admission.n_free and admission.waiting), "somebody waits beside a free id"
    assert admitted == [s for s in everyone if s in admitted], "admitted out of order"


# --- which id -------------------------------------------------------------------------------------


def running_on(n_parallel: int, *seq_ids: int) -> tuple[Admission, list[Sequence]]:
    """Sequences that run on these ids, admitted in this order."""
    admission, waiting = filled(n_parallel, len(seq_ids))
    wanted = iter(seq_ids)
    admit(admission, lambda _: next(wanted))
    return admission, waiting


def test_nobody_is_next_without_a_free_id_or_without_somebody_who_waits():
    admission, waiting = filled(1, 2)
    assert admission.next is waiting[0]
    admission.start(waiting[0], 0)
    assert admission.next is None
    admission.release(waiting[1])
    admission.release(waiting[0])
    assert admission.next is None


def test_whoever_came_later_is_not_started_first():
    admission, waiting = filled(2, 2)
    with pytest.raises(AssertionError):
        admission.start(waiting[1], 0)
    assert list(admission.waiting) == waiting
    admission.check_integrity()


def test_the_chosen_id_is_given_and_is_free_no_more():
    admission, waiting = running_on(4, 2)
    assert waiting[0].seq_id == 2
    assert admission.free == {0, 1, 3}
    admission.check_integrity()


def test_who_chooses_sees_what_is_free_at_that_moment():
    admission, _ = filled(3, 3)
    seen = []

    def choose(free: frozenset[int]) -> int:
        seen.append((free, len(admission.running)))
        return max(free)

    admit(admission, choose)
    assert seen == [({0, 1, 2}, 0), ({0, 1}, 1), ({0}, 2)]


def test_only_a_free_id_can_be_chosen():
    admission, _ = running_on(2, 1)
    admission.enqueue(make_sequence("next"))
    with pytest.raises(KeyError):
        admit(admission, lambda _: 1)
    assert len(admission.waiting) == 1


@pytest.mark.parametrize("seq_ids", [(), (0,), (3,), (0, 1), (2, 3), (3, 1, 2), (0, 1, 2, 3)], ids=str)
def test_ids_that_follow_each_other_are_no_gap_wherever_they_begin(seq_ids: tuple[int, ...]):
    admission, _ = running_on(4, *seq_ids)
    assert admission.close_gap() is None


@pytest.mark.parametrize(
    ("seq_ids", "after"),
    [((0, 2), {0, 1}), ((1, 5), {1, 2}), ((0, 1, 5), {0, 1, 2}), ((0, 2, 5), {0, 1, 2}), ((5, 3), {3, 4})],
    ids=str,
)
def test_the_highest_id_closes_the_lowest_gap(seq_ids: tuple[int, ...], after: set[int]):
    admission, waiting = running_on(6, *seq_ids)
    moved = admission.close_gap()
    assert moved == (waiting[seq_ids.index(max(seq_ids))], max(seq_ids))
    assert {s.seq_id for s in admission.running} == after
    assert max(seq_ids) in admission.free
    admission.check_integrity()


@given(st.integers(1, 8), st.data())
def test_closing_gaps_ends_with_ids_that_follow_each_other(n_parallel: int, data: st.DataObject):
    seq_ids = data.draw(st.lists(st.integers(0, n_parallel - 1), unique=True))
    admission, _ = running_on(n_parallel, *seq_ids)
    lowest = min(seq_ids, default=0)
    while admission.close_gap() is not None:
        admission.check_integrity()
    assert sorted(s.id for s in admission.running) == list(range(lowest, lowest + len(seq_ids)))
