"""A day of models on demand, simulated: how often a request meets its model in memory, how often models
are swapped, and how long requests wait.

    python bench/simulate_models.py [--nodes 1000] [--models 500] [--hours 24] [--requests 100000]
    [--node-gib 2] [--large-nodes 20] [--seed 1] [--json FILE]

Models have 0.5 to 70 GB (most are small), are asked for by Zipf's law, and by day more than by night.
A load is the start of a process and the reading of the file; a model that sleeps only reads. A node
has `--node-gib` for models of the hub; `--large-nodes` of them have room for the largest model, and
their number decides how scarce memory is. Three ways to decide meet the same trace:

    ours     deployments/hub/policy.py
    lru      the least recently used idle models go, first come first served, nobody's turn ends
    oracle   as lru, but the models go that will not be wanted for longest. It knows the best victims,
             not the best order or node: its waits are no bound

WHO.hit           requests that met their model in memory / all
WHO.swaps_per_h   times that a model was brought into memory, by hour
WHO.wait_mean, _p50, _p99, _worst   seconds from a request to its model being ready
WHO.plan_mean     milliseconds of processor time for a plan
ratio.*           ours / lru and ours / oracle

`burst.` is fifty requests within 5 s for five models of which two fit, `spread.` the same within 60 s,
`large.` a model that needs the room of two small ones which others ask for without end. Fails when ours
hits less than lru by day, swaps more in a burst or a spread, or a wait in `large.` is longer than two
turns and what then runs.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import math
import random
import sys
import time
from collections.abc import Iterable, Sequence

from harness import Figures, make_parser, percentile, say
from hub_world import NS, Arrival, Kind, Outcome, Policy, World

from deployments.hub.policy import (
    Action,
    Grant,
    HubModel,
    HubPolicy,
    HubPolicyOptions,
    Remove,
    Residence,
    Room,
    Sleep,
    SleepReason,
    Ticket,
    Wake,
)

GIB = 1 << 30
SIZES_GB = ((0.5, 20), (1.5, 20), (4, 25), (8, 20), (14, 10), (40, 4), (70, 1))  # with their shares of models
DISK = 2 * GIB  # bytes per second
START_S = 3.0
TURN_S = 60.0


class Simple:
    """The least recently used idle model goes, or with `next_use` the one that is wanted latest."""

    def __init__(self, max_models: int, next_use: dict[str, list[float]] | None = None) -> None:
        self._max_models = max_models
        self._next_use = next_use

    def plan(
        self, models: Iterable[HubModel], tickets: Iterable[Ticket], rooms: Sequence[Room], now_ns: int
    ) -> tuple[Action, ...]:
        known = {model.model_id: model for model in models}
        free = {room.node_id: room.free_bytes for room in rooms}
        actions: list[Action] = []
        here: dict[str, list[HubModel]] = {}
        for model in sorted(known.values(), key=lambda one: -self._age(one, now_ns)):
            here.setdefault(model.node_id, []).append(model)
        gone: set[str] = set()
        granted: set[str] = set()
        for ticket in sorted(tickets, key=lambda ticket: ticket.since_ns):
            model = known[ticket.model_id]
            if model.residence is Residence.AWAKE and (model.model_id in granted or model.model_id not in gone):
                actions.append(Grant(ticket.ticket_id))
                granted.add(model.model_id)
                gone.add(model.model_id)  # it is not idle any more
            elif model.residence in (Residence.ABSENT, Residence.ASLEEP) and model.model_id not in gone:
                gone.add(model.model_id)
                actions += self._wake(model, here, rooms, free, gone, now_ns)
        return tuple(actions)

    def _wake(
        self,
        model: HubModel,
        here: dict[str, list[HubModel]],
        rooms: Sequence[Room],
        free: dict[str, int],
        gone: set[str],
        now_ns: int,
    ) -> list[Action]:
        at_home = model.residence is Residence.ASLEEP
        takes = model.gain_bytes if at_home else model.need_bytes
        places = [model.node_id] if at_home else sorted(free, key=lambda node: -free[node])[:1]
        if free[places[0]] >= takes:
            free[places[0]] -= takes
            return [Wake(model.model_id, places[0])]
        best: list[HubModel] | None = None
        for room in rooms:
            if room.total_bytes < model.need_bytes or (at_home and room.node_id != model.node_id):
                continue
            victims = self._victims(takes - free[room.node_id], here.get(room.node_id, ()), gone)
            if victims is not None and (best is None or self._youngest(victims, now_ns) > self._youngest(best, now_ns)):
                best = victims
        gone.update(victim.model_id for victim in best or ())
        ended = model.need_bytes > GIB * 20 or at_home  # what is large takes a node alone
        return [
            Remove(one.model_id)
            if ended or one.residence is Residence.ASLEEP
            else Sleep(one.model_id, SleepReason.PRESSURE)
            for one in best or ()
        ]

    def _victims(self, lacking: int, here: Sequence[HubModel], gone: set[str]) -> list[HubModel] | None:
        lacking -= sum(one.gain_bytes for one in here if one.residence is Residence.LEAVING)
        left = [one for one in here if one.model_id not in gone]
        idle = [(one, one.need_bytes) for one in left if one.residence is Residence.AWAKE and not one.n_open]
        asleep = [(one, one.process_bytes) for one in left if one.residence is Residence.ASLEEP]
        victims: list[HubModel] = []
        for victim, gain_bytes in [*idle, *asleep]:
            if lacking <= 0:
                break
            victims.append(victim)
            lacking -= gain_bytes
        return victims if lacking <= 0 else None

    def _youngest(self, victims: Sequence[HubModel], now_ns: int) -> float:
        return min((self._age(one, now_ns) for one in victims), default=math.inf)

    def _age(self, model: HubModel, now_ns: int) -> float:
        if self._next_use is None:
            return float(now_ns - model.last_used_ns)
        uses = self._next_use[model.model_id]
        place = bisect.bisect_right(uses, now_ns / NS)
        return uses[place] if place < len(uses) else math.inf


def kinds_of(n_models: int, seed: int) -> list[Kind]:
    rng = random.Random(seed)
    sizes = rng.choices([size for size, _ in SIZES_GB], [share for _, share in SIZES_GB], k=n_models)
    return [_kind(size * rng.uniform(0.8, 1.2)) for size in sizes]


def _kind(size_gb: float) -> Kind:
    n_bytes = int(size_gb * 1e9)
    process = 300 << 20
    return Kind(process + n_bytes, process, START_S, 0.3 + n_bytes / DISK, 0.5)


def trace(n_models: int, n_requests: int, hours: float, seed: int) -> list[Arrival]:
    """Zipf over models, a sine over the day."""
    rng = random.Random(seed)
    order = list(range(n_models))
    rng.shuffle(order)
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(n_models)))
    found: list[Arrival] = []
    while len(found) < n_requests:
        at_s = rng.uniform(0, hours * 3600)
        if rng.random() < 0.55 - 0.45 * math.cos(at_s / 86400 * 2 * math.pi):
            model = order[bisect.bisect_left(weights, rng.uniform(0, weights[-1]))]
            found.append(Arrival(at_s, model, rng.expovariate(1 / 20)))
    return sorted(found, key=lambda arrival: arrival.at_s)


def policies(arrivals: Sequence[Arrival], max_models: int) -> dict[str, Policy]:
    uses: dict[str, list[float]] = {}
    for arrival in arrivals:
        uses.setdefault(str(arrival.model), []).append(arrival.at_s)
    return {
        "ours": HubPolicy(HubPolicyOptions(max_models=max_models, max_turn_s=TURN_S)),
        "lru": Simple(max_models),
        "oracle": Simple(max_models, uses),
    }


def compare(
    figures: Figures, prefix: str, kinds: Sequence[Kind], nodes: Sequence[int], arrivals: Sequence[Arrival]
) -> dict[str, Outcome]:
    """Every way to decide on the same trace; its figures, and the ratios."""
    outcomes = {}
    for who, policy in policies(arrivals, len(kinds)).items():
        began = time.perf_counter()
        outcome = World(kinds, nodes, policy, max_models=len(kinds)).run(arrivals)
        say(f"{prefix}{who}: {len(outcome.waits_s)} requests in {time.perf_counter() - began:.1f} s")
        outcomes[who] = outcome
        hours = max(1e-9, (arrivals[-1].at_s - arrivals[0].at_s) / 3600)
        waits = outcome.waits_s
        figures.add(f"{prefix}{who}.hit", outcome.n_hits / len(waits), "share")
        if hours > 0.1:
            figures.add(f"{prefix}{who}.swaps_per_h", outcome.n_wakes / hours, "1/h")
        figures.add(f"{prefix}{who}.swaps", outcome.n_wakes, "models")
        figures.add(f"{prefix}{who}.wait_mean", sum(waits) / len(waits), "s")
        for percent in (50, 99):
            figures.add(f"{prefix}{who}.wait_p{percent}", percentile(waits, percent), "s")
        figures.add(f"{prefix}{who}.wait_worst", outcome.worst_s, "s")
        figures.add(f"{prefix}{who}.plan_mean", outcome.plan_s / max(1, outcome.n_plans) * 1e3, "ms")
    for other in ("lru", "oracle"):
        for name in ("hit", "swaps", "wait_mean", "wait_p99", "wait_worst"):
            ours, theirs = (figures.get(f"{prefix}{who}.{name}") for who in ("ours", other))
            figures.add_ratio(f"{prefix}ratio.{name}.{other}", ours, theirs)
    return outcomes


def thrash(figures: Figures, prefix: str, span_s: float) -> list[str]:
    """Fifty requests for five models that fit two at a time."""
    rng = random.Random(5)
    kinds = [_kind(0.5) for _ in range(5)]
    room = 2 * kinds[0].need_bytes + 3 * kinds[0].process_bytes
    arrivals = [Arrival(rng.uniform(0, span_s), n % 5, 4.0) for n in range(50)]
    outcomes = compare(figures, prefix, kinds, [room], sorted(arrivals, key=lambda arrival: arrival.at_s))
    if outcomes["ours"].n_wakes > outcomes["lru"].n_wakes:
        return [f"{prefix} ours swaps more often than lru where five models share the room of two"]
    return []


def starved(figures: Figures) -> list[str]:
    """A large model and four small ones of short turns, of which always one runs."""
    run_s = 20.0
    kinds = [_kind(8.0), *[_kind(4.0)] * 4]
    room = kinds[0].need_bytes + 4 * kinds[1].process_bytes
    arrivals = [Arrival(40.0, 0, 5.0), *(Arrival(n * 15.0, 1 + n % 4, run_s) for n in range(400))]
    outcomes = compare(figures, "large.", kinds, [room], sorted(arrivals, key=lambda arrival: arrival.at_s))
    longest_load_s = START_S + kinds[0].load_s + kinds[1].load_s
    if outcomes["ours"].worst_s > 2 * TURN_S + run_s + longest_load_s + 2 * kinds[1].save_s:
        return ["large. a request waited for longer than two turns and what then ran"]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    parser: argparse.ArgumentParser = make_parser(__doc__ or "")
    for name, default, what in (
        ("nodes", 1000, "nodes of the cluster"),
        ("models", 500, "models of the hub"),
        ("requests", 100_000, "requests of the whole time"),
        ("large-nodes", 20, "nodes with room for the largest model"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default {default})")
    parser.add_argument("--hours", type=float, default=24.0, help="simulated time (default 24)")
    parser.add_argument(
        "--node-gib", type=float, default=2.0, help="memory of a node for models of the hub (default 2)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the trace (default 1)")
    args = parser.parse_args(argv)
    figures = Figures()
    kinds = kinds_of(args.models, args.seed)
    largest = max(kind.need_bytes for kind in kinds)
    small = int(args.node_gib * GIB)
    nodes = [max(small, largest) if n < max(1, args.large_nodes) else small for n in range(args.nodes)]
    arrivals = trace(args.models, args.requests, args.hours, args.seed)
    outcomes = compare(figures, "day.", kinds, nodes, arrivals)
    failures = [*thrash(figures, "burst.", 5.0), *thrash(figures, "spread.", 60.0), *starved(figures)]
    if outcomes["ours"].n_hits < outcomes["lru"].n_hits:
        failures.append("day. ours hits less often than lru")
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
