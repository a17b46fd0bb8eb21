"""What Ray and the memory scheduler tell, as the API's own words."""

from __future__ import annotations

from collections import Counter

import pytest

from deployments.config import ReleaseKind
from deployments.dialects.erllama_admin.cluster import ClusterNode, Pressure
from deployments.ingress.cluster import cluster_node, scheduler_state
from deployments.memory.messages import Reading, ReleaseOrder, ReleaseRecord, ReleaseResult, SchedulerStatus


def test_a_node_of_ray_has_resources_unless_it_is_dead():
    alive = {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True}
    resources = {"CPU": 2.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    assert cluster_node({**alive, "Resources": resources}) == ClusterNode("a", "10.0.0.1", True, 2.0, 1.0, 10**9)
    dead = {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {}}
    assert cluster_node(dead) == ClusterNode("b", "10.0.0.2", False, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("used", "exhausted", "pressure"),
    [
        (849, (), Pressure.NONE),
        (850, (), Pressure.HIGH),
        (900, ("a gpu:x",), Pressure.HIGH),  # another memory of the node
        (900, ("a ram",), Pressure.EXHAUSTED),
    ],
)
def test_pressure_is_that_of_one_memory(used, exhausted, pressure):
    status = SchedulerStatus(1.0, readings=(Reading("a", "ram", used, 1000),), exhausted=exhausted)
    [memory] = scheduler_state(status, high=0.85).memories
    assert (memory.node_id, memory.used_bytes, memory.total_bytes, memory.pressure) == ("a", used, 1000, pressure)


@pytest.mark.parametrize(("kept", "outcome"), [("", "done"), ("in use", "in use")])
def test_releases_are_totals_and_the_newest_ones(kept, outcome):
    order = ReleaseOrder("r", "demo", "a", "ram", ReleaseKind.CONTEXT, 100)
    status = SchedulerStatus(
        started=1.0,
        releases=Counter(context=2, ram_tier=1),
        freed_bytes=Counter(context=70, ram_tier=5),
        errors=Counter(release=1),
    )
    status.last.append(ReleaseRecord(5.0, order, ReleaseResult(70, kept), 0.5))
    state = scheduler_state(status, high=0.85)
    assert (state.evictions, state.evicted_bytes, state.errors) == (3, 75, {"release": 1})
    [last] = state.last
    assert (last.time, last.model, last.replica, last.reason, last.kind) == (5.0, "demo", "r", "pressure", "context")
    assert (last.bytes, last.seconds, last.outcome) == (70, 0.5, outcome)
