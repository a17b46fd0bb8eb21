"""What the manager knows of each model of the hub that has a process, or that somebody waits for.

Owned by the manager's event loop; nothing here waits or does I/O. Times are monotonic ns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.config import ModelSpec
from deployments.http.model_library import ModelPhase, ModelStanding
from deployments.hub.policy import HubModel, Residence


@dataclass(frozen=True, slots=True)
class Loadable:
    """A model as it would be loaded. `digest` is its manifest's, `build` names all that its process
    depends on. `need_bytes` is what it takes when it is in memory, `gpu_bytes` of them on GPUs,
    `process_bytes` what its process takes without weights.
    """

    model_id: str
    digest: str
    spec: ModelSpec
    need_bytes: int
    process_bytes: int
    build: str
    gpu_bytes: int = 0


@dataclass(slots=True)
class Running:
    """A model with a process. `app_name` is its application's."""

    loadable: Loadable
    app_name: str
    node_id: str
    residence: Residence
    awake_since_ns: int
    last_used_ns: int
    settled_ns: int | None = None
    n_running: int = 0  # as the replica told last
    n_missed: int = 0  # readings in a row that its node was not among
    ends: bool = False  # LEAVING: its process, too
    stale: bool = False  # it is what the name meant before: it goes as soon as nothing runs

    @property
    def model_id(self) -> str:
        return self.loadable.model_id


@dataclass(slots=True)
class Leases:
    """The requests that may be running, by ingress, and when each ingress was last heard."""

    expire_ns: int
    _open: dict[str, dict[str, str]] = field(default_factory=dict)  # ingress -> ticket -> model
    _heard_ns: dict[str, int] = field(default_factory=dict)

    def add(self, ingress_id: str, ticket_id: str, model_id: str, now_ns: int) -> None:
        self._open.setdefault(ingress_id, {})[ticket_id] = model_id
        self._heard_ns[ingress_id] = now_ns

    def renew(self, ingress_id: str, tickets: dict[str, str], now_ns: int) -> None:
        """An ingress tells all that it has: a manager that is new learns them so."""
        self._open[ingress_id] = dict(tickets)
        self._heard_ns[ingress_id] = now_ns

    def drop(self, ingress_id: str, ticket_id: str) -> str | None:
        """The model whose request has ended; None when it is not known."""
        return self._open.get(ingress_id, {}).pop(ticket_id, None)

    def expire(self, now_ns: int) -> None:
        """Forget ingresses that have not been heard: they are gone, and their requests with them."""
        for ingress_id, heard_ns in list(self._heard_ns.items()):
            if now_ns - heard_ns > self.expire_ns:
                del self._heard_ns[ingress_id]
                self._open.pop(ingress_id, None)

    @property
    def heard(self) -> bool:
        """Whether some ingress has told what it has open."""
        return bool(self._heard_ns)

    def models(self) -> Iterator[str]:
        """The model of each request."""
        for tickets in self._open.values():
            yield from tickets.values()


def policy_model(running: Running, n_open: int, keep_s: float | None) -> HubModel:
    """What the policy sees of a model with a process."""
    return HubModel(
        model_id=running.model_id,
        residence=running.residence,
        node_id=running.node_id,
        need_bytes=running.loadable.need_bytes,
        process_bytes=running.loadable.process_bytes,
        n_open=max(n_open, running.n_running),
        last_used_ns=running.last_used_ns,
        awake_since_ns=running.awake_since_ns,
        keep_ns=None if keep_s is None else int(keep_s * 1e9),
        leaving_bytes=_leaving_bytes(running),
    )


def _leaving_bytes(running: Running) -> int:
    if running.residence is not Residence.LEAVING:
        return 0
    loadable = running.loadable
    return loadable.need_bytes - (0 if running.ends else loadable.process_bytes)


def absent_model(loadable: Loadable) -> HubModel:
    """What the policy sees of a model that only waits."""
    return HubModel(
        model_id=loadable.model_id,
        residence=Residence.ABSENT,
        need_bytes=loadable.need_bytes,
        process_bytes=loadable.process_bytes,
        last_used_ns=0,
    )


def standing(running: Running, n_open: int, n_waiting: int, keep_s: float | None, now_ns: int) -> ModelStanding:
    """Of a model with a process, for people. `keep_s`: for how long it stays after its last request."""
    loadable, asleep = running.loadable, running.residence is Residence.ASLEEP
    idle_s = 0.0 if n_open else (now_ns - running.last_used_ns) / 1e9
    awake = running.residence is Residence.AWAKE
    return ModelStanding(
        phase=_phase(running),
        node=running.node_id,
        memory_bytes=loadable.process_bytes if asleep else loadable.need_bytes,
        gpu_bytes=0 if asleep else loadable.gpu_bytes,
        n_ctx=loadable.spec.n_ctx,
        n_parallel=loadable.spec.n_parallel,
        n_running=n_open,
        n_waiting=n_waiting,
        expires_at=time.time() + keep_s - idle_s if awake and keep_s is not None else None,
    )


def absent_standing(reason: str, n_waiting: int) -> ModelStanding:
    """Of a model that waits for memory, or of one that could not be loaded, with the reason."""
    phase = ModelPhase.WAITING if n_waiting else ModelPhase.FAILED
    return ModelStanding(phase=phase, n_waiting=n_waiting, reason=reason)


def _phase(running: Running) -> ModelPhase:
    match running.residence:
        case Residence.ASLEEP:
            return ModelPhase.SLEEPING
        case Residence.LEAVING:
            return ModelPhase.LEAVING
        case _:
            return ModelPhase.LOADING if running.settled_ns is None else ModelPhase.LOADED
