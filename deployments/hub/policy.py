"""Which of the hub's models are in memory, which wait, and which go: the manager's decisions, without
its I/O.

    a model in memory        -> its requests are granted, oldest first
    memory or idle models    -> the oldest request's model wakes first: where its process sleeps, else
                                where most is free, else where idle models go that were idle for long
    all run                  -> it waits; after `max_turn_s` a node is kept for it, and the models that
                                have been in memory there for longer than that get no more requests
                                until they have ended theirs and gone
    idle for `keep_ns`       -> it sleeps

Invariants: nothing here waits, logs or does I/O; time comes in as monotonic ns. What runs never goes.
Memory is given by the age of requests: what is freed for a large model is not taken by small ones
that came later. No two actions of one plan contradict each other, and a plan that is made again with
what its actions did goes on where it left off: all state is in the arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

_LOAD_BYTES = 6 << 30  # what any load costs beside its bytes: as much as to read these (3 s at 2 GiB/s)
_LEAST_IDLE_NS = 10**9  # idle times below it are alike: requests of one burst end within it


class Residence(StrEnum):
    ABSENT = "absent"  # nothing of it runs
    ASLEEP = "asleep"  # its process runs without weights and context
    AWAKE = "awake"  # memory is reserved: it loads, or is loaded, and requests may be granted
    LEAVING = "leaving"  # it is told to sleep or to end; its memory counts until that is done


class SleepReason(StrEnum):
    PRESSURE = "pressure"
    KEEP_ALIVE = "keep_alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """One model. `node_id` is where its process is, "" without one. It takes `need_bytes` awake, its
    process included, and `process_bytes` asleep. `n_open` granted requests have not ended. It sleeps
    when it was idle for `keep_ns`; None: when others need its memory. Once what is leaving has left,
    `leaving_bytes` more are free.
    """

    model_id: str
    residence: Residence
    node_id: str = ""
    need_bytes: int
    process_bytes: int
    n_open: int = 0
    last_used_ns: int
    awake_since_ns: int = 0
    keep_ns: int | None = None
    leaving_bytes: int = 0

    @property
    def gain_bytes(self) -> int:
        """What its sleep gives back, and what its waking takes."""
        return self.need_bytes - self.process_bytes


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that waits for its model."""

    ticket_id: str
    model_id: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Room:
    """What may still be reserved on a node, and what could be if no model of the hub were there."""

    node_id: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Grant:
    ticket_id: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Reserve the model's memory on a node, and start its process there if it has none."""

    model_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Sleep:
    model_id: str
    reason: SleepReason


@dataclass(frozen=True, slots=True)
class Remove:
    """End the process of a model that sleeps or is idle."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The model fits on no node: it needs `need_bytes`, and `most_bytes` is what a node could give."""

    ticket_id: str
    need_bytes: int
    most_bytes: int


Action = Grant | Wake | Sleep | Remove | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPolicyOptions:
    """`max_models`: processes, awake or asleep. `max_turn_s`: for how long a model may keep others
    waiting.
    """

    max_models: int
    max_turn_s: float


class HubPolicy:
    def __init__(self, options: HubPolicyOptions) -> None:
        self._max_models = options.max_models
        self._turn_ns = int(options.max_turn_s * 1e9)

    def plan(
        self, models: Iterable[HubModel], tickets: Iterable[Ticket], rooms: Sequence[Room], now_ns: int
    ) -> tuple[Action, ...]:
        """What to do now. Every ticket's model is among `models`."""
        plan = _Plan(models, tickets, rooms, now_ns, self._max_models, self._turn_ns)
        return tuple(plan.actions())


def _age(ticket: Ticket) -> tuple[int, str]:
    return ticket.since_ns, ticket.ticket_id


@dataclass(frozen=True, slots=True)
class _Victim:
    """A model that may go. `ended`: its process, too."""

    model: HubModel
    ended: bool
    gain_bytes: int


