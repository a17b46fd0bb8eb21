"""The pure parts of bench/miss_overhead.py and bench/shared_prefix.py. No model is loaded, no
server is started.
"""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from harness import Figures, PromptMaker
from miss_overhead import TurnCost, add_turns, mean_stall
from shared_prefix import Crowd, Plan, crowd_of, problems_of, summarise
from stream_client import Stream

from erllama.stats import CacheCounters, Counters, EngineStats

PLAN = Plan(n=3, system=100, question=10, gen=4, rounds=1, n_vocab=1000)


def engine(prompt: int, cached: int, admitted: int, **hits: int) -> EngineStats:
    counts = Counters(requests_admitted=admitted, prompt_tokens=prompt, cached_tokens=cached)
    cache = CacheCounters(hits={name.replace("_", ":", 1): count for name, count in hits.items()})
    return EngineStats(n_parallel=4, n_free_seq_ids=4, counts=counts, cache=cache)


def stream(sent_s: float, first_s: float, end_s: float, cached: int) -> Stream:
    return Stream(int(sent_s * 1e9), int(end_s * 1e9), (int(first_s * 1e9),), "x", 110, 4, cached)


def test_the_overhead_is_the_median_of_pairs_with_the_same_prompts() -> None:
    figures = Figures()
    seconds = [("off", 1.0), ("on", 1.1), ("on", 2.4), ("off", 2.0), ("off", 10.0), ("on", 10.0)]
    add_turns(figures, [TurnCost(kind, wall, wall, 0.5, 6.0 * (kind == "on")) for kind, wall in seconds], n_requests=2)
    assert {f.name: pytest.approx(f.value) for f in figures.ratios} == {"ratio.wall": 1.1, "ratio.cpu": 1.1}
    assert figures.get("on.stall.mean") == 3
    assert figures.get("off.wall") == 2


def test_the_stall_of_a_finish_is_the_mean_of_the_saves_in_between() -> None:
    before = CacheCounters(saves={"finish": 1, "cold": 9}, stall_ms=100.0)
    after = CacheCounters(saves={"finish": 5, "cold": 9}, stall_ms=120.0)
    assert mean_stall(before, after) == 5
    assert math.isnan(mean_stall(before, before))


def test_what_a_crowd_cost_is_counted_per_replica() -> None:
    before = [engine(50, 0, 1, prefix_live=5), engine(40, 10, 1)]
    after = [engine(270, 90, 3, prefix_live=6), engine(150, 110, 2, prefix_ram_file=1)]
    streams = [stream(0.0, 0.5, 1.0, 0), stream(0.1, 0.2, 3.0, 90), stream(0.0, 0.4, 2.0, 100)]
    crowd = crowd_of(streams, before, after)
    assert (crowd.computed, crowd.requests, crowd.told) == ((130, 10), (2, 1), 140)
    assert crowd.hits == {"live": 1, "ram_file": 1}
    assert crowd.wall_s == pytest.approx(3.0)
    assert crowd.ttft_ms == pytest.approx((500, 100, 400))
    assert problems_of("r2", [crowd]) == []


def test_a_peer_is_believed_what_its_usage_says() -> None:
    crowd = crowd_of([stream(0, 1, 2, 0), stream(0, 1, 2, 100)], (), ())
    assert (crowd.computed, crowd.requests, crowd.told) == ((120,), (2,), 120)


def test_engines_and_usage_that_disagree_are_a_problem() -> None:
    assert problems_of("r1", [Crowd((100,), (3,), 90, 1.0, (1.0,))]) == [
        "r1: the engines computed 100 tokens, usage says 90"
    ]


def test_the_ideal_computes_the_system_prompt_once() -> None:
    prompts = PLAN.prompts(PromptMaker(1000))
    assert (PLAN.ideal, PLAN.naive) == (130, 330)
    assert len({tuple(prompt[:100]) for prompt in prompts}) == 1
    assert len({tuple(prompt[100:]) for prompt in prompts}) == 3
    figures = Figures()
    summarise(figures, "r2", [Crowd((130, 65), (2, 1), 195, 1.0, (1.0, 2.0))], PLAN)
    assert [(f.name, f.value) for f in figures.ratios] == [("ratio.r2/ideal", 1.5)]
    assert figures.get("r2.prefilled.most") == 130
    assert figures.get("r2.requests.least") == 1
