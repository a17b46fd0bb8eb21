"""How long slices are, how often streams get their tokens between them, and with how many threads."""

from itertools import groupby

import pytest

from erllama.backend.batch_plan import BatchPlan, PlanRow, plan_batch
from erllama.config import EngineConfig
from erllama.pace.pace import Pace, SliceCost
from erllama.sequence.machine import State
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import make_rig, make_sequence, request

UNIT = 64
PROMPT = make_sequence("p", state=State.PREFILLING, n_prompt=4000, seq_id=0)
STREAM = make_sequence("s", state=State.GENERATING, n_prompt=8, n_generated=2, n_kv=9, seq_id=1)
SLICE, TOKEN = (BatchPlan((PlanRow(s, s.n_kv, n, 1),), ()) for s, n in ((PROMPT, UNIT), (STREAM, 1)))


def pace(*, unit: int = UNIT, n_threads: int = 1, **settings: object) -> Pace:
    backend = StubBackend()
    backend.slice_unit, backend.n_threads, backend.adapts_threads = unit, n_threads, n_threads > 1
    return Pace(backend, EngineConfig(path="stub", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("token_ms", "pause_ms", "beside", "alone"),
    [
        (None, 200, 64, 256),  # nothing was measured
        (0.1, 200, 512, 512),  # n_batch is reached before the pause
        (1.0, 200, 192, 512),
        (1.0, 100, 64, 512),
        (1.0, 0, 512, 512),  # pauses do not matter
        (4.0, 200, 64, 192),  # no slice is shorter than a unit, and alone it ends within a second
        (100.0, 200, 64, 64),
    ],
)
def test_a_slice_is_as_long_as_the_pause_allows(token_ms, pause_ms, beside, alone):
    one = pace(max_pause_ms=pause_ms)
    if token_ms is not None:
        one.note(SLICE, UNIT * token_ms / 1e3)
    assert one.limits([STREAM, PROMPT]).prefill_slice == beside
    assert one.limits([PROMPT]).prefill_slice == alone


@pytest.mark.parametrize(
    ("slice_s", "token_s", "tokens"),
    [(0.1, 0.01, 1), (0.5, 0.02, 3), (0.5, 0.2, 2), (0.5, 1.0, 1), (30.0, 0.01, 16)],
)
def test_streams_get_more_tokens_between_slices_that_are_too_long_and_slices_keep_half_of_the_time(
    slice_s, token_s, tokens
):
    one = pace(max_pause_ms=200)
    one.note(SLICE, slice_s)
    one.note(TOKEN, token_s)
    limits = one.limits([STREAM, PROMPT])
    assert limits.tokens_per_slice == tokens
    kinds = [plan_batch([STREAM, PROMPT], limits, turn).rows[0].sequence is STREAM for turn in range(3 * (tokens + 1))]
    assert [len(list(run)) for is_token, run in groupby(kinds) if is_token] == [tokens] * 3
    assert kinds.count(False) == 3


@pytest.mark.parametrize(
    ("settings", "unit", "length"),
    [({"prefill_slice": 96}, UNIT, 96), ({"deterministic": True}, UNIT, 256), ({}, 0, 256)],
)
def test_slices_of_one_length_where_they_are_configured_or_needed(settings, unit, length):
    one = pace(unit=unit, **settings)
    one.note(SLICE, 0.001)
    for running in ([PROMPT], [STREAM, PROMPT]):
        limits = one.limits(running)
        assert (limits.prefill_slice, limits.slice_unit) == (length, 0)


def test_deep_tokens_are_dearer_and_what_is_unknown_costs_what_is_known_nearby():
    cost = SliceCost()
    assert cost.at(0) is None
    cost.note(1024, 100, 0.2)
    assert cost.at(0) == cost.at(1500) == cost.at(50_000) == pytest.approx(0.002)
    cost.note(0, 100, 0.1)
    cost.note(16_000, 100, 0.8)
    assert [cost.at(depth) for depth in (100, 600, 1300, 7000, 50_000)] == pytest.approx(
        [0.001, 0.001, 0.002, 0.002, 0.008]
    )
    for _ in range(8):
        cost.note(0, 100, 0.3)
    assert cost.at(0) == pytest.approx(0.003, rel=0.02)


def test_tokens_are_computed_with_the_tuners_threads_and_slices_with_all():
    one = pace(n_threads=2)
    backend = one._backend
    assert isinstance(backend, StubBackend)
    for _ in range(60):  # one thread takes half the time of two
        one.begin(TOKEN)
        one.note(TOKEN, 0.01 * backend.threads[-1])
    assert backend.threads[-1] == 1
    one.begin(SLICE)
    assert backend.threads[-1] == 2


def test_the_kv_and_the_text_of_a_prompt_are_the_same_beside_a_stream(tmp_path):
    """The engine with slices that change: every token is computed once, in order, and streams go on."""
    rig = make_rig(prefill_slice="auto", n_batch=512, n_ctx=1024, n_parallel=2)
    rig.backend.slice_unit = UNIT
    rig.submit(request("stream", "a prompt", max_tokens=40))
    rig.step(3)
    rig.submit(request("long", "x" * 700, max_tokens=3))
    rig.run()
    alone = make_rig(prefill_slice=64, n_batch=512, n_ctx=1024, n_parallel=2)
    alone.submit(request("long", "x" * 700, max_tokens=3))
    alone.run()
    assert rig.text("long") == alone.text("long")
    slices = [rows[0] for rows in rig.backend.plans if rows[0][2] > 1 and rows[0][0] == 1]
    assert [start for _, start, _ in slices] == [0, *(start + n for _, start, n in slices)][:-1]
    assert {(start + n) % UNIT for _, start, n in slices[:-1]} == {0}
    assert slices[-1] == (1, 640, 60)


def test_drafts_come_and_go_without_a_word_to_the_tuner_of_threads():
    """They would let it measure anew with each change of their length, and never come to an end."""
    one = pace(n_threads=8)
    noted: list[int] = []
    one._threads.note = lambda seconds, *, n_rows: noted.append(n_rows)
    drafted = BatchPlan((PlanRow(STREAM, STREAM.n_kv, 1, 1).with_draft((1, 2, 3)),), ())
    for plan in (TOKEN, drafted, TOKEN):
        one.begin(plan)
        one.note(plan, 0.1)
    assert noted == [1, 1]


def test_a_slice_is_bounded_for_the_deepest_of_several_prompts():
    """Whichever of them is next."""
    one = pace(max_pause_ms=200)
    for depth, ms in ((0, 0.5), (3000, 3.0)):
        deep = make_sequence("d", state=State.PREFILLING, n_prompt=4000, n_kv=depth, seq_id=2)
        one.note(BatchPlan((PlanRow(deep, depth, UNIT, 0),), ()), UNIT * ms / 1e3)
    fresh, late = (
        make_sequence(name, state=State.PREFILLING, n_prompt=4000, n_kv=depth, seq_id=seq_id)
        for name, depth, seq_id in (("f", 0, 3), ("l", 3008, 4))
    )
    alone = one.limits([STREAM, late]).prefill_slice
    assert one.limits([STREAM, fresh, late]).prefill_slice == alone
    assert one.limits([STREAM, fresh]).prefill_slice >= alone