class _Plan:
    """One plan in the making: what is free, and who has been told to go, as it changes."""

    def __init__(
        self,
        models: Iterable[HubModel],
        tickets: Iterable[Ticket],
        rooms: Sequence[Room],
        now_ns: int,
        max_models: int,
        turn_ns: int,
    ) -> None:
        self._models = {model.model_id: model for model in models}
        self._wanted: dict[str, list[Ticket]] = {}  # by model, the model of the oldest ticket first
        for ticket in sorted(tickets, key=_age):
            self._wanted.setdefault(ticket.model_id, []).append(ticket)
        self._rooms = rooms
        self._free = {room.node_id: room.free_bytes for room in rooms}
        self._now_ns = now_ns
        self._turn_ns = turn_ns
        self._on_node: dict[str, list[HubModel]] = {}  # the longest unused first
        for model in sorted(self._models.values(), key=lambda one: one.last_used_ns):
            if model.residence is not Residence.ABSENT:
                self._on_node.setdefault(model.node_id, []).append(model)
        self._at_most = {  # bytes that could get free on a node, now and by the end of all that runs
            node_id: (
                sum(one.need_bytes for one in here if not (one.n_open and one.residence is Residence.AWAKE)),
                sum(one.need_bytes for one in here),
            )
            for node_id, here in self._on_node.items()
        }
        self._n_left = max_models - sum(map(len, self._on_node.values()))  # processes that may still start
        self._going: set[str] = {one.model_id for one in self._models.values() if one.residence is Residence.LEAVING}
        self._leaving = {one.model_id: one.leaving_bytes for one in self._models.values() if one.leaving_bytes}
        self._over: set[str] = set()  # models whose turn is over

    def actions(self) -> Iterator[Action]:
        yield from self._idle_too_long()
        for model_id, tickets in self._wanted.items():
            model = self._models[model_id]
            if model.residence is Residence.LEAVING:
                self._hold(model)
            elif model.residence is not Residence.AWAKE and model_id not in self._going:
                yield from self._wake(model, tickets)
        granted: list[Ticket] = []
        for model_id, tickets in self._wanted.items():
            if self._models[model_id].residence is Residence.AWAKE and not {model_id} & (self._over | self._going):
                granted += tickets
        yield from (Grant(ticket.ticket_id) for ticket in sorted(granted, key=_age))

    def _idle_too_long(self) -> Iterator[Action]:
        for model in self._models.values():
            if model.keep_ns is not None and self._is_idle(model) and self._idle_ns(model) >= model.keep_ns:
                yield self._sleep(model, SleepReason.KEEP_ALIVE)

    def _wake(self, model: HubModel, tickets: Sequence[Ticket]) -> Iterator[Action]:
        most = max((room.total_bytes for room in self._rooms), default=0)
        if model.need_bytes > most:
            yield from (Refuse(ticket.ticket_id, model.need_bytes, most) for ticket in tickets)
            return
        if model.residence is Residence.ABSENT and self._n_left <= 0:
            yield from self._free_a_process(tickets[0])
            return
        places = [room for room in self._rooms if room.total_bytes >= model.need_bytes]
        home = next((room for room in places if room.node_id == model.node_id), None)
        if home is not None and self._free[home.node_id] >= model.gain_bytes:
            yield self._woken(model, home.node_id, model.gain_bytes)
            return
        roomy = max(places, key=lambda room: self._free[room.node_id])
        if self._free[roomy.node_id] >= model.need_bytes:
            if model.residence is Residence.ABSENT:
                yield self._woken(model, roomy.node_id, model.need_bytes)
            else:  # its process is on a full node: it wakes where there is room, once that has ended
                yield self._removed(model)
                self._free[roomy.node_id] -= model.need_bytes
            return
        yield from self._make_room(model, tickets[0], places)

    def _hold(self, model: HubModel) -> None:
        """Keep memory for a model that has to leave before it can wake: younger requests must not
        take it meanwhile.
        """
        roomy = max(self._free, key=self._free.__getitem__, default=None)
        if roomy is not None and self._free[roomy] >= model.need_bytes:
            self._free[roomy] -= model.need_bytes

    def _make_room(self, model: HubModel, oldest: Ticket, places: Sequence[Room]) -> Iterator[Action]:
        """Send idle models away where that costs least, and keep what gets free for this one."""
        found = ((self._victims(model, node_id), node_id) for node_id in self._hopeful(model, places, running=False))
        costs = ((sum(map(self._cost, victims)), node_id, victims) for victims, node_id in found if victims is not None)
        best = min(costs, key=lambda it: it[:2], default=None)
        if best is None:
            yield from self._end_turns(model, oldest, places)
            return
        _, node_id, victims = best
        for victim in victims:
            yield self._removed(victim.model) if victim.ended else self._sleep(victim.model, SleepReason.PRESSURE)
        self._free[node_id] -= self._taken(model, node_id)

    def _hopeful(self, model: HubModel, places: Sequence[Room], *, running: bool) -> Iterator[str]:
        """Nodes with processes on which there could be enough, at best. A cheap look that spares the
        exact one: with hundreds of models and nodes most have nothing to give.
        """
        for room in places:
            at_most = self._at_most.get(room.node_id)
            free_bytes = self._free[room.node_id]
            if at_most is not None and free_bytes + at_most[running] >= self._taken(model, room.node_id):
                yield room.node_id

    def _victims(self, model: HubModel, node_id: str) -> list[_Victim] | None:
        """Idle models whose sleep frees what the model lacks, longest idle first; when that is not
        enough, sleepers whose process ends, and then idle models whose process ends, too. None when
        all that is not enough; empty when what leaves already is.
        """
        lacking = self._lacking(model, node_id)
        chosen: dict[tuple[str, bool], _Victim] = {}
        for victim in self._may_go(model, node_id) if lacking > 0 else ():
            chosen[victim.model.model_id, victim.ended] = victim
            lacking -= victim.gain_bytes
            if lacking <= 0:
                break
        if lacking > 0:
            return None
        for (model_id, ended), victim in reversed(list(chosen.items())):
            # larger ones that came after it may have made it needless; its process cannot end alone
            if victim.gain_bytes <= -lacking and (ended or (model_id, True) not in chosen):
                del chosen[model_id, ended]
                lacking += victim.gain_bytes
        return [one for (model_id, ended), one in chosen.items() if ended or (model_id, True) not in chosen]

    def _may_go(self, model: HubModel, node_id: str) -> Iterator[_Victim]:
        here = [one for one in self._on_node.get(node_id, ()) if one is not model]
        idle = [one for one in here if self._is_idle(one)]
        asleep = [one for one in here if one.residence is Residence.ASLEEP and one.model_id not in self._going]
        asleep.sort(key=lambda one: one.model_id in self._wanted)  # for younger requests than this model's
        yield from (_Victim(one, False, one.gain_bytes) for one in idle)
        yield from (_Victim(one, True, one.process_bytes) for one in asleep)
        yield from (_Victim(one, True, one.process_bytes) for one in idle)  # beyond what their sleep gives

    def _cost(self, victim: _Victim) -> float:
        """Bytes to read again per ns: who was idle for t is wanted again after about as long. By bytes
        alone small models would go that many ask for, by loads alone large ones whose loads are long.
        """
        n_bytes = victim.model.gain_bytes if victim.model.residence is Residence.AWAKE else 0
        return (_LOAD_BYTES + n_bytes) / max(self._idle_ns(victim.model), _LEAST_IDLE_NS)

    def _end_turns(self, model: HubModel, oldest: Ticket, places: Sequence[Room]) -> Iterator[Action]:
        """All run. When that has gone on for long enough, the node where this model can be soonest is
        kept for it: nothing else wakes there, and once all that have to go there are past their turn,
        they get no more requests.
        """
        if self._now_ns - oldest.since_ns < self._turn_ns:
            return
        found = ((self._due(model, node_id), node_id) for node_id in self._hopeful(model, places, running=True))
        newest_of = ((due[-1].awake_since_ns if due else 0, node_id, due) for due, node_id in found if due is not None)
        best = min(newest_of, key=lambda it: it[:2], default=None)
        if best is None:
            return
        newest, node_id, due = best
        self._free[node_id] -= self._taken(model, node_id)
        if due and self._now_ns - newest < self._turn_ns:
            return
        self._over.update(one.model_id for one in due)
        for one in due:
            if self._is_idle(one):  # but for its own requests, which have to wait now
                yield self._sleep(one, SleepReason.PRESSURE)

    def _due(self, model: HubModel, node_id: str) -> list[HubModel] | None:
        """The models that have been in memory longest, as many as have to go for this one; None when
        not even all of them are enough.
        """
        here = [one for one in self._on_node.get(node_id, ()) if one is not model]
        lacking = self._lacking(model, node_id)
        lacking -= sum(one.process_bytes for one in here if one.residence is Residence.ASLEEP)
        due: list[HubModel] = []
        for one in sorted(here, key=lambda one: one.awake_since_ns):
            if lacking <= 0:
                break
            if one.residence is Residence.AWAKE and one.model_id not in self._going:
                due.append(one)
                lacking -= one.need_bytes
        return due if lacking <= 0 else None

    def _free_a_process(self, oldest: Ticket) -> Iterator[Action]:
        """There are as many processes as may be: the longest unused one that nobody wants ends."""
        self._n_left -= 1  # what ends is meant for this model, and the next needs another
        if -self._n_left <= sum(1 for one in self._going if self._models[one].residence is Residence.LEAVING):
            return
        asleep = (one for one in self._models.values() if one.residence is Residence.ASLEEP)
        unwanted = [one for one in asleep if one.model_id not in self._wanted.keys() | self._going]
        unwanted += [one for one in self._models.values() if self._is_idle(one)]
        if unwanted:
            yield self._removed(min(unwanted, key=lambda one: (one.residence is Residence.AWAKE, one.last_used_ns)))
        elif self._now_ns - oldest.since_ns >= self._turn_ns:
            awake = [one for one in self._models.values() if one.residence is Residence.AWAKE]
            longest = min(awake, key=lambda one: one.awake_since_ns, default=None)
            if longest is not None and self._now_ns - longest.awake_since_ns >= self._turn_ns:
                self._over.add(longest.model_id)
                if self._is_idle(longest):
                    yield self._removed(longest)

    # --- what changes -----------------------------------------------------------------------------

    def _woken(self, model: HubModel, node_id: str, n_bytes: int) -> Wake:
        self._free[node_id] -= n_bytes
        self._n_left -= model.residence is Residence.ABSENT
        self._going.add(model.model_id)  # it is not idle, and not to be woken twice
        return Wake(model.model_id, node_id)

    def _sleep(self, model: HubModel, reason: SleepReason) -> Sleep:
        self._going.add(model.model_id)
        self._leaving[model.model_id] = model.gain_bytes
        return Sleep(model.model_id, reason)

    def _removed(self, model: HubModel) -> Remove:
        self._going.add(model.model_id)
        awake = model.residence is Residence.AWAKE
        self._leaving[model.model_id] = model.need_bytes if awake else model.process_bytes
        return Remove(model.model_id)

    # --- what is --------------------------------------------------------------------------------

    def _is_idle(self, model: HubModel) -> bool:
        """Whether it may go: nothing of it runs, and nobody waits for it whose turn it still is."""
        if model.residence is not Residence.AWAKE or model.n_open or model.model_id in self._going:
            return False
        return model.model_id not in self._wanted or model.model_id in self._over

    def _idle_ns(self, model: HubModel) -> int:
        return self._now_ns - model.last_used_ns

    def _taken(self, model: HubModel, node_id: str) -> int:
        """What the model's waking takes of a node."""
        at_home = model.residence is Residence.ASLEEP and model.node_id == node_id
        return model.gain_bytes if at_home else model.need_bytes

    def _lacking(self, model: HubModel, node_id: str) -> int:
        """Bytes that must get free beyond what is leaving already."""
        leaving = sum(self._leaving.get(one.model_id, 0) for one in self._on_node.get(node_id, ()))
        return self._taken(model, node_id) - self._free[node_id] - leaving
