"""CPUs of replicas: evenly at a first start; who runs keeps what it has, and who comes can be placed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.config import BuildArgs
from deployments.cpu_shares import CpuShare, CpuSupply, cpu_shares


def args(**models: dict[str, Any]) -> BuildArgs:
    return BuildArgs.model_validate({"models": [{"id": name, "path": "x", **own} for name, own in models.items()]})


@pytest.mark.parametrize(
    ("models", "node_cpus", "shares"),
    [
        ({"a": {}}, 4, [CpuShare(4, 4)]),
        ({"a": {"num_replicas": 2}, "b": {}}, 8, [CpuShare(2, 2), CpuShare(2, 2)]),
        ({"a": {"num_replicas": 2}, "b": {}}, 1, [CpuShare(1, 1), CpuShare(1, 1)]),
        ({"a": {"n_threads": 3}}, 4, [CpuShare(3, 3)]),
        ({"a": {"num_cpus": 0.5}}, 4, [CpuShare(0.5, 1)]),
        ({"a": {"num_cpus": 0.5, "n_threads": 3}}, 4, [CpuShare(0.5, 1)]),
        ({"a": {"autoscaling": {"min_replicas": 0, "max_replicas": 5}}}, 4, [CpuShare(4, 4)]),
    ],
)
def test_at_a_first_start_a_nodes_cpus_are_divided(models, node_cpus, shares):
    assert list(cpu_shares(args(**models), CpuSupply(node_cpus)).values()) == shares


@pytest.mark.parametrize(
    ("free", "n_nodes", "added"),
    [
        (0, 1, CpuShare(0, 2)),
        (1.5, 1, CpuShare(1, 2)),
        (9, 1, CpuShare(2, 2)),
        (3, 2, CpuShare(1, 2)),
        (1, 2, CpuShare(0, 2)),
    ],
)
def test_an_added_model_asks_for_what_is_left_and_computes_with_its_even_share(free, n_nodes, added):
    supply = CpuSupply(4, n_nodes, free, {"a": 4.0})
    assert cpu_shares(args(a={}, b={}), supply) == {"a": CpuShare(4, 4), "b": added}


def test_a_number_in_the_config_wins_over_what_runs():
    assert cpu_shares(args(a={"num_cpus": 1}), CpuSupply(4, 1, 0, {"a": 4.0})) == {"a": CpuShare(1, 1)}


AUTO = st.dictionaries(st.sampled_from("abcdef"), st.just({}), min_size=1)


@given(AUTO, AUTO, st.integers(1, 64), st.integers(1, 9), st.floats(0, 500))
def test_whatever_is_added_or_removed_nobody_who_stays_gets_another_share(first, second, node_cpus, n_nodes, free):
    before = cpu_shares(args(**first), CpuSupply(node_cpus))
    running = {name: share.num_cpus for name, share in before.items()}
    after = cpu_shares(args(**second), CpuSupply(node_cpus, n_nodes, free, running))
    assert all(after[name] == before[name] for name in first.keys() & second.keys())
    asked = sum(share.num_cpus for name, share in after.items() if name not in running)
    assert asked <= free
    assert all(share.n_threads >= 1 for share in after.values())
