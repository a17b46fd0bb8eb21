"""What holds for a plan of any state, reachable or not, and that carrying plans out comes to an end.

The executor here is instant: what sleeps or ends has done so before the next plan. The one that takes
its time is `hub_world`, in test_hub_policy.py.
"""

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

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
    Ticket,
    Wake,
)

NS = 10**9
NOW = 1000 * NS
TURN_S = 20.0
ABSENT, ASLEEP, AWAKE, LEAVING = Residence


@dataclass
class State:
    models: dict[str, HubModel]
    tickets: dict[str, Ticket]
    totals: dict[str, int]
    max_models: int
    now_ns: int = NOW

    def free(self) -> dict[str, int]:
        free = dict(self.totals)
        for model in self.models.values():
            if model.residence is not ABSENT:
                free[model.node_id] -= model.process_bytes if model.residence is ASLEEP else model.need_bytes
        return free

    def n_processes(self) -> int:
        return sum(model.residence is not ABSENT for model in self.models.values())

    def plan(self):
        rooms = [Room(node, free, self.totals[node]) for node, free in self.free().items()]
        policy = HubPolicy(HubPolicyOptions(max_models=self.max_models, max_turn_s=TURN_S))
        return policy.plan(list(self.models.values()), list(self.tickets.values()), rooms, self.now_ns)

    def change(self, model_id, **changes):
        self.models[model_id] = replace(self.models[model_id], **changes)

    def carry_out(self, actions):
        for action in actions:
            match action:
                case Grant(ticket_id):
                    model = self.models[self.tickets.pop(ticket_id).model_id]
                    self.change(model.model_id, n_open=model.n_open + 1)
                case Refuse(ticket_id):
                    del self.tickets[ticket_id]
                case Wake(model_id, node_id):
                    times = {"awake_since_ns": self.now_ns, "last_used_ns": self.now_ns}
                    self.change(model_id, residence=AWAKE, node_id=node_id, **times)
                case Sleep(model_id):
                    self.change(model_id, residence=ASLEEP)
                case Remove(model_id):
                    self.change(model_id, residence=ABSENT, node_id="")

    def pass_time(self, seconds, ended):
        """Of each model, so many requests end as `ended` says; what leaves has done so."""
        self.now_ns += int(seconds * NS)
        for model_id, model in self.models.items():
            n_ended = min(model.n_open, ended[model_id])
            if n_ended:
                self.change(model_id, n_open=model.n_open - n_ended, last_used_ns=self.now_ns)
            if model.residence is LEAVING:
                self.change(model_id, residence=ASLEEP, leaving_bytes=0)


@st.composite
def states(draw):
    totals = {f"n{number}": draw(st.integers(4, 30)) for number in range(draw(st.integers(1, 3)))}
    state = State({}, {}, totals, 0)
    for number in range(draw(st.integers(1, 6))):
        process = draw(st.integers(0, 2))
        need = process + draw(st.integers(1, 14))
        residence, node = draw(st.sampled_from(Residence)), draw(st.sampled_from(sorted(totals)))
        if state.free()[node] < (process if residence is ASLEEP else need):
            residence = ABSENT
        ages = draw(st.integers(0, 90)), draw(st.integers(0, 90))
        state.models[f"m{number}"] = HubModel(
            model_id=f"m{number}",
            residence=residence,
            node_id="" if residence is ABSENT else node,
            need_bytes=need,
            process_bytes=process,
            n_open=draw(st.integers(0, 2)) if residence is AWAKE else 0,
            last_used_ns=NOW - ages[0] * NS,
            awake_since_ns=NOW - ages[1] * NS,
            keep_ns=draw(st.sampled_from([None, None, 0, 30 * NS])),
            leaving_bytes=need - process if residence is LEAVING else 0,
        )
    for number in range(draw(st.integers(0, 10))):
        model_id = draw(st.sampled_from(sorted(state.models)))
        state.tickets[f"t{number}"] = Ticket(f"t{number}", model_id, NOW - draw(st.integers(0, 90)) * NS)
    state.max_models = max(1, state.n_processes(), draw(st.integers(1, 6)))
    return state


def check(state: State, actions) -> None:
    """What no plan may do."""
    changed = [action.model_id for action in actions if isinstance(action, Wake | Sleep | Remove)]
    answered = [action.ticket_id for action in actions if isinstance(action, Grant | Refuse)]
    assert max(Counter(changed).values(), default=0) <= 1
    assert max(Counter(answered).values(), default=0) <= 1
    taken = Counter()
    for action in actions:
        match action:
            case Grant(ticket_id):
                model = state.models[state.tickets[ticket_id].model_id]
                assert model.residence is AWAKE
                assert model.model_id not in changed
            case Refuse(ticket_id, need_bytes, most_bytes):
                assert need_bytes > most_bytes == max(state.totals.values())
            case Wake(model_id, node_id):
                model = state.models[model_id]
                assert model.residence in (ABSENT, ASLEEP)
                assert model.node_id in ("", node_id)
                taken[node_id] += model.need_bytes - (model.process_bytes if model.residence is ASLEEP else 0)
            case Sleep(model_id):
                assert (state.models[model_id].residence, state.models[model_id].n_open) == (AWAKE, 0)
            case Remove(model_id):
                assert state.models[model_id].residence in (AWAKE, ASLEEP)
                assert state.models[model_id].n_open == 0
    free = state.free()
    assert all(n_bytes <= free[node] for node, n_bytes in taken.items())
    n_started = sum(isinstance(one, Wake) and state.models[one.model_id].residence is ABSENT for one in actions)
    assert n_started == 0 or state.n_processes() + n_started <= state.max_models
    granted = [state.tickets[one.ticket_id].since_ns for one in actions if isinstance(one, Grant)]
    assert granted == sorted(granted)


def settle(state: State) -> None:
    """Carry plans out until there is nothing to do."""
    for _ in range(8 * len(state.models) + 4):
        actions = state.plan()
        check(state, actions)
        if not actions:
            return
        state.carry_out(actions)
    raise AssertionError(f"the policy goes on deciding: {state.plan()}")


@settings(max_examples=400, deadline=None)
@given(states())
def test_no_plan_contradicts_itself_and_plans_come_to_an_end(state):
    settle(state)


@settings(max_examples=300, deadline=None)
@given(states())
def test_from_any_state_everybody_is_served_when_what_runs_ends(state):
    for _ in range(4 * (len(state.tickets) + 1)):
        settle(state)
        if not state.tickets:
            return
        state.pass_time(TURN_S + 1, {model_id: model.n_open for model_id, model in state.models.items()})
    raise AssertionError(f"{list(state.tickets)} wait for ever")


@settings(max_examples=300, deadline=None)
@given(states())
def test_who_waits_is_served_though_every_model_gets_new_requests_all_the_time(state):
    """Each model in memory has its next requests before its last ones end: it is never idle unless it
    is refused them.
    """
    first = set(state.tickets)
    for number in range(12 * (len(state.models) + 1)):
        if not first & state.tickets.keys():
            return
        for model_id in state.models:
            state.tickets[f"new{number}-{model_id}"] = Ticket(f"new{number}-{model_id}", model_id, state.now_ns)
        before = {model_id: model.n_open for model_id, model in state.models.items()}
        settle(state)
        state.pass_time(TURN_S / 3, before)
    raise AssertionError(f"{first & state.tickets.keys()} wait for ever")
