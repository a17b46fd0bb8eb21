"""The batch policy, over random sets of sequences."""

from hypothesis import given
from hypothesis import strategies as st

from erllama.backend.batch_plan import BatchLimits, BatchPlan, plan_batch
from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence
from tests.support.engine_kit import adapter_set, make_sequence

LIVE = (State.PREFILLING, State.GENERATING)
SETS = [(), adapter_set("a"), adapter_set("a", "b")]


@st.composite
def sequences(draw, states=(*LIVE, State.RESTORING), sets=SETS):
    """Running sequences in order of admission, each in a shape that the engine can bring about."""
    made = []
    for i in range(draw(st.integers(0, 8))):
        state = draw(st.sampled_from(states))
        n_prompt = draw(st.integers(1, 300))
        shape = {"n_kv": draw(st.integers(0, n_prompt - 1))}
        if state is State.GENERATING:
            n_generated = draw(st.integers(1, 20))
            shape = {"n_generated": n_generated, "n_kv": n_prompt + n_generated - 1}
        made.append(
            make_sequence(
                str(i), state=state, n_prompt=n_prompt, seq_id=i, adapters=draw(st.sampled_from(sets)), **shape
            )
        )
    return made


limits = st.builds(BatchLimits, st.integers(8, 200), st.integers(1, 200), st.booleans())
together = st.builds(BatchLimits, st.integers(8, 200), st.integers(1, 200))
turns = st.integers(0, 1000)


def by_state(plan: BatchPlan, state: State) -> list:
    return [row for row in plan.rows if row.sequence.state is state]


@given(sequences(), limits, turns)
def test_the_budget_is_never_exceeded(running, limits, turn):
    assert plan_batch(running, limits, turn).n_tokens <= limits.n_batch


@given(sequences(), limits, turns)
def test_a_plan_is_either_tokens_or_one_slice(running, limits, turn):
    plan = plan_batch(running, limits, turn)
    slices, tokens = by_state(plan, State.PREFILLING), by_state(plan, State.GENERATING)
    assert len(slices) <= 1
    assert not (slices and tokens)


@given(sequences(), limits, turns)
def test_a_slice_ends_at_a_boundary_or_with_its_prompt(running, limits, turn):
    for row in by_state(plan_batch(running, limits, turn), State.PREFILLING):
        length = min(limits.prefill_slice, limits.n_batch)
        assert row.n_tokens <= length
        assert row.n_logits or (row.start + row.n_tokens) % length == 0


@given(sequences(), limits, turns)
def test_there_is_a_plan_exactly_when_something_can_be_computed(running, limits, turn):
    assert bool(plan_batch(running, limits, turn)) == any(s.state in LIVE for s in running)


@given(sequences(), together, turns)
def test_a_plan_of_tokens_has_exactly_one_for_every_generating_sequence_of_its_set(running, limits, turn):
    plan = plan_batch(running, limits, turn)
    rows = by_state(plan, State.GENERATING)
    if rows:
        assert [row.sequence for row in rows] == [
            s for s in running if s.state is State.GENERATING and s.adapters == plan.adapters
        ]
        assert all(row.n_tokens == 1 for row in rows)


@given(sequences(), together, turns)
def test_prompts_are_served_first_come_first_served(running, limits, turn):
    plan = plan_batch(running, limits, turn)
    for row in by_state(plan, State.PREFILLING):
        assert row.sequence is next(s for s in running if s.state is State.PREFILLING and s.adapters == plan.adapters)


@given(sequences(sets=[()]), together, turns)
def test_running_streams_and_a_prompt_take_turns(running, limits, turn):
    kinds = {s.state for s in running if s.state in LIVE}
    plans = [plan_batch(running, limits, turn + i) for i in range(2)]
    assert {row.sequence.state for plan in plans for row in plan.rows} == kinds


@given(sequences(), limits, turns)
def test_a_row_continues_where_the_kv_of_its_sequence_ends(running, limits, turn):
    for row in plan_batch(running, limits, turn).rows:
        assert row.start == row.sequence.n_kv
        assert 0 < row.n_tokens <= row.sequence.n_pending
        assert len(row.tokens) == row.n_tokens
        assert row.seq_id == row.sequence.seq_id


