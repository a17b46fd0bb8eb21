"""A snapshot of the cluster: every part is asked at once, for a bounded time, and parts that do not
answer are named instead of waited for. No model is woken. One event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from deployments.access.tenant import Tenant
from deployments.dialects.erllama_admin.cluster import ClusterPort, SchedulerState
from deployments.dialects.erllama_admin.cluster_shapes import (
    OF_PHASE,
    model_card,
    node_card,
    scheduler_card,
    tier_cards,
)
from deployments.http.answers import Answer
from deployments.http.model_library import LibraryModel, ModelPhase
from deployments.http.ports import ReplicaState, ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import EngineStopped, ErllamaError

T = TypeVar("T")

_KEPT_S = 1.0  # a snapshot counts for so long, however many ask
_NOBODY = Tenant("-")


@runtime_checkable
class StatePort(Protocol):
    """The part of a model's client that is needed here. May raise an `ErllamaError`."""

    async def states(self, deadline_s: float) -> list[Answer[ReplicaState]]:
        """What each replica says within `deadline_s` of what it does and counts. Wakes none."""


@dataclass(slots=True)
class ModelFacts:
    """One model of a snapshot."""

    id: str
    aliases: tuple[str, ...]
    source: str
    state: str
    reason: str = ""
    replicas: list[ReplicaState] = field(default_factory=list)


@dataclass(slots=True)
class Snapshot:
    """What was known at `time`, unix seconds."""

    time: float
    nodes: list[dict[str, Any]]
    models: list[ModelFacts]
    scheduler: SchedulerState | None
    unanswered: list[str]

    def card(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "object": "cluster",
            "time": self.time,
            "nodes": self.nodes,
            "models": [model_card(m.id, m.aliases, m.source, m.state, m.reason, m.replicas) for m in self.models],
            "tiers": [card for m in self.models for state in m.replicas for card in tier_cards(m.id, state)],
            "scheduler": None if self.scheduler is None else scheduler_card(self.scheduler),
            "unanswered": self.unanswered,
        }


class ClusterWatch:
    """`timeout_s` bounds how long any part is waited for. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        models: ModelRegistry,
        cluster: ClusterPort,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: Snapshot | None = None
        self._until = 0.0

    async def snapshot(self) -> Snapshot:
        """One of this moment, or of the last second. Raises nothing for what happens to a part."""
        async with self._lock:
            if self._last is None or self._clock() >= self._until:
                self._last = await self._taken()
                self._until = self._clock() + _KEPT_S
            return self._last

    async def _taken(self) -> Snapshot:
        unanswered: list[str] = []
        nodes, scheduler, library = await asyncio.gather(
            self._asked("nodes", self._cluster.nodes, unanswered),
            self._asked("memory scheduler", self._cluster.scheduler, unanswered),
            self._asked("hub", self._models.library.models, unanswered),
        )
        configured = {model.id for model in self._models.all}
        of_hub = [model for model in library or [] if model.id not in configured]
        facts = await asyncio.gather(
            *(self._configured(model, unanswered) for model in self._models.all),
            *(self._of_hub(model, unanswered) for model in of_hub),
        )
        memories = () if scheduler is None else scheduler.memories
        return Snapshot(time.time(), [node_card(node, memories) for node in nodes or []], facts, scheduler, unanswered)

    async def _configured(self, model: ServedModel, unanswered: list[str]) -> ModelFacts:
        facts = ModelFacts(model.id, model.aliases, "config", "ready")
        facts.replicas = await self._replicas(model, unanswered)
        if facts.replicas:
            return facts
        try:
            async with asyncio.timeout(self._timeout_s):
                ready = await model.client.ready()
        except TimeoutError:
            facts.state, facts.reason = "loading", "it does not answer"
        except ErllamaError as error:
            facts.state, facts.reason = "failed", error.message
        else:
            facts.state = "ready" if ready else "asleep" if ready is None else "loading"
        return facts

    async def _of_hub(self, model: LibraryModel, unanswered: list[str]) -> ModelFacts:
        standing = model.standing
        facts = ModelFacts(model.id, (), "hub", OF_PHASE[standing.phase], standing.reason)
        if standing.phase in (ModelPhase.LOADED, ModelPhase.LEAVING, ModelPhase.SLEEPING):
            try:
                served = self._models.library.find(model.id, _NOBODY)
            except ErllamaError as error:  # its name has just been given to another file
                unanswered.append(f"model {model.id}: {error.message}")
                return facts
            facts.replicas = [] if served is None else await self._replicas(served, unanswered)
        return facts

    async def _replicas(self, model: ServedModel, unanswered: list[str]) -> list[ReplicaState]:
        """What its replicas tell; none where none runs."""
        client, what = model.client, f"model {model.id}"
        if not isinstance(client, StatePort):
            return []
        answers: list[Answer[ReplicaState]] = []
        try:
            answers = await client.states(self._timeout_s)
        except EngineStopped:  # no replica runs: its state tells why
            return []
        except ErllamaError as error:
            unanswered.append(f"{what}: {error.message}")
        unanswered += [f"{what}: {answer.error.message}" for answer in answers if answer.error is not None]
        return [answer.value for answer in answers if answer.value is not None]

    async def _asked(self, what: str, ask: Callable[[], Awaitable[T]], unanswered: list[str]) -> T | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await ask()
        except TimeoutError:
            unanswered.append(f"{what}: no answer within {self._timeout_s:g} s")
        except ErllamaError as error:
            unanswered.append(f"{what}: {error.message}")
        return None
