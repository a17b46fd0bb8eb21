"""What the policy decides for each situation, and that under any traffic memory is never reserved
twice, nothing that runs goes, and nobody waits for ever.
"""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))

from hub_world import NS, Arrival, Kind, World

from deployments.hub.policy import (
    Grant,
    HubModel,
    HubPolicy,
    HubPolicyOptions,
    Refuse,
    Remove,
    Residence,
    Room,
    Sleep,
    SleepReason,
    Ticket,
    Wake,
)

TURN_S = 60.0
NOW = 1000 * NS
ABSENT, ASLEEP, AWAKE, LEAVING = Residence


def model(
    name, residence=AWAKE, node="n1", *, need=10, process=1, n_open=0, idle_s=0.0, awake_s=0.0, keep_s=None, ends=False
):
    return HubModel(
        model_id=name,
        residence=residence,
        node_id="" if residence is ABSENT else node,
        need_bytes=need,
        process_bytes=process,
        n_open=n_open,
        last_used_ns=NOW - int(idle_s * NS),
        awake_since_ns=NOW - int(awake_s * NS),
        keep_ns=None if keep_s is None else int(keep_s * NS),
        leaving_bytes=(need - (0 if ends else process)) if residence is LEAVING else 0,
    )


def ticket(name, waited_s=0.0, number=1):
    return Ticket(f"{name}{number}", name, NOW - int(waited_s * NS))


def room(free, total=20, node="n1"):
    return Room(node, free, total)


def plan(models, tickets, rooms, *, max_models=10):
    return HubPolicy(HubPolicyOptions(max_models=max_models, max_turn_s=TURN_S)).plan(models, tickets, rooms, NOW)


