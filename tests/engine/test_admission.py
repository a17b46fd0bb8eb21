"""The queue and the sequence ids: first in, first out, and no id is ever lost or given twice."""

import pytest
from engine_kit import make_sequence
from hypothesis import given
from hypothesis import strategies as st

from erllama.admission import Admission
from erllama.machine import Event, State
from erllama.sequence import Sequence


def filled(n_parallel: int, n: int) -> tuple[Admission, list[Sequence]]:
    admission = Admission(n_parallel)
    waiting = [make_sequence(str(i)) for i in range(n)]
    for sequence in waiting:
        admission.enqueue(sequence)
    return admission, waiting


def admit(admission: Admission) -> list[Sequence]:
    admitted = []
    for sequence in admission.admit():
        sequence.apply(Event.ADMIT_COLD)
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
    """-1 enqueues a sequence and admits; a number releases the one at that place among all of them, again and again."""
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
