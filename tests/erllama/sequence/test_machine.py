"""Every cell of the state table, the note an illegal step carries, and the status that follows from
sequences.
"""

from itertools import product

import pytest

from cache_store import TokenChain, root_key
from erllama.engine.reply_events import last_events
from erllama.errors import IllegalTransition
from erllama.events import Done, FinishReason
from erllama.request import GenerationRequest, SamplingParams
from erllama.sequence.machine import ENDINGS, TRANSITIONS, State, Step, apply, model_status
from erllama.sequence.sampling import TokenSampler
from erllama.sequence.sequence import Sequence
from erllama.sequence.text_stream import TextStream
from erllama.stats import ModelStatus

Q, R, P, G, F = State.QUEUED, State.RESTORING, State.PREFILLING, State.GENERATING, State.FINISHED

# Written out a second time, on purpose: rows are steps, columns the state before; None is illegal.
#                        QUEUED RESTORING PREFILLING GENERATING FINISHED
TABLE = {
    Step.ADMIT_COLD:     (P,   None,     None,      None,      None),
    Step.ADMIT_WARM:     (R,   None,     None,      None,      None),
    Step.RESTORED:       (None, P,       None,      None,      None),
    Step.RESTORED_ALL:   (None, G,       None,      None,      None),
    Step.RESTORE_MISSED: (None, P,       None,      None,      None),
    Step.SLICE:          (None, None,    P,         None,      None),
    Step.PREFILLED:      (None, None,    G,         None,      None),
    Step.TOKEN:          (None, None,    None,      G,         None),
    Step.STOP:           (F,    F,       F,         F,         None),
    Step.LENGTH:         (F,    F,       F,         F,         None),
    Step.CANCEL:         (F,    F,       F,         F,         None),
    Step.ERROR:          (F,    F,       F,         F,         None),
}  # fmt: skip

CELLS = [(state, step, TABLE[step][column]) for step in Step for column, state in enumerate(State)]
LEGAL = [cell for cell in CELLS if cell[2] is not None]
ILLEGAL = [(state, step) for state, step, after in CELLS if after is None]


def sequence(state: State) -> Sequence:
    tokens = [1, 2, 3]
    return Sequence(
        request=GenerationRequest("req-1", (1, 2, 3)),
        given=TokenChain(root_key("tests"), tokens),
        n_ctx=16,
        adapters=(),
        sampler=TokenSampler(SamplingParams(seed=0), tokens),
        text=TextStream(),
        tokens=tokens,
        submitted_ns=0,
        state=state,
        story=[Step.ADMIT_COLD],
    )


def test_the_table_has_a_cell_for_every_state_and_step():
    assert set(TABLE) == set(Step)
    assert all(len(row) == len(State) for row in TABLE.values())
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "step", "after"), LEGAL)
def test_a_legal_step_gives_exactly_the_expected_state(state: State, step: Step, after: State):
    assert apply(state, step) is after


@pytest.mark.parametrize(("state", "step"), ILLEGAL)
def test_an_illegal_step_raises_and_names_both(state: State, step: Step):
    with pytest.raises(IllegalTransition, match=f"'{step}' in state '{state}'"):
        apply(state, step)


@pytest.mark.parametrize(("state", "step", "after"), LEGAL)
def test_a_sequence_follows_a_legal_step_and_adds_it_to_its_story(state: State, step: Step, after: State):
    seq = sequence(state)
    seq.apply(step)
    assert seq.state is after
    assert seq.story[-1] is step


@pytest.mark.parametrize(("state", "step"), ILLEGAL)
def test_an_illegal_step_changes_nothing_in_a_sequence_and_tells_its_story(state: State, step: Step):
    seq = sequence(state)
    before = repr(seq)
    with pytest.raises(IllegalTransition) as caught:
        seq.apply(step)
    assert repr(seq) == before
    assert seq.story == [Step.ADMIT_COLD]
    assert caught.value.__notes__ == [f"{before} after admit_cold"]


def test_a_story_says_a_repeated_event_once():
    seq = sequence(State.QUEUED)
    seq.story.clear()
    for step in (Step.ADMIT_COLD, Step.SLICE, Step.SLICE, Step.PREFILLED, Step.TOKEN, Step.TOKEN, Step.STOP):
        seq.apply(step)
    assert seq.story == [Step.ADMIT_COLD, Step.SLICE, Step.PREFILLED, Step.TOKEN, Step.STOP]


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS[State.FINISHED][Step.TOKEN] = State.GENERATING  # type: ignore[index]


def test_every_ending_finishes_every_live_state():
    assert all(apply(state, step) is F for state in (Q, R, P, G) for step in ENDINGS)


def test_every_ending_but_an_error_has_a_reason_and_there_are_no_others():
    ends = [
        end
        for step in ENDINGS
        if step is not Step.ERROR
        for end in last_events(sequence(State.GENERATING), step, None, lambda: 0)
    ]
    assert all(isinstance(end, Done) for end in ends)
    assert [end.stats.finish_reason for end in ends if isinstance(end, Done)] == list(FinishReason)


@pytest.mark.parametrize("states", list(product([False, True], repeat=len(State))))
def test_the_status_of_a_model_follows_from_its_sequences(states: tuple[bool, ...]):
    present = {state for state, there in zip(State, states, strict=True) if there}
    if present & {R, P}:
        expected = ModelStatus.PREFILLING
    elif G in present:
        expected = ModelStatus.GENERATING
    else:
        expected = ModelStatus.IDLE
    assert model_status(present) is expected
    assert model_status([*present, *present]) is expected


def test_one_sequence_reads_idle_prefilling_generating_idle():
    state, statuses = State.QUEUED, [ModelStatus.IDLE]
    for step in (Step.ADMIT_COLD, Step.SLICE, Step.PREFILLED, Step.TOKEN, Step.STOP):
        state = apply(state, step)
        if model_status([state]) is not statuses[-1]:
            statuses.append(model_status([state]))
    assert statuses == [ModelStatus.IDLE, ModelStatus.PREFILLING, ModelStatus.GENERATING, ModelStatus.IDLE]