PRESSURE = SleepReason.PRESSURE
CASES = {
    "in memory: granted, oldest first": (
        [model("a")], [ticket("a", 1, 1), ticket("a", 2, 2)], [room(0)], [Grant("a2"), Grant("a1")],
    ),
    "it wakes where most is free": (
        [model("a", ABSENT)], [ticket("a")], [room(11), room(15, node="n2")], [Wake("a", "n2")],
    ),
    "it wakes where its process sleeps": (
        [model("a", ASLEEP)], [ticket("a")], [room(9), room(15, node="n2")], [Wake("a", "n1")],
    ),
    "its process moves from a full node": (
        [model("a", ASLEEP), model("b", n_open=1)], [ticket("a")], [room(3), room(15, node="n2")], [Remove("a")],
    ),
    "the longest idle goes": (
        [model("a", ABSENT), model("b", idle_s=5), model("c", idle_s=9)], [ticket("a")], [room(2, 30)],
        [Sleep("c", PRESSURE)],
    ),
    "as many as it takes": (
        [model("a", ABSENT, need=20), model("b", idle_s=5), model("c", idle_s=9)], [ticket("a")], [room(2, 30)],
        [Sleep("c", PRESSURE), Sleep("b", PRESSURE)],
    ),
    "where the longest idle go, though they are larger": (
        [model("a", ABSENT), model("b", idle_s=9, need=12), model("c", node="n2", need=11, idle_s=2)], [ticket("a")],
        [room(0), room(0, node="n2")], [Sleep("b", PRESSURE)],
    ),
    "one that was idle for less goes before two that cause more loads": (
        [model("a", ABSENT), model("b", need=6, idle_s=9), model("c", need=6, idle_s=8),
         model("d", node="n2", need=11, idle_s=6)],
        [ticket("a")], [room(0), room(0, node="n2")], [Sleep("d", PRESSURE)],
    ),
    "where the load that it will cost is short": (
        [model("a", ABSENT), model("b", need=40 << 30, idle_s=9), model("c", node="n2", need=1 << 30, idle_s=8)],
        [ticket("a")], [room(0, 1 << 40), room(0, 1 << 40, node="n2")], [Sleep("c", PRESSURE)],
    ),
    "no more than needed: a small one stays when the next is enough alone": (
        [model("a", ABSENT), model("b", need=3, idle_s=9), model("c", need=17, idle_s=5)], [ticket("a")], [room(0)],
        [Sleep("c", PRESSURE)],
    ),
    "nor does it end when there is no other": (
        [model("a", ASLEEP), model("b", n_open=1, need=11)], [ticket("a")], [room(8)], [],
    ),
    "what leaves already is enough": (
        [model("a", ABSENT), model("b", LEAVING), model("c")], [ticket("a")], [room(2, 30)], [],
    ),
    "what ends leaves its process's memory, too": (
        [model("a", ABSENT), model("b", LEAVING, process=9, ends=True), model("c", process=9)],
        [ticket("a")], [room(0, 30)], [],
    ),
    "what sleeps does not": (
        [model("a", ABSENT), model("b", LEAVING, process=9), model("c", process=1)],
        [ticket("a")], [room(0, 30)], [Sleep("c", PRESSURE)],
    ),
    "one that ends is enough for one that wakes": (
        [model("a", ABSENT), model("b", idle_s=9, process=9), model("c", idle_s=5, process=9)],
        [ticket("a")], [room(0, 30)], [Remove("b")],
    ),
    "what runs never goes": ([model("a", ABSENT), model("b", n_open=1)], [ticket("a", 10)], [room(2)], []),
    "whom somebody waits for does not go, either": (
        [model("a", ABSENT), model("b")], [ticket("a", 10), ticket("b", 5)], [room(2)], [Grant("b1")],
    ),
    "sleepers end when their processes are in the way": (
        [model("a", ABSENT, need=20), model("b", ASLEEP)], [ticket("a")], [room(19)], [Remove("b")],
    ),
    "idle ones end when their sleep is not enough": (
        [model("a", ABSENT, need=20), model("b", need=20)], [ticket("a")], [room(0)], [Remove("b")],
    ),
    "its own process is not in its way": (
        [model("a", ASLEEP), model("b", n_open=1), model("c", ASLEEP)], [ticket("a")], [room(8)], [Remove("c")],
    ),
    "a turn ends: no more grants": (
        [model("a", ABSENT), model("b", n_open=1, awake_s=70)], [ticket("a", 61), ticket("b", 5)], [room(2)], [],
    ),
    "a turn that has ended: it sleeps though somebody waits for it": (
        [model("a", ABSENT), model("b", awake_s=70)], [ticket("a", 61), ticket("b", 5)], [room(2)],
        [Sleep("b", PRESSURE)],
    ),
    "a turn does not end before its time": (
        [model("a", ABSENT), model("b", n_open=1, awake_s=50)], [ticket("a", 61), ticket("b", 5)], [room(2)],
        [Grant("b1")],
    ),
    "the process of one that wakes is in nobody's way": (
        [model("a", ASLEEP), model("c", ABSENT)], [ticket("a", 9), ticket("c", 5)], [room(18)], [Wake("a", "n1")],
    ),
    "nothing new wakes where one waits for its turn": (
        [model("a", ABSENT, need=20), model("b", n_open=1, awake_s=50), model("c", ABSENT)],
        [ticket("a", 61), ticket("c", 5)], [room(10)], [],
    ),
    "before that, small ones may": (
        [model("a", ABSENT, need=20), model("b", n_open=1, awake_s=50), model("c", ABSENT)],
        [ticket("a", 59), ticket("c", 5)], [room(10)], [Wake("c", "n1")],
    ),
    "one node is kept, not all": (
        [model("a", ABSENT, need=20), model("b", n_open=1, awake_s=50), model("c", ABSENT),
         model("d", node="n2", n_open=1, awake_s=9)],
        [ticket("a", 61), ticket("c", 5)], [room(10), room(10, node="n2")], [Wake("c", "n2")],
    ),
    "memory is kept while a process moves": (
        [model("a", LEAVING), model("c", ABSENT)], [ticket("a", 9), ticket("c", 5)], [room(0), room(15, node="n2")], [],
    ),
    "grants are in the order of age over all models": (
        [model("a"), model("b", node="n2")], [ticket("a", 3, 1), ticket("b", 2), ticket("a", 1, 2)], [room(0)],
        [Grant("a1"), Grant("b1"), Grant("a2")],
    ),
    "memory that gets free is for the oldest": (
        [model("a", ABSENT, need=20), model("b", LEAVING), model("c", ABSENT, need=5)],
        [ticket("a", 9), ticket("c", 5)], [room(11)], [],
    ),
    "a small one does not take what is left before the large one has its memory": (
        [model("a", ABSENT, need=20), model("b", LEAVING, need=19), model("c", ABSENT, need=5)],
        [ticket("a", 9), ticket("c", 5)], [room(8, 40)], [],
    ),
    "it fits nowhere": (
        [model("a", ABSENT, need=21)], [ticket("a"), ticket("a", 0, 2)], [room(20)], [Refuse("a1", 21, 20), Refuse("a2", 21, 20)],
    ),
    "idle for long enough": ([model("a", idle_s=9, keep_s=9)], [], [room(0)], [Sleep("a", SleepReason.KEEP_ALIVE)]),
    "not idle for long enough": ([model("a", idle_s=8, keep_s=9)], [], [room(0)], []),
    "kept while it runs": ([model("a", idle_s=9, keep_s=0, n_open=1)], [], [room(0)], []),
    "kept for who waits": ([model("a", idle_s=9, keep_s=0)], [ticket("a")], [room(0)], [Grant("a1")]),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(CASES))