@given(sequences(), limits, turns)
def test_logits_are_wanted_exactly_where_a_row_reaches_the_last_token(running, limits, turn):
    for row in plan_batch(running, limits, turn).rows:
        assert row.n_logits == (row.start + row.n_tokens == row.sequence.n_tokens)


@given(sequences(), limits, turns)
def test_no_sequence_is_in_a_plan_twice(running, limits, turn):
    planned = [id(row.sequence) for row in plan_batch(running, limits, turn).rows]
    assert len(set(planned)) == len(planned)


@given(sequences(), st.integers(8, 200), turns)
def test_solo_plans_one_sequence(running, n_batch, turn):
    plan = plan_batch(running, BatchLimits(n_batch, 16, solo=True), turn)
    assert len(plan.rows) == any(s.state in LIVE for s in running)


@given(sequences(), limits, turns)
def test_different_adapter_sets_never_share_a_plan(running, limits, turn):
    plan = plan_batch(running, limits, turn)
    assert all(row.sequence.adapters == plan.adapters for row in plan.rows)


@given(sequences(), together, turns)
def test_every_adapter_set_gets_its_turn(running, limits, turn):
    sets = {s.adapters for s in running if s.state in LIVE}
    plans = [plan_batch(running, limits, turn + i) for i in range(2 * len(sets))]
    assert {plan.adapters for plan in plans if plan} == sets


@given(sequences(), turns)
def test_every_sequence_gets_its_turn_when_each_runs_alone(running, turn):
    live = [s for s in running if s.state in LIVE]
    plans = [plan_batch(running, BatchLimits(64, 16, solo=True), turn + i) for i in range(len(live))]
    assert {id(plan.rows[0].sequence) for plan in plans} == {id(s) for s in live}


def compute(plan: BatchPlan) -> None:
    """What the engine would do, with replies that never end."""
    for row in plan.rows:
        row.sequence.n_kv += row.n_tokens
        if row.n_logits:
            row.sequence.state = State.GENERATING
            row.sequence.tokens.append(97)


def most_steps(running: list[Sequence], limits: BatchLimits) -> int:
    """Until every prompt is computed: at worst each step serves one of the sequences, with the
    smaller of a slice and the batch.
    """
    work = sum(-(-s.n_pending // min(limits.prefill_slice, limits.n_batch)) + 1 for s in running)
    return work * len(running)


@given(sequences(states=LIVE), limits)
def test_no_sequence_starves(running: list[Sequence], limits: BatchLimits):
    start = {id(s): s.n_generated for s in running}
    for turn in range(most_steps(running, limits)):
        compute(plan_batch(running, limits, turn))
    assert all(s.n_generated > start[id(s)] for s in running)


@given(st.integers(1, 300), sequences(states=LIVE), st.integers(0, 8), limits, turns)
def test_the_slices_of_a_prompt_do_not_depend_on_its_neighbours(n_prompt, neighbours, place, limits, first_turn):
    def slices(before: list[Sequence], after: list[Sequence]) -> list[tuple[int, int]]:
        one = make_sequence("one", state=State.PREFILLING, n_prompt=n_prompt, seq_id=8)
        running, seen = [*before, one, *after], []
        for turn in range(first_turn, first_turn + most_steps(running, limits)):
            plan = plan_batch(running, limits, turn)
            seen += [(row.start, row.n_tokens) for row in plan.rows if row.sequence is one]
            compute(plan)
            if one.state is State.GENERATING:
                return seen
        raise AssertionError("the prompt starved")

    assert slices([], []) == slices(neighbours[:place], neighbours[place:])


@given(sequences(), limits, turns)
def test_planning_changes_nothing(running, limits, turn):
    before = [repr(s) for s in running]
    first = plan_batch(running, limits, turn)
    assert plan_batch(running, limits, turn) == first
    assert [repr(s) for s in running] == before
