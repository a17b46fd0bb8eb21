"""What the memory scheduler decides: tables for single rounds, an hour of simulated time for
everything together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.config import ReleaseKind, SchedulerSpec
from deployments.memory.messages import RAM, Reading, ReleaseOffer, ReleaseOrder, ReleaseReason, ReplicaReport
from deployments.memory.policy import ReleasePolicy, fullest

GB = 1 << 30
SPEC = SchedulerSpec(min_bytes=GB // 16)
S = 1_000_000_000


def report(
    name: str, *offers: ReleaseOffer, used: int = 90, total: int = 100, node: str = "a", idle_s: float = 10.0, **more
) -> ReplicaReport:
    """A replica of the model of the same name on a node of `total` GB."""
    reading = Reading(node, RAM, used * GB, total * GB)
    return ReplicaReport(name, name, node, idle_s=idle_s, **{"readings": (reading,), "offers": offers, **more})


def context(gb: float, resource: str = RAM) -> ReleaseOffer:
    return ReleaseOffer(ReleaseKind.CONTEXT, resource, int(gb * GB))


def weights(gb: float, resource: str = RAM) -> ReleaseOffer:
    return ReleaseOffer(ReleaseKind.WEIGHTS, resource, int(gb * GB))


def tier(gb: float, label: str = "ram_file") -> ReleaseOffer:
    return ReleaseOffer(ReleaseKind.RAM_TIER, RAM, int(gb * GB), label)


def orders_of(*reports: ReplicaReport, spec: SchedulerSpec = SPEC) -> list[tuple[str, ReleaseKind]]:
    return [(order.replica_id, order.kind) for order in ReleasePolicy(spec).plan(reports, 0, 0).orders]


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report("m", context(50), used=85)], []),  # at high, not above
        ([report("m", context(50), used=86)], [("m", ReleaseKind.CONTEXT)]),
        ([report("m", context(50), idle_s=0.0, n_running=1)], []),
        ([report("m", context(50), idle_s=0.0, n_queued=1)], []),
        # its request does not feel that
        ([report("m", tier(30), idle_s=0.0, n_running=1)], [("m", ReleaseKind.RAM_TIER)]),
        ([report("m", tier(30), context(50), weights(50))], [("m", ReleaseKind.RAM_TIER)]),
        ([report("m", tier(10), context(50))], [("m", ReleaseKind.RAM_TIER), ("m", ReleaseKind.CONTEXT)]),
        ([report("m", context(0.01))], []),  # below min_bytes
        ([report("new", context(20), idle_s=1), report("old", context(20), idle_s=99)], [("old", ReleaseKind.CONTEXT)]),
        (
            [report("new", context(10), idle_s=1), report("old", context(10), idle_s=99)],
            [("old", ReleaseKind.CONTEXT), ("new", ReleaseKind.CONTEXT)],
        ),
        # cheaper first
        ([report("x", weights(50), idle_s=99), report("y", context(15), idle_s=1)], [("y", ReleaseKind.CONTEXT)]),
        # one order at a time; the next reading tells
        ([report("m", context(10), weights(10))], [("m", ReleaseKind.CONTEXT)]),
        ([report("a1", tier(30)), report("a2", tier(31))], [("a2", ReleaseKind.RAM_TIER)]),  # one tier, seen by two
        ([report("m", context(50), used=50), report("n", context(50), node="b")], [("n", ReleaseKind.CONTEXT)]),
        ([report("m", context(50, "gpu:x"))], []),  # RAM is full, the GPU is not known to be
    ],
)
def test_a_round_orders_what_is_cheapest_of_whom_it_disturbs_least(reports, expected):
    assert orders_of(*reports) == expected


def test_kinds_that_are_not_listed_are_not_taken_and_the_list_gives_the_order():
    one = report("m", tier(30), context(30), weights(30))
    assert orders_of(one, spec=replaced(release_kinds=(ReleaseKind.CONTEXT,))) == [("m", ReleaseKind.CONTEXT)]
    assert orders_of(one, spec=replaced(release_kinds=(ReleaseKind.WEIGHTS, ReleaseKind.RAM_TIER))) == [
        ("m", ReleaseKind.WEIGHTS)
    ]
    assert orders_of(one, spec=replaced(release_kinds=())) == []


def replaced(**changes) -> SchedulerSpec:
    return SchedulerSpec.model_validate({**SPEC.model_dump(), **changes})


def test_of_a_tier_only_what_is_needed_is_asked_for():
    (order,) = ReleasePolicy(SPEC).plan([report("m", tier(80))], 0, 0).orders
    assert order.n_bytes == 90 * GB - int(0.75 * 100 * GB)
    assert order.tier == "ram_file"


def test_a_full_gpu_is_relieved_by_the_models_on_it():
    gpus = (
        Reading("a", "gpu:x", 95 * GB, 100 * GB),
        Reading("a", "gpu:y", 10 * GB, 100 * GB),
        Reading("a", RAM, 10 * GB, 100 * GB),
    )
    on_x, on_y = (report(name, context(30, f"gpu:{name}"), readings=gpus) for name in ("x", "y"))
    in_ram = report("z", context(30), readings=gpus)
    assert orders_of(on_x, on_y, in_ram) == [("x", ReleaseKind.CONTEXT)]


def test_the_fullest_look_at_a_memory_counts_and_each_memory_is_listed_once():
    readings = fullest([report("m", used=50), report("n", used=60), report("o", node="b", used=10)])
    assert [(reading.node_id, reading.used_bytes // GB) for reading in readings] == [("a", 60), ("b", 10)]


# --- rounds after each other ----------------------------------------------------------------------


def test_draining_starts_above_high_and_goes_on_until_low():
    policy = ReleasePolicy(SPEC)
    assert not policy.plan([report("m", context(5), used=84)], 0, 0).orders
    assert [order.replica_id for order in policy.plan([report("m", context(5), used=86)], 1 * S, 1 * S).orders] == ["m"]
    policy.ended(one_order("m", 5), 5 * GB, 2 * S)
    assert [order.replica_id for order in policy.plan([report("n", context(5), used=81)], 3 * S, 3 * S).orders] == [
        "n"
    ], "not at low yet"
    policy.ended(one_order("n", 5), 5 * GB, 4 * S)
    assert not policy.plan([report("o", context(5), used=75)], 5 * S, 5 * S).orders
    assert not policy.plan([report("o", context(5), used=84)], 6 * S, 6 * S).orders, "below high nothing begins"


def one_order(name: str, gb: int, kind: ReleaseKind = ReleaseKind.CONTEXT) -> ReleaseOrder:
    return ReleaseOrder(name, name, "a", RAM, kind, gb * GB)


def test_an_order_under_way_counts_as_freed_and_its_replica_gets_no_other():
    policy = ReleasePolicy(SPEC)
    first, second = report("m", context(20), weights(5)), report("n", context(20), idle_s=1)
    assert len(policy.plan([first, second], 0, 0).orders) == 1
    for now in range(1, 50):
        assert not policy.plan([first, second], now * S, now * S).orders


def test_what_was_freed_counts_until_a_reading_that_was_asked_for_later():
    policy = ReleasePolicy(SPEC)
    reports = [report("m", context(20)), report("n", context(20), idle_s=1)]
    (order,) = policy.plan(reports, 0, 0).orders
    policy.ended(order, 20 * GB, 10 * S)
    assert not policy.plan(reports, 11 * S, 9 * S).orders, "asked before the order ended"
    assert [order.replica_id for order in policy.plan(reports, 12 * S, 11 * S).orders] == ["n"], "it did not help"


def test_a_replica_that_gave_its_context_up_is_left_alone_for_the_cooldown():
    policy = ReleasePolicy(SPEC)
    one = [report("m", context(20))]
    (order,) = policy.plan(one, 0, 0).orders
    policy.ended(order, 20 * GB, 1 * S)
    assert not policy.plan(one, 59 * S, 59 * S).orders, "asked again at once, it has its context back"
    assert policy.plan(one, 60 * S, 60 * S).orders


def test_a_tier_may_be_asked_again_at_once_unless_it_had_next_to_nothing_to_give():
    policy = ReleasePolicy(SPEC)
    one = [report("m", tier(80))]
    (order,) = policy.plan(one, 0, 0).orders
    policy.ended(order, 15 * GB, 1 * S)
    (order,) = policy.plan(one, 5 * S, 5 * S).orders
    policy.ended(order, 100, 6 * S)
    assert not policy.plan(one, 10 * S, 10 * S).orders
    assert policy.plan(one, 70 * S, 70 * S).orders


def test_with_nothing_left_it_says_so_once_until_the_memory_has_recovered():
    policy = ReleasePolicy(SPEC)
    told = [
        policy.plan([report("m", used=used)], now * S, now * S).newly_exhausted
        for now, used in enumerate([90, 90, 80, 90, 74, 80, 90, 90])
    ]
    assert [len(memories) for memories in told] == [1, 0, 0, 0, 0, 0, 1, 0]
    assert policy.plan([report("m")], 9 * S, 9 * S).exhausted == (("a", RAM),)


# --- keep_alive_s ---------------------------------------------------------------------------------


def test_a_model_that_outlived_its_keep_alive_is_unloaded_without_any_pressure():
    policy = ReleasePolicy(SPEC, {"m": 30.0})
    assert not policy.plan([report("m", context(5), used=10, idle_s=29.9)], 0, 0).orders
    plan = policy.plan(
        [report("m", context(5), weights(2), used=10, idle_s=30.0), report("n", context(5), used=10, idle_s=99)], S, S
    )
    assert plan.orders == (
        ReleaseOrder("m", "m", "a", RAM, ReleaseKind.WEIGHTS, 7 * GB, 30.0, reason=ReleaseReason.KEEP_ALIVE),
    )
    assert not policy.plan([report("m", context(5), used=10, idle_s=31)], 2 * S, 2 * S).orders, "under way"
    policy.ended(plan.orders[0], 7 * GB, 3 * S)
    assert not policy.plan([report("m", used=10, idle_s=99, loaded=False)], 99 * S, 99 * S).orders, (
        "there is nothing to unload"
    )
    assert policy.plan([report("m", context(5), used=10, idle_s=30)], 140 * S, 140 * S).orders, (
        "loaded again, idle again"
    )


def test_a_model_with_work_never_outlives_its_keep_alive():
    policy = ReleasePolicy(SPEC, {"m": 30.0})
    assert not policy.plan([report("m", context(5), used=10, idle_s=99, n_queued=1)], 0, 0).orders


# --- an hour --------------------------------------------------------------------------------------


@dataclass
class Model:
    name: str
    node: str
    context_gb: int
    weights_gb: int
    uses: list[tuple[int, int]]  # busy from, to: seconds
    has_context: bool = False
    has_weights: bool = True
    used_at: int = 0

    @property
    def held(self) -> int:
        return self.context_gb * self.has_context + self.weights_gb * self.has_weights


@dataclass
class World:
    """Nodes of 100 GB with other processes that come and go; the ground truth that replicas report.
    Orders take `latency` rounds.
    """

    models: list[Model]
    ballast: dict[str, list[int]]  # GB on each node, by minute
    latency: int
    policy: ReleasePolicy = field(default_factory=lambda: ReleasePolicy(SPEC))
    under_way: list[tuple[int, ReleaseOrder]] = field(default_factory=list)
    releases: Counter = field(default_factory=Counter)
    newly_exhausted: int = 0

    def used(self, node: str, second: int) -> int:
        ballast = self.ballast[node]
        return ballast[min(second // 60, len(ballast) - 1)] + sum(
            model.held for model in self.models if model.node == node
        )

    def busy(self, model: Model, second: int) -> bool:
        return any(begin <= second < end for begin, end in model.uses)

    def reports(self, second: int) -> list[ReplicaReport]:
        return [self.report(model, second) for model in self.models]

    def report(self, model: Model, second: int) -> ReplicaReport:
        offers = [context(model.context_gb)] * model.has_context + [weights(model.weights_gb)] * model.has_weights
        used = min(100, self.used(model.node, second))
        busy = self.busy(model, second)
        idle_s = 0.0 if busy else float(second - model.used_at)
        return report(model.name, *offers, used=used, node=model.node, idle_s=idle_s, n_running=int(busy))

    def step(self, second: int) -> None:
        """One second: requests come and end, orders are carried out; every five seconds a round."""
        for model in self.models:
            if self.busy(model, second):
                model.has_context = model.has_weights = True
                model.used_at = second
        for due, order in [entry for entry in self.under_way if entry[0] <= second]:
            self.under_way.remove((due, order))
            self.policy.ended(order, self.carry_out(order, second), second * S)
        if second % 5 == 0:
            plan = self.policy.plan(self.reports(second), second * S, second * S)
            self.newly_exhausted += len(plan.newly_exhausted)
            for order in plan.orders:
                (model,) = (model for model in self.models if model.name == order.replica_id)
                assert not self.busy(model, second), "a model was to give something up while it ran"
                assert self.used(model.node, second) > 75, "a node was relieved that had room"
                self.under_way.append((second + self.latency, order))

    def carry_out(self, order: ReleaseOrder, second: int) -> int:
        (model,) = (model for model in self.models if model.name == order.replica_id)
        if self.busy(model, second) or second - model.used_at < order.idle_s:
            return 0
        before = model.held
        model.has_context = False
        model.has_weights = model.has_weights and order.kind is ReleaseKind.CONTEXT
        self.releases[order.replica_id, order.kind] += 1
        return (before - model.held) * GB


@st.composite
def worlds(draw: st.DrawFn) -> World:
    nodes = ["a", "b"]
    spans = st.tuples(st.integers(0, 3500), st.integers(1, 120)).map(lambda at: (at[0], at[0] + at[1]))
    models = [
        Model(
            f"m{i}",
            draw(st.sampled_from(nodes)),
            draw(st.integers(1, 25)),
            draw(st.integers(1, 25)),
            draw(st.lists(spans, max_size=20)),
        )
        for i in range(draw(st.integers(1, 6)))
    ]
    ballast = {node: draw(st.lists(st.integers(0, 95), min_size=1, max_size=60)) for node in nodes}
    return World(models, ballast, draw(st.integers(0, 17)))


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_in_an_hour_nobody_is_disturbed_releases_are_few_and_full_nodes_recover(world):
    for second in range(3600):
        world.step(second)
    assert all(n <= 3600 / SPEC.cooldown_s + 1 for n in world.releases.values()), "once per cooldown at most"
    uses = {model.name: len(model.uses) for model in world.models}
    assert all(n <= uses[name] + 1 for (name, _), n in world.releases.items()), (
        "nothing is freed more often than it was taken"
    )
    for model in world.models:  # from now on everything is quiet
        model.uses = []
    for second in range(3600, 3600 + 600):
        world.step(second)
    for node in world.ballast:
        here = [model for model in world.models if model.node == node]
        was_full = world.used(node, 4200) > 85
        assert not was_full or not any(model.held for model in here), "something idle was left on a full node"
    told, releases = world.newly_exhausted, world.releases.copy()
    for second in range(4200, 4800):
        world.step(second)
    assert (world.newly_exhausted, world.releases) == (told, releases), "in a world that stands still nothing goes on"


def test_two_models_that_do_not_fit_together_take_turns_at_the_pace_of_the_cooldown():
    """Each is asked again as soon as the other has ended: without a cooldown every request would
    cost an eviction.
    """
    one = Model("one", "a", 40, 1, [(at, at + 5) for at in range(0, 3600, 20)])
    other = Model("other", "a", 40, 1, [(at, at + 5) for at in range(10, 3600, 20)])
    world = World([one, other], {"a": [10]}, latency=1)
    for second in range(3600):
        world.step(second)
    assert 2 <= sum(world.releases.values()) <= 2 * 2 * 60
    assert world.releases["one", ReleaseKind.CONTEXT] <= 61


def test_a_reading_that_flickers_around_high_costs_one_eviction():
    model = Model("m", "a", 5, 1, [(0, 5)], has_context=True)
    world = World([model, replace(model, name="n")], {"a": [76, 74] * 30}, latency=1)
    for second in range(3600):
        world.step(second)
    assert sum(world.releases.values()) <= 4