def test_decisions(case):
    models, tickets, rooms, expected = CASES[case]
    assert list(plan(models, tickets, rooms)) == expected


def test_processes_are_bounded_and_the_longest_unused_sleeper_ends():
    models = [model("a", ABSENT), model("b", ASLEEP, idle_s=5), model("c", ASLEEP, idle_s=9), model("d", idle_s=20)]
    assert plan(models, [ticket("a")], [room(50, 90)], max_models=3) == (Remove("c"),)


def test_an_idle_model_ends_for_its_process_when_no_one_sleeps():
    models = [model("a", ABSENT), model("b", idle_s=5), model("c", n_open=1)]
    assert plan(models, [ticket("a")], [room(50, 90)], max_models=2) == (Remove("b"),)


def test_two_that_want_a_process_get_two():
    models = [model("a", ABSENT), model("b", ABSENT), model("c", ASLEEP, idle_s=5), model("d", ASLEEP, idle_s=9)]
    actions = plan(models, [ticket("a", 2), ticket("b", 1)], [room(50, 90)], max_models=2)
    assert actions == (Remove("d"), Remove("c"))


sizes = st.integers(1, 12)


@st.composite
def traffic(draw):
    n_models = draw(st.integers(1, 6))
    kinds = [
        Kind(process + draw(sizes), process, draw(st.floats(0, 5)), draw(st.floats(0, 9)), draw(st.floats(0, 3)))
        for process in (draw(st.integers(0, 2)) for _ in range(n_models))
    ]
    nodes = draw(st.lists(st.integers(4, 30), min_size=1, max_size=3))
    arrival = st.builds(Arrival, st.floats(0, 200), st.integers(0, n_models - 1), st.floats(0.1, 40))
    return kinds, nodes, draw(st.lists(arrival, max_size=40)), draw(st.integers(1, n_models)), draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(traffic())
def test_everybody_is_served_and_nothing_is_broken(case):
    kinds, nodes, arrivals, max_models, sleeps = case
    policy = HubPolicy(HubPolicyOptions(max_models=max_models, max_turn_s=20))
    world = World(kinds, nodes, policy, max_models=max_models, keep_s=10.0 if sleeps else None, checked=True)
    outcome = world.run(arrivals)
    fitting = [kind.need_bytes <= max(nodes) for kind in kinds]
    assert outcome.n_refused == sum(not fitting[arrival.model] for arrival in arrivals)
    assert len(outcome.waits_s) == sum(fitting[arrival.model] for arrival in arrivals)


def test_fifty_requests_for_five_models_that_fit_two_at_a_time():
    rng = random.Random(1)
    kinds = [Kind(10, 1, 3.0, 1.0, 0.5)] * 5
    policy = HubPolicy(HubPolicyOptions(max_models=5, max_turn_s=TURN_S))
    world = World(kinds, [23], policy, max_models=5, checked=True)
    outcome = world.run([Arrival(rng.uniform(0, 3), n % 5, 4.0) for n in range(50)])
    assert len(outcome.waits_s) == 50
    assert outcome.n_wakes == 5  # each once: it runs its queue before it goes


def test_small_models_of_short_turns_do_not_starve_a_large_one():
    kinds = [Kind(20, 0, 1.0, 1.0, 0.5), *[Kind(10, 0, 1.0, 1.0, 0.5)] * 4]
    small = [Arrival(number * 15.0, 1 + number % 4, 20.0) for number in range(400)]
    policy = HubPolicy(HubPolicyOptions(max_models=9, max_turn_s=TURN_S))
    outcome = World(kinds, [20], policy, max_models=9, checked=True).run([Arrival(40.0, 0, 5.0), *small])
    assert len(outcome.waits_s) == 401
    assert outcome.worst_s < 2 * TURN_S + 30  # it waits a turn, others end theirs, and 20 s of requests drain


def test_a_model_that_is_always_busy_lets_others_in():
    kinds = [Kind(10, 1, 3.0, 1.0, 0.5)] * 2
    policy = HubPolicy(HubPolicyOptions(max_models=2, max_turn_s=TURN_S))
    busy = [Arrival(at / 2, 0, 5.0) for at in range(1000)]
    outcome = World(kinds, [12], policy, max_models=2, checked=True).run([*busy, Arrival(100.0, 1, 5.0)])
    assert len(outcome.waits_s) == 1001
    assert outcome.worst_s < 2 * TURN_S + 20
