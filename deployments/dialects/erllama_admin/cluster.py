"""What this API needs to know of the machines and of the memory scheduler: a port, and its plain data.
Sizes in bytes, moments in unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Pressure(StrEnum):
    """How full a memory is, mildest first."""

    NONE = "none"
    HIGH = "high"  # above `scheduler.high`: what is idle is released
    EXHAUSTED = "exhausted"  # and nothing idle is left to release

    @property
    def rank(self) -> int:
        return list(Pressure).index(self)


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A machine as Ray counts it: `memory_bytes` is what Ray may hand out of its RAM."""

    id: str
    address: str
    alive: bool
    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """One memory of a node as the scheduler has read it last: `resource` is "ram" or "gpu:<uuid>"."""

    node_id: str
    resource: str
    used_bytes: int
    total_bytes: int
    pressure: Pressure


@dataclass(frozen=True, slots=True)
class MemoryRelease:
    """An order that the scheduler gave, at its end. `outcome` is "done", or why nothing was released."""

    time: float
    model: str
    replica: str
    node: str
    reason: str
    kind: str
    bytes: int
    seconds: float
    outcome: str


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """What the memory scheduler knows and did since `started`; `evictions` and `evicted_bytes` are
    totals of its releases, `last` the newest of them, oldest first. `errors` counts by what failed.
    """

    started: float
    evictions: int
    evicted_bytes: int
    memories: tuple[MemoryUse, ...] = ()
    last: tuple[MemoryRelease, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)


class ClusterPort(Protocol):
    """Where `ingress.cluster.RayCluster` is the real one. Every method may raise an `ErllamaError`."""

    async def nodes(self) -> list[ClusterNode]:
        """The machines, dead ones included as long as they are known. Empty where nobody knows any."""

    async def scheduler(self) -> SchedulerState | None:
        """None without a scheduler."""


class NoCluster:
    """The `ClusterPort` of an application that runs without a cluster."""

    async def nodes(self) -> list[ClusterNode]:
        return []

    async def scheduler(self) -> SchedulerState | None:
        return None
