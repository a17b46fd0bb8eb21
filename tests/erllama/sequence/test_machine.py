"""Every cell of the state table, the note an illegal event carries, and the status that follows from sequences."""

from itertools import product

import pytest

from cache_store import root_key
from erllama.errors import IllegalTransition
from erllama.request import GenerationRequest, SamplingParams
from erllama.sequence.machine import ENDINGS, TRANSITIONS, Event, State, apply, model_status
from erllama.sequence.sampling import TokenSampler
from erllama.sequence.sequence import Sequence
from erllama.sequence.text_stream import TextStream
from erllama.stats import ModelStatus

Q, R, P, G, F = State.QUEUED, State.RESTORING, State.PREFILLING, State.GENERATING, State.FINISHED

# Written out a second time, on purpose: rows are events, columns the state before; None is illegal.
#                        QUEUED RESTORING PREFILLING GENERATING FINISHED
TABLE = {
    Event.ADMIT_COLD:     (P,   None,     None,      None,      None),
    Event.ADMIT_WARM:     (R,   None,     None,      None,      None),
    Event.RESTORED:       (None, P,       None,      None,      None),
    Event.RESTORED_ALL:   (None, G,       None,      None,      None),
    Event.RESTORE_MISSED: (None, P,       None,      None,      None),
    Event.SLICE:          (None, None,    P,         None,      None),
    Event.PREFILLED:      (None, None,    G,         None,      None),
    Event.TOKEN:          (None, None,    None,      G,         None),
    Event.STOP:           (F,    F,       F,         F,         None),
    Event.LENGTH:         (F,    F,       F,         F,         None),
    Event.CANCEL:         (F,    F,       F,         F,         None),
    Event.ERROR:          (F,    F,       F,         F,         None),
    Event.EVICT:          (F,    F,       F,         F,         None),
}  # fmt: skip

CELLS = [(state, event, TABLE[event][column]) for event in Event for column, state in enumerate(State)]
LEGAL = [cell for cell in CELLS if cell[2] is not None]
ILLEGAL = [(state, event) for state, event, after in CELLS if after is None]


def sequence(state: State) -> Sequence:
    tokens = [1, 2, 3]
    return Sequence(
        request=GenerationRequest("req-1", (1, 2, 3)),
        root=root_key("tests"),
        n_ctx=16,
        adapters=(),
        sampler=TokenSampler(SamplingParams(seed=0), tokens),
        text=TextStream(),
        tokens=tokens,
        submitted_ns=0,
        state=state,
        story=[Event.ADMIT_COLD],
    )


def test_the_table_has_a_cell_for_every_state_and_event():
    assert set(TABLE) == set(Event)
    assert all(len(row) == len(State) for row in TABLE.values())
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "event", "after"), LEGAL)
def test_a_legal_event_gives_exactly_the_expected_state(state: State, event: Event, after: State):
    assert apply(state, event) is after


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_raises_and_names_both(state: State, event: Event):
    with pytest.raises(IllegalTransition, match=f"'{event}' in state '{state}'"):
        apply(state, event)


@pytest.mark.parametrize(("state", "event", "after"), LEGAL)
def test_a_sequence_follows_a_legal_event_and_adds_it_to_its_story(state: State, event: Event, after: State):
    seq = sequence(state)
    seq.apply(event)
    assert seq.state is after
    assert seq.story[-1] is event


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_changes_nothing_in_a_sequence_and_tells_its_story(state: State, event: Event):
    seq = sequence(state)
    before = repr(seq)
    with pytest.raises(IllegalTransition) as caught:
        seq.apply(event)
    assert repr(seq) == before
    assert seq.story == [Event.ADMIT_COLD]
    assert caught.value.__notes__ == [f"{before} after admit_cold"]


def test_a_story_says_a_repeated_event_once():
    seq = sequence(State.QUEUED)
    seq.story.clear()
    for event in (Event.ADMIT_COLD, Event.SLICE, Event.SLICE, Event.PREFILLED, Event.TOKEN, Event.TOKEN, Event.STOP):
        seq.apply(event)
    assert seq.story == [Event.ADMIT_COLD, Event.SLICE, Event.PREFILLED, Event.TOKEN, Event.STOP]


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS[State.FINISHED][Event.TOKEN] = State.GENERATING  # type: ignore[index]


def test_every_ending_finishes_every_live_state():
    assert all(apply(state, event) is F for state in (Q, R, P, G) for event in ENDINGS)


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
    for event in (Event.ADMIT_COLD, Event.SLICE, Event.PREFILLED, Event.TOKEN, Event.STOP):
        state = apply(state, event)
        if model_status([state]) is not statuses[-1]:
            statuses.append(model_status([state]))
    assert statuses == [ModelStatus.IDLE, ModelStatus.PREFILLING, ModelStatus.GENERATING, ModelStatus.IDLE]
