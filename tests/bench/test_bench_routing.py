"""What bench/routing.py asks and how it adds up, without a server."""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import routing
from harness import Figures
from stream_client import Stream

ARGS = Namespace(
    seed=1, families=2, conversations=20, turns=8, system=50, user=20, reply=8, think=2.0, ramp=30.0, side=0.5
)


def test_a_trace_is_the_same_for_every_server():
    trace = routing.make_trace(ARGS)
    assert trace == routing.make_trace(ARGS)
    assert trace != routing.make_trace(Namespace(**{**vars(ARGS), "seed": 2}))
    assert {c.family for c in trace.conversations} == {0, 1}
    assert all(4 <= len(c.turns) <= 8 and 0 <= c.start_s <= 30 for c in trace.conversations)
    assert {turn.side is None for c in trace.conversations for turn in c.turns} == {True, False}


def test_families_have_different_tools():
    assert routing.tools_of(0) == routing.tools_of(0)
    assert routing.tools_of(0) != routing.tools_of(1)


def test_a_run_counts_tokens_and_the_share_of_the_busiest_replica():
    streams = [Stream(0, 9_000_000, (ms * 1_000_000,), "x", 100, 1, cached) for ms, cached in ((1, 0), (3, 80))]
    run = routing.run_of(streams, [3, 1], 2.5)
    assert run == routing.Run(hit=0.4, prefilled=120, ttft_p50=2.0, ttft_p95=2.9, wall=2.5, share=0.75, n_requests=2)


@pytest.mark.parametrize(
    ("store", "change", "n_lost"), [("off", {}, 0), ("off", {"hit": 0.1, "ttft_p95": 99.0}, 2), ("on", {"hit": 0.1}, 0)]
)
def test_losing_is_a_failure_without_a_store(store, change, n_lost):
    plain = routing.Run(hit=0.5, prefilled=1000, ttft_p50=10.0, ttft_p95=20.0, wall=60, share=0.5, n_requests=9)
    routed = replace(plain, **{"hit": 0.8, "prefilled": 400, "ttft_p50": 8.0, "ttft_p95": 15.0, **change})
    figures = Figures()
    assert len(routing.summarise(figures, store, {"routed": [routed], "plain": [plain]})) == n_lost
    assert [f.name for f in figures.ratios] == [f"{store}.ratio.{name}" for name in routing.MEASURES]
