"""The manager of the hub's models: who is in memory, who waits, who goes.

A request asks for its model with a ticket (`acquire`) and is granted it when memory is reserved; it
then goes straight to the model's deployment, and the ingress tells when it has ended (`release`).
What is decided is `policy`'s, what is done with processes is `processes`'.

Invariants: requests never pass through the manager. One event loop owns everything here, and a round
never waits for a model that loads, saves or hangs. All of it may be lost: the applications are
Serve's, a new manager finds them, and the ingresses tell it what they have open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from deployments.config import HubSpec
from deployments.http.model_library import ModelInUse, ModelStanding
from deployments.hub.messages import Granted, Waiting, Wanted
from deployments.hub.policy import (
    Action,
    Grant,
    HubPolicy,
    HubPolicyOptions,
    Refuse,
    Remove,
    Residence,
    Sleep,
    SleepReason,
    Wake,
)
from deployments.hub.processes import Launcher, Processes
from deployments.hub.residents import (
    Leases,
    Loadable,
    Running,
    absent_model,
    absent_standing,
    policy_model,
    standing,
)
from deployments.hub.rooms import NodeReading, Resident, rooms_of
from deployments.hub.waiting import ANSWER_S, WaitingRequests
from deployments.model.ray_errors import ModelUnavailable
from erllama.errors import DoesNotFit, ErllamaError

log = logging.getLogger(__name__)

HEARD_S = 20.0  # an ingress that is silent for so long is gone
_ROUND_S = 1.0
_FAILED_S = 10  # for how long a load that failed is not tried again
_READ_S = 5.0  # how often the nodes are looked at while nobody waits for memory
_LOST = 3  # readings without a node after which it is gone
_GIB = 1 << 30


class Nodes(Protocol):
    async def read(self) -> list[NodeReading]:
        """The memory of every node, now."""


LoadableOf = Callable[[str, int], Coroutine[Any, Any, Loadable]]
"""Reads a model's manifest and header, and fits it into so many bytes. Raises `ErllamaError`."""


