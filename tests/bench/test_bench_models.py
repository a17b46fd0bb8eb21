"""bench/simulate_models.py in small, and that its peers decide as they should."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import simulate_models
from hub_world import NS, Arrival, Kind, World

from deployments.hub.policy import Grant, HubModel, Residence, Room, Ticket


def test_a_small_cluster_prints_every_figure(tmp_path, capsys):
    flags = [
        "--nodes",
        "6",
        "--large-nodes",
        "2",
        "--models",
        "12",
        "--requests",
        "400",
        "--hours",
        "2",
        "--node-gib",
        "4",
    ]
    assert simulate_models.main([*flags, "--json", str(tmp_path / "out.json")]) == 0
    lines = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    for scenario in ("day", "burst", "spread", "large"):
        for who in ("ours", "lru", "oracle"):
            names = ("hit", "swaps", "wait_mean", "wait_p50", "wait_p99", "wait_worst", "plan_mean")
            assert {f"{scenario}.{who}.{name}" for name in names} <= lines
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["failures"] == []
    values = {figure["name"]: figure["value"] for figure in document["figures"]}
    assert values["day.ours.swaps"] > 12, "memory has to be scarce, else there is nothing to compare"
    assert values["large.lru.wait_worst"] > 10 * values["large.ours.wait_worst"]


def test_a_trace_is_the_same_for_the_same_seed_and_follows_zipf():
    trace = simulate_models.trace(50, 3000, 24, 1)
    assert trace == simulate_models.trace(50, 3000, 24, 1) != simulate_models.trace(50, 3000, 24, 2)
    assert [arrival.at_s for arrival in trace] == sorted(arrival.at_s for arrival in trace)
    counts = sorted(([arrival.model for arrival in trace].count(model) for model in range(50)), reverse=True)
    assert counts[0] > 5 * counts[25]
    noon = sum(6 <= arrival.at_s / 3600 < 18 for arrival in trace)
    assert noon > 0.6 * len(trace)


@pytest.mark.parametrize("next_use", [None, {"a": [1.0]}])
def test_a_peer_grants_all_requests_of_a_model_at_once(next_use):
    model = HubModel(
        model_id="a", residence=Residence.AWAKE, node_id="0", need_bytes=1, process_bytes=0, last_used_ns=0
    )
    tickets = [Ticket(str(number), "a", number) for number in range(3)]
    plan = simulate_models.Simple(1, next_use).plan([model], tickets, [Room("0", 0, 1)], NS)
    assert plan == (Grant("0"), Grant("1"), Grant("2"))


def test_the_oracle_sends_away_what_is_wanted_last():
    kinds = [Kind(10, 0, 0.0, 1.0, 0.1)] * 3
    arrivals = [Arrival(at_s, model, 1.0) for at_s, model in ((0, 0), (10, 1), (20, 2), (30, 0), (40, 1))]
    uses = {"0": [0.0, 30.0], "1": [10.0, 40.0], "2": [20.0]}
    n_wakes = {
        who: World(kinds, [20], policy, max_models=3).run(arrivals).n_wakes
        for who, policy in (("lru", simulate_models.Simple(3)), ("oracle", simulate_models.Simple(3, uses)))
    }
    assert n_wakes == {"lru": 5, "oracle": 4}
