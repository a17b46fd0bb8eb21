"""The words that the memory scheduler and the replicas exchange: readings, offers, reports, orders and what came of them.

Invariants: plain frozen data that pickles; nothing here reads a clock or does I/O. Sizes in bytes, spans in seconds. A reading says how
full one memory of one node is; an offer, what a replica could give back of it. Everything else about pressure follows from these two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cache_store import News
from deployments.config import Measure

RAM = "ram"


class Reason(StrEnum):
    PRESSURE = "pressure"
    KEEP_ALIVE = "keep_alive"


@dataclass(frozen=True, slots=True)
class Reading:
    """How full one memory is: `resource` is "ram" or "gpu:<uuid>" of one node."""

    node_id: str
    resource: str
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.total_bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What a measure would give back to `resource`. `tier` names the store's tier, which all replicas of a node share."""

    measure: Measure
    resource: str
    n_bytes: int
    tier: str = ""


@dataclass(frozen=True, slots=True)
class TierPlace:
    """A tier of the store as one replica has it. Tiers that share a mark are one place; without marks nobody knows."""

    label: str
    marks: frozenset[str]


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """Who a replica is and where. `gpu_ids` are indices or UUIDs, as CUDA_VISIBLE_DEVICES has them."""

    replica_id: str = "local"
    node_id: str = "local"
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica at one moment. `idle_s` counts from the end of its last request, 0.0 while one waits or runs.

    `loaded` is False when neither context nor weights are in memory. `news` is what its store did since the last report, None when nothing.
    `problems` are sources that could not be read.
    """

    replica_id: str
    model_id: str
    node_id: str
    n_running: int = 0
    n_queued: int = 0
    idle_s: float = 0.0
    loaded: bool = True
    readings: tuple[Reading, ...] = ()
    offers: tuple[Offer, ...] = ()
    tiers: tuple[TierPlace, ...] = ()
    news: News | None = None
    problems: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        return self.n_running == 0 and self.n_queued == 0


@dataclass(frozen=True, slots=True)
class Relief:
    """An order to one replica. `idle_s` is what its report said: a replica that was used since then keeps what it has.

    `n_bytes` is how much is wanted of a tier; of a model's own memory it is what the order is expected to free.
    """

    replica_id: str
    model_id: str
    node_id: str
    resource: str
    measure: Measure
    n_bytes: int
    idle_s: float = 0.0
    tier: str = ""
    reason: Reason = Reason.PRESSURE

    @property
    def subject(self) -> tuple[str, str, str]:
        """What the order empties: two orders with one subject are about the same memory."""
        return (self.measure, self.node_id, f"tier:{self.tier}") if self.tier else (self.measure, self.node_id, self.replica_id)


@dataclass(frozen=True, slots=True)
class Relieved:
    """What came of an order. `kept` tells why nothing was freed ("" when it was carried out)."""

    replica_id: str
    freed_bytes: int
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Collect:
    """One replica collects the garbage of a place within `deadline_s`; for `for_s` all others that have the place leave it to that one."""

    replica_id: str
    marks: frozenset[str]
    deadline_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Action:
    """One finished order, for people: `at` in unix seconds."""

    at: float
    reason: Reason
    measure: Measure
    model_id: str
    replica_id: str
    node_id: str
    resource: str
    expected_bytes: int
    freed_bytes: int
    seconds: float
    outcome: str  # "done", why the replica kept it, or what failed

    def line(self) -> str:
        """For a log: key=value."""
        return (
            f"reason={self.reason} measure={self.measure} model={self.model_id} replica={self.replica_id} node={self.node_id} "
            f"resource={self.resource} expected_bytes={self.expected_bytes} freed_bytes={self.freed_bytes} seconds={self.seconds:.3f} "
            f"outcome={self.outcome!r}"
        )


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """What the scheduler of an application knows and did since `started` (unix seconds, as `ticked`, its last round; 0.0 before the first).

    `freed_bytes` and `actions` are totals by measure, `last` the newest actions, oldest first. `errors` counts by what failed; `exhausted`
    names the memories that are too full with nothing left to free. `news` counts pieces of news relayed, `collected` tiers cleaned up.
    """

    enabled: bool
    started: float
    ticked: float = 0.0
    readings: tuple[Reading, ...] = ()
    replicas: tuple[ReplicaReport, ...] = ()
    last: tuple[Action, ...] = ()
    actions: dict[str, int] = field(default_factory=dict)
    freed_bytes: dict[str, int] = field(default_factory=dict)
    exhausted: tuple[str, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)
    last_error: str = ""
    news: int = 0
    collected: int = 0