class HubManager:
    """`high` is the share of a node's memory that may be used, `memory_bytes` what the hub's models may
    take of each node, None for all that is free. `acquire` answers within `answer_s`. One event loop.
    """

    def __init__(
        self,
        spec: HubSpec,
        launcher: Launcher,
        nodes: Nodes,
        loadable_of: LoadableOf,
        *,
        high: float,
        memory_bytes: int | None = None,
        answer_s: float = ANSWER_S,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._keep_alive_s = spec.keep_alive_s
        self._ram_alone = not any(own.get("num_gpus") for own in (spec.defaults, *spec.models.values()))
        self._changed = asyncio.Event()  # there is something to decide
        self._processes = Processes(launcher, clock, self._changed.set, self._load_failed)
        self._nodes = nodes
        self._loadable_of = loadable_of
        self._high = high
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._policy = HubPolicy(HubPolicyOptions(max_models=spec.max_models, max_turn_s=spec.max_turn_s))
        self._known: dict[str, Loadable] = {}
        self._waiting = WaitingRequests(answer_s)
        self._leases = Leases(int(HEARD_S * 1e9))
        self._keep_s: dict[str, float | None] = {}
        self._failed: dict[str, tuple[ErllamaError, int]] = {}
        self._readings: list[NodeReading] = []
        self._heard_all_ns = clock() + int(HEARD_S * 1e9)  # by then every ingress has told what it has open
        self._read_ns = 0
        self._learning = asyncio.Lock()
        self._recovered = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the rounds on the running loop."""
        self._main = asyncio.get_running_loop().create_task(self._run(), name="erllama-hub")

    def close(self) -> None:
        """Wait for nothing more. Idempotent."""
        self._processes.close()
        if self._main is not None:
            self._main.cancel()

    async def check_health(self) -> None:
        """Raises `RuntimeError` when the rounds have ended; Serve then starts another manager."""
        if self._main is not None and self._main.done():
            raise RuntimeError("the hub's manager has ended its rounds")

    async def _run(self) -> None:
        while not self._recovered.is_set():
            await self._try(self._recover)
        while True:
            await self._try(self._round)
            try:
                async with asyncio.timeout(_ROUND_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _try(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await step()
        except Exception:  # Serve's controller restarts, a node goes: the next time may go well
            log.exception("event=hub_round_failed step=%s", step.__name__)
            await asyncio.sleep(_ROUND_S)

    async def _recover(self) -> None:
        await self._processes.recover()
        self._known |= {running.model_id: running.loadable for running in self._processes}
        self._readings = await self._nodes.read()
        self._recovered.set()

    # --- what an ingress asks ---------------------------------------------------------------------

    async def acquire(self, wanted: Wanted) -> Granted | Waiting:
        """Wait for a model, at most some seconds: `Waiting` means to ask again with the same ticket.
        Raises what makes it impossible.
        """
        await self._recovered.wait()
        if not self._knows(wanted):
            async with self._learning:  # of many that ask for a model at once one reads its header
                await self._learn(wanted)
        self._check_failed(wanted.model_id)
        self._changed.set()
        try:
            granted = await self._waiting.answer(wanted, self._clock())
        except asyncio.CancelledError:  # the client has left
            await self.release(wanted.ingress_id, wanted.ticket_id)
            raise
        return granted or Waiting(self._why(wanted.model_id))

    async def release(self, ingress_id: str, ticket_id: str) -> None:
        """The request has ended, or does not wait any more. Idempotent."""
        self._waiting.drop(ticket_id)
        running = self._processes.get(self._leases.drop(ingress_id, ticket_id) or "")
        if running is not None:
            running.last_used_ns = self._clock()
            running.n_running = 0  # it may be that of this request; if others run, it refuses to sleep
        self._changed.set()

    async def renew(self, ingress_id: str, tickets: Mapping[str, str]) -> None:
        """All requests that an ingress has open, by ticket, each with its model's id."""
        self._leases.renew(ingress_id, dict(tickets), self._clock())

    async def keep(self, model_id: str, seconds: float | None) -> None:
        """See `ModelLibrary.keep`. It holds until the model sleeps."""
        self._keep_s[model_id] = seconds
        self._changed.set()

    async def unload(self, model_id: str) -> bool:
        """Put a model to sleep; False while requests run or wait."""
        running = self._processes.get(model_id)
        if running is None or running.residence is not Residence.AWAKE:
            return True
        if self._in_use(running.model_id):
            return False
        self._keep_s.pop(model_id, None)
        return await self._processes.sleep(running, "asked")

    async def forget(self, model_id: str, *, force: bool) -> None:
        """End a model's process: it is going to be deleted. Raises `ModelInUse`."""
        if self._in_use(model_id) and not force:
            raise ModelInUse(f"{model_id} is in use: requests for it run or wait", param="model")
        running = self._processes.get(model_id)
        if running is not None:
            await self._processes.end(running)
        for state in (self._known, self._keep_s, self._failed):
            state.pop(model_id, None)

    async def check_room(self, n_bytes: int) -> None:
        """Raises `DoesNotFit` for files that are larger than what any node could give; not where GPUs may
        take a part.
        """
        await self._recovered.wait()
        most = self._most_bytes()
        if self._ram_alone and self._readings and n_bytes > most:
            room = f"no node has more than {most / _GIB:.2f} GiB for models of the hub"
            raise DoesNotFit(f"its files have {n_bytes / _GIB:.2f} GiB, and {room}", param="model")

    async def standings(self) -> dict[str, ModelStanding]:
        """Of each model that has a process, is waited for, or could not be loaded."""
        n_open, n_waiting = Counter(self._leases.models()), self._waiting.by_model()
        told = {one: absent_standing("", n_waiting[one]) for one in n_waiting}
        told |= {one: absent_standing(error.message, n_waiting[one]) for one, (error, _) in self._failed.items()}
        for running in self._processes:
            one = running.model_id
            told[one] = standing(running, n_open[one], n_waiting[one], self._kept_s(one), self._clock())
        return told

    async def swaps(self) -> dict[str, int]:
        """How often models were woken, put to sleep and removed, by what was done and why."""
        return dict(self._processes.swaps)

    def _check_failed(self, model_id: str) -> None:
        """Raises what a load that has just failed left."""
        error, until_ns = self._failed.get(model_id, (None, 0))
        if error is not None and self._clock() < until_ns:
            raise error
        self._failed.pop(model_id, None)

    def _knows(self, wanted: Wanted) -> bool:
        known = self._known.get(wanted.model_id)
        return known is not None and known.digest == wanted.digest

    async def _learn(self, wanted: Wanted) -> None:
        """Have `_known` what the model's name means now."""
        if self._knows(wanted):  # somebody else was first
            return
        model_id = wanted.model_id
        self._failed.pop(model_id, None)
        loadable = await self._loadable_of(model_id, self._most_bytes())
        self._known[model_id] = loadable
        running = self._processes.get(model_id)
        if running is not None and running.loadable.digest != loadable.digest:
            running.stale = True

    # --- a round ----------------------------------------------------------------------------------

    async def _round(self) -> None:
        self._changed.clear()
        now_ns = self._clock()
        self._leases.expire(now_ns)
        self._waiting.expire(now_ns)
        await self._processes.look()
        wanted = any(not self._processes.is_awake(model_id) for model_id in self._waiting.by_model())
        if wanted or now_ns - self._read_ns >= int(_READ_S * 1e9):
            self._readings, self._read_ns = await self._nodes.read(), now_ns
            self._end_lost()
        if self._readings:  # else no node answered in time, which is no reason to refuse anybody
            for action in self._plan():
                self._carry_out(action)

    def _end_lost(self) -> None:
        """A model whose node is gone would wait for it for ever: it may wake elsewhere."""
        nodes = {reading.node_id for reading in self._readings}
        for running in self._processes:
            known = not running.node_id or running.node_id in nodes
            running.n_missed = 0 if known else running.n_missed + 1
            if running.n_missed >= _LOST and running.residence is not Residence.LEAVING:
                log.warning("event=hub_node_lost model=%s node=%s", running.model_id, running.node_id)
                self._processes.begin_end(running)

    def _plan(self) -> tuple[Action, ...]:
        n_open, n_waiting = Counter(self._leases.models()), self._waiting.by_model()
        models, residents = [], []
        for running in self._processes:
            one = running.model_id
            if running.stale and not (n_open[one] or running.n_running or running.residence is Residence.LEAVING):
                self._processes.begin_end(running)
            models.append(policy_model(running, n_open[one], self._kept_s(one)))
            residents.append(Resident(models[-1], running.settled_ns))
        models += [absent_model(self._known[one]) for one in n_waiting if self._processes.get(one) is None]
        stale = {running.model_id for running in self._processes if running.stale}
        tickets = [ticket for ticket in self._waiting.tickets() if ticket.model_id not in stale]
        rooms = rooms_of(self._readings, residents, high=self._high, memory_bytes=self._memory_bytes)
        return self._policy.plan(models, tickets, rooms, self._clock())

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant(ticket_id):
                self._grant(ticket_id)
            case Refuse(ticket_id, need_bytes, most_bytes):
                error = ModelUnavailable(
                    f"{self._waiting.model_of(ticket_id)} needs {need_bytes / _GIB:.2f} GiB of memory, and no node has "
                    f"more than {most_bytes / _GIB:.2f} GiB for models of the hub"
                )
                self._waiting.fail([ticket_id], error)
            case Wake(model_id, node_id):
                self._processes.wake(self._known[model_id], node_id)
            case Sleep(model_id, reason):
                # a new manager does not know at once what the ingresses have open
                if reason is not SleepReason.KEEP_ALIVE or self._clock() >= self._heard_all_ns or self._leases.heard:
                    self._keep_s.pop(model_id, None)
                    self._processes.begin_sleep(self._process(model_id), str(reason))
            case Remove(model_id):
                self._processes.begin_end(self._process(model_id))

    def _grant(self, ticket_id: str) -> None:
        running = self._process(self._waiting.model_of(ticket_id))
        if not running.app_name:  # Serve has not taken it yet
            return
        granted = Granted(running.app_name, self._processes.deployment(running))
        wanted = self._waiting.grant(ticket_id, granted)
        if wanted is not None:
            running.last_used_ns = self._clock()
            self._leases.add(wanted.ingress_id, ticket_id, running.model_id, running.last_used_ns)

    def _load_failed(self, model_id: str, reason: str) -> None:
        error = ModelUnavailable(f"{model_id} cannot be loaded: {reason}", retry_after_s=_FAILED_S)
        self._failed[model_id] = error, self._clock() + int(_FAILED_S * 1e9)
        self._waiting.fail(self._waiting.of(model_id), error)

    # --- bookkeeping ------------------------------------------------------------------------------

    def _process(self, model_id: str) -> Running:
        running = self._processes.get(model_id)
        assert running is not None, model_id  # the policy names what it was shown
        return running

    def _in_use(self, model_id: str) -> bool:
        return model_id in set(self._leases.models()) or bool(self._waiting.of(model_id))

    def _kept_s(self, model_id: str) -> float | None:
        return self._keep_s.get(model_id, self._keep_alive_s)

    def _most_bytes(self) -> int:
        """What some node can give to one model, as things stand without the hub's."""
        rooms = rooms_of(self._readings, (), high=self._high, memory_bytes=self._memory_bytes)
        return max((room.total_bytes for room in rooms), default=0)

    def _why(self, model_id: str) -> str:
        if self._processes.is_awake(model_id):
            return "it loads"
        busy = ", ".join(sorted({*self._leases.models()} - {model_id})) or "others"
        return f"there is no memory for it: {busy} run"
