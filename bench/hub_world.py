"""A cluster with models of a hub, simulated: requests come, models load, run, sleep and go. Shared by
`simulate_models.py` and the tests of the policy.

Time is in seconds, memory in bytes. A policy decides as the manager's does; the world carries its
actions out, each of which takes its time, and refuses to break what must hold: memory is never
reserved twice, and what runs never goes.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deployments.hub.policy import (
    Action,
    Grant,
    HubModel,
    Refuse,
    Remove,
    Residence,
    Room,
    Sleep,
    Ticket,
    Wake,
)

NS = 10**9
_PATIENCE_S = 86400.0  # after the last arrival


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that takes `run_s` once its model is in memory."""

    at_s: float
    model: int
    run_s: float


@dataclass(frozen=True, slots=True)
class Kind:
    """What loading and unloading one model takes: `start_s` for a process, `load_s` for its weights."""

    need_bytes: int
    process_bytes: int
    start_s: float
    load_s: float
    save_s: float


class Policy(Protocol):
    def plan(
        self, models: Iterable[HubModel], tickets: Iterable[Ticket], rooms: Sequence[Room], now_ns: int
    ) -> tuple[Action, ...]: ...


@dataclass(slots=True)
class _State:
    number: int
    kind: Kind
    residence: Residence = Residence.ABSENT
    node: int = -1
    n_open: int = 0
    ready_s: float = 0.0
    awake_since_s: float = 0.0
    used_s: float = 0.0
    leaving_bytes: int = 0


@dataclass(slots=True)
class Outcome:
    waits_s: list[float] = field(default_factory=list)  # from a request's arrival to its model being ready
    n_hits: int = 0  # requests that met their model in memory, loaded
    n_wakes: int = 0
    n_refused: int = 0
    worst_s: float = 0.0
    n_plans: int = 0
    plan_s: float = 0.0  # processor time of all plans


