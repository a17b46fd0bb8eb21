"""The words that the memory scheduler and the replicas exchange: readings, offers, reports, orders
and results. Plain data that pickles; nothing here reads a clock or does I/O. Sizes in bytes, spans
in seconds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cache_store import IndexDelta
from deployments.config import ReleaseKind

RAM = "ram"
Memory = tuple[str, str]  # node, resource


class ReleaseReason(StrEnum):
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

    @property
    def memory(self) -> Memory:
        return self.node_id, self.resource


@dataclass(frozen=True, slots=True)
class ReleaseOffer:
    """What a release of this kind would give back to `resource`. `tier` names the store's tier,
    which all replicas of a node share; "" for the model's own memory."""

    kind: ReleaseKind
    resource: str
    n_bytes: int
    tier: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaLocation:
    """Who a replica is and where it runs. `gpu_ids` are indices or UUIDs, as CUDA_VISIBLE_DEVICES
    has them."""

    replica_id: str = "local"
    node_id: str = "local"
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica at one moment. `idle_s` counts from the end of its last request, 0.0 while one
    waits or runs.

    `loaded` is False when neither context nor weights are in memory. `tiers` has the ids of each
    tier of its store by label: tiers that share an id are one directory or bucket, whoever mounts
    it where; of tiers without ids nobody knows. `delta` is what its store did since the last
    report, None when nothing. `problems` are sources that could not be read.
    """

    replica_id: str
    model_id: str
    node_id: str
    n_running: int = 0
    n_queued: int = 0
    idle_s: float = 0.0
    loaded: bool = True
    readings: tuple[Reading, ...] = ()
    offers: tuple[ReleaseOffer, ...] = ()
    tiers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    delta: IndexDelta | None = None
    problems: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        return self.n_running == 0 and self.n_queued == 0


@dataclass(frozen=True, slots=True)
class ReleaseOrder:
    """What one replica is to release. `idle_s` is what its report said: a replica that was used
    since then keeps what it has.

    `n_bytes` is how much is wanted of a tier; of a model's own memory it is what the release is
    expected to free.
    """

    replica_id: str
    model_id: str
    node_id: str
    resource: str
    kind: ReleaseKind
    n_bytes: int
    idle_s: float = 0.0
    tier: str = ""
    reason: ReleaseReason = ReleaseReason.PRESSURE

    @property
    def memory(self) -> Memory:
        return self.node_id, self.resource

    @property
    def subject(self) -> tuple[str, str]:
        """What the order empties, a tier of a node or a replica."""
        return self.node_id, f"tier:{self.tier}" if self.tier else self.replica_id


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What came of an order. `kept` tells why nothing was released ("" when the order was carried
    out)."""

    freed_bytes: int
    kept: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One finished order: when it ended (unix seconds) and how long it took."""

    at: float
    order: ReleaseOrder
    result: ReleaseResult
    seconds: float

    def line(self) -> str:
        """For a log: key=value."""
        order, result = self.order, self.result
        return (
            f"reason={order.reason} kind={order.kind} model={order.model_id} replica={order.replica_id} "
            f"node={order.node_id} resource={order.resource} expected_bytes={order.n_bytes} "
            f"freed_bytes={result.freed_bytes} seconds={self.seconds:.3f} outcome={result.kept or 'done'!r}"
        )


@dataclass(frozen=True, slots=True)
class GarbageOrder:
    """One replica collects the garbage of the tier with these ids within `deadline_s`; for `for_s`
    all others that have the tier leave it to that one."""

    replica_id: str
    tier_ids: frozenset[str]
    deadline_s: float
    for_s: float


@dataclass(slots=True)
class SchedulerStatus:
    """What the scheduler of an application knows and did since `started` (unix seconds, as
    `ticked`, its last round; 0.0 before the first). The scheduler goes on writing into its own;
    others get copies.

    `releases` (how many) and `freed_bytes` are totals by kind, `last` the newest records, oldest
    first. `errors` counts by what failed; `exhausted` names the memories that are too full with
    nothing left to release. `deltas` counts index deltas that were spread, `tiers_collected` tiers
    whose garbage was collected to the end.
    """

    started: float
    ticked: float = 0.0
    readings: tuple[Reading, ...] = ()
    replicas: tuple[ReplicaReport, ...] = ()
    last: deque[ReleaseRecord] = field(default_factory=lambda: deque(maxlen=100))
    releases: Counter[str] = field(default_factory=Counter)
    freed_bytes: Counter[str] = field(default_factory=Counter)
    exhausted: tuple[str, ...] = ()
    errors: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    deltas: int = 0
    tiers_collected: int = 0

    def error(self, what: str, message: str) -> None:
        """Count one."""
        self.errors[what] += 1
        self.last_error = f"{what}: {message}"
