"""What the scheduler saw and did, for its `status()`. One thread; nothing here decides anything.
Times in unix seconds."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from deployments.memory.messages import ReleaseRecord, ReplicaReport, SchedulerStatus
from deployments.memory.policy import ReleasePlan

_LAST = 100


class StatusRecorder:
    def __init__(self, enabled: bool, started: float) -> None:
        self._status = SchedulerStatus(enabled, started)
        self._last: deque[ReleaseRecord] = deque(maxlen=_LAST)
        self._releases: Counter[str] = Counter()
        self._freed: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._problems: dict[str, frozenset[str]] = {}  # of each replica in its last report

    def status(self) -> SchedulerStatus:
        return replace(
            self._status,
            last=tuple(self._last),
            releases=dict(self._releases),
            freed_bytes=dict(self._freed),
            errors=dict(self._errors),
        )

    def round(self, plan: ReleasePlan, reports: Sequence[ReplicaReport], at: float) -> None:
        """Deltas are left out: a status is for people, and they can be megabytes."""
        exhausted = tuple(f"{node_id} {resource}" for node_id, resource in plan.exhausted)
        replicas = tuple(replace(report, delta=None) for report in reports)
        self._status = replace(self._status, ticked=at, readings=plan.readings, replicas=replicas, exhausted=exhausted)

    def new_problems(self, report: ReplicaReport) -> frozenset[str]:
        """Problems of a replica's sources that it did not have before; each is counted."""
        found = frozenset(report.problems)
        known = self._problems.pop(report.replica_id, frozenset())
        self._problems[report.replica_id] = found
        while len(self._problems) > _LAST * 10:  # replicas come and go
            del self._problems[next(iter(self._problems))]
        for problem in found - known:
            self._count("source", problem)
        return found - known

    def release(self, record: ReleaseRecord) -> None:
        self._last.append(record)
        self._releases[record.order.kind] += 1
        self._freed[record.order.kind] += record.result.freed_bytes

    def error(self, what: str, error: BaseException) -> None:
        self._count(what, repr(error))

    def deltas_spread(self, n_deltas: int) -> None:
        self._status = replace(self._status, deltas=self._status.deltas + n_deltas)

    def tiers_collected(self, n_tiers: int) -> None:
        self._status = replace(self._status, tiers_collected=self._status.tiers_collected + n_tiers)

    def _count(self, what: str, message: str) -> None:
        self._errors[what] += 1
        self._status = replace(self._status, last_error=f"{what}: {message}")