class World:
    def __init__(
        self,
        kinds: Sequence[Kind],
        node_bytes: Sequence[int],
        policy: Policy,
        *,
        max_models: int,
        keep_s: float | None = None,
        checked: bool = False,
    ) -> None:
        self._states = [_State(number, kind) for number, kind in enumerate(kinds)]
        self._free = list(node_bytes)
        self._total = list(node_bytes)
        self._policy = policy
        self._max_models = max_models
        self._keep_ns = None if keep_s is None else int(keep_s * NS)
        self._checked = checked
        self._alive: dict[int, HubModel] = {}  # as the policy sees those that have a process
        self._rooms = [Room(str(node), free, free) for node, free in enumerate(node_bytes)]
        self._waiting: dict[int, tuple[Ticket, Arrival]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now_s = 0.0
        self.outcome = Outcome()

    def run(self, arrivals: Iterable[Arrival]) -> Outcome:
        """Until the last request has ended."""
        arrivals = list(arrivals)
        end_s = max((arrival.at_s for arrival in arrivals), default=0.0) + _PATIENCE_S
        for arrival in arrivals:
            self._at(arrival.at_s, lambda arrival=arrival: self._arrive(arrival))  # type: ignore[misc]
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            assert self.now_s < end_s, f"{len(self._waiting)} requests wait for ever"
            happen()
            while self._events and self._events[0][0] == self.now_s:
                heapq.heappop(self._events)[2]()
            if self._waiting or self._keep_ns is not None:
                self._decide()
        return self.outcome

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), happen))

    def _arrive(self, arrival: Arrival) -> None:
        state = self._states[arrival.model]
        if state.residence is Residence.AWAKE and not self._waiting:  # as any policy would
            self._start(arrival)
            return
        number = next(self._order)
        self._waiting[number] = Ticket(str(number), str(arrival.model), int(arrival.at_s * NS)), arrival
        self._at(self.now_s + 1.0, self._nothing)  # the manager's rounds: what waits for long is looked at again

    def _nothing(self) -> None:
        if self._waiting and not self._events:
            self._at(self.now_s + 1.0, self._nothing)

    def _start(self, arrival: Arrival) -> None:
        state = self._states[arrival.model]
        wait_s = max(self.now_s, state.ready_s) - arrival.at_s
        self.outcome.waits_s.append(wait_s)
        self.outcome.n_hits += wait_s <= 0.0
        self.outcome.worst_s = max(self.outcome.worst_s, wait_s)
        state.n_open += 1
        state.used_s = self.now_s
        self._changed(state)
        self._at(max(self.now_s, state.ready_s) + arrival.run_s, lambda: self._finish(state))

    def _finish(self, state: _State) -> None:
        state.n_open -= 1
        state.used_s = self.now_s
        self._changed(state)
        if self._keep_ns is not None:
            self._at(self.now_s + self._keep_ns / NS, self._nothing)

    # --- deciding ---------------------------------------------------------------------------------

    def _decide(self) -> None:
        for _ in range(10_000):
            models = self._models()
            tickets = [ticket for ticket, _ in self._waiting.values()]
            began = time.process_time()
            actions = self._policy.plan(models, tickets, list(self._rooms), int(self.now_s * NS))
            self.outcome.plan_s += time.process_time() - began
            self.outcome.n_plans += 1
            for action in actions:
                self._carry_out(action)
            if not any(isinstance(action, Wake | Remove) for action in actions):
                break
        else:
            raise AssertionError("the policy goes on deciding for ever")
        if self._waiting and not self._events:
            self._at(self.now_s + 1.0, self._nothing)

    def _models(self) -> list[HubModel]:
        """Those that have a process, and those that somebody waits for."""
        wanted = {arrival.model for _, arrival in self._waiting.values()}
        return [*self._alive.values(), *(self._shown(self._states[n]) for n in sorted(wanted - self._alive.keys()))]

    def _changed(self, state: _State) -> None:
        """What the policy sees of a model is made anew only when it changed: plans are many."""
        if state.residence is Residence.ABSENT:
            self._alive.pop(state.number, None)
        else:
            self._alive[state.number] = self._shown(state)

    def _reserve(self, node: int, n_bytes: int) -> None:
        """Negative: give back."""
        self._free[node] -= n_bytes
        self._rooms[node] = Room(str(node), self._free[node], self._total[node])

    def _shown(self, state: _State) -> HubModel:
        return HubModel(
            model_id=str(state.number),
            residence=state.residence,
            node_id="" if state.node < 0 else str(state.node),
            need_bytes=state.kind.need_bytes,
            process_bytes=state.kind.process_bytes,
            n_open=state.n_open,
            last_used_ns=int(state.used_s * NS),
            awake_since_ns=int(state.awake_since_s * NS),
            keep_ns=self._keep_ns,
            leaving_bytes=state.leaving_bytes,
        )

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant(ticket_id):
                _, arrival = self._waiting.pop(int(ticket_id))
                assert self._states[arrival.model].residence is Residence.AWAKE
                self._start(arrival)
            case Refuse(ticket_id):
                del self._waiting[int(ticket_id)]
                self.outcome.n_refused += 1
            case Wake(model_id, node_id):
                self._wake(self._states[int(model_id)], int(node_id))
            case Sleep(model_id):
                self._leave(self._states[int(model_id)], Residence.ASLEEP)
            case Remove(model_id):
                self._leave(self._states[int(model_id)], Residence.ABSENT)

    def _wake(self, state: _State, node: int) -> None:
        kind, absent = state.kind, state.residence is Residence.ABSENT
        assert absent or (state.residence is Residence.ASLEEP and state.node == node)
        self._reserve(node, kind.need_bytes if absent else kind.need_bytes - kind.process_bytes)
        if self._checked:
            assert self._free[node] >= 0, "memory is reserved twice"
            assert sum(one.residence is not Residence.ABSENT for one in self._states) + absent <= self._max_models
        state.residence, state.node = Residence.AWAKE, node
        state.awake_since_s = state.used_s = self.now_s
        state.ready_s = self.now_s + kind.load_s + (kind.start_s if absent else 0.0)
        self.outcome.n_wakes += 1
        self._changed(state)

    def _leave(self, state: _State, then: Residence) -> None:
        assert state.n_open == 0, "what runs must not go"
        assert state.residence in (Residence.AWAKE, Residence.ASLEEP)
        kind = state.kind
        was_awake = state.residence is Residence.AWAKE
        gone = then is Residence.ABSENT
        gain = kind.need_bytes - kind.process_bytes if was_awake else 0
        state.residence, state.leaving_bytes = Residence.LEAVING, gain + (kind.process_bytes if gone else 0)
        self._changed(state)

        def left() -> None:
            self._reserve(state.node, -state.leaving_bytes)
            state.residence, state.leaving_bytes = then, 0
            state.node = -1 if gone else state.node
            self._changed(state)

        self._at(self.now_s + (kind.save_s if was_awake else 0.1), left)
