"""What to release, of which replica and when: the decisions of the memory scheduler, without its
I/O.

    above `high` of a memory -> release down to `low`, cheapest kind first, longest idle first
    idle for longer than the model's `keep_alive_s` -> unload it, pressure or not

Invariants: nothing here waits, logs or talks to a replica; time comes in as monotonic ns. Memories
are looked at one by one: pressure on one node or GPU touches nothing elsewhere. A replica has one
order about its own memory at a time and never one that a running request would feel. What was
ordered counts as freed until a reading that is younger than its end says what it did: nothing is
freed twice for one need. A replica that released something is left alone for `cooldown_s`. All
state may be lost at any time: it only makes decisions steadier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.config import ReleaseKind, SchedulerSpec
from deployments.memory.messages import Memory, Reading, ReleaseOffer, ReleaseOrder, ReleaseReason, ReplicaReport

Subject = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """`exhausted` are memories that are too full while nothing can be released; `newly_exhausted`
    those of them that no earlier plan named."""

    orders: tuple[ReleaseOrder, ...]
    readings: tuple[Reading, ...]
    exhausted: tuple[Memory, ...] = ()
    newly_exhausted: tuple[Memory, ...] = ()


@dataclass(frozen=True, slots=True)
class _Freed:
    """Freed bytes that readings from before `at_ns` do not show."""

    memory: Memory
    n_bytes: int
    at_ns: int


class ReleasePolicy:
    """One scheduler's decisions. Every planned order must be reported back through `ended`,
    whatever became of it."""

    def __init__(self, spec: SchedulerSpec, keep_alive_s: Mapping[str, float] | None = None) -> None:
        """`keep_alive_s` by model id."""
        self._spec = spec
        self._keep_alive_s = dict(keep_alive_s or {})
        self._releasing: set[Memory] = set()
        self._reported: set[Memory] = set()
        self._outstanding: dict[Subject, ReleaseOrder] = {}
        self._freed: list[_Freed] = []
        self._not_before_ns: dict[Subject, int] = {}

    def plan(self, reports: Sequence[ReplicaReport], now_ns: int, asked_ns: int) -> ReleasePlan:
        """Orders for this moment, by what replicas answered to a question that was put at
        `asked_ns`."""
        self._not_before_ns = {subject: until for subject, until in self._not_before_ns.items() if until > now_ns}
        self._freed = [freed for freed in self._freed if freed.at_ns > asked_ns]
        readings = fullest(reports)
        orders = list(self._idle_too_long(reports, now_ns))
        exhausted: list[Memory] = []
        for reading in readings:
            need = self._need(reading)
            if need <= 0:
                continue
            found = list(self._releases(reading, need, reports, now_ns))
            orders += found
            if not found and not self._under_way(reading.memory):
                exhausted.append(reading.memory)
        new = tuple(memory for memory in exhausted if memory not in self._reported)
        self._reported.update(new)
        return ReleasePlan(tuple(orders), readings, tuple(exhausted), new)

    def ended(self, order: ReleaseOrder, freed_bytes: int, now_ns: int) -> None:
        """What came of an order; 0 bytes for one that failed or was refused."""
        self._outstanding.pop(order.subject, None)
        if freed_bytes > 0:
            self._freed.append(_Freed(order.memory, freed_bytes, now_ns))
        if freed_bytes < self._spec.min_bytes:
            self._cool(order.subject, now_ns)  # it was not worth it; or it cannot be done now

    # --- pressure ---------------------------------------------------------------------------------

    def _need(self, reading: Reading) -> int:
        """Bytes to free now: from the moment a memory is above `high` until it is down to `low`."""
        memory = reading.memory
        if reading.share > self._spec.high:
            self._releasing.add(memory)
        elif reading.share <= self._spec.low:
            self._releasing.discard(memory)
            self._reported.discard(memory)
        if memory not in self._releasing:
            return 0
        expected = sum(order.n_bytes for order in self._outstanding.values() if order.memory == memory)
        expected += sum(freed.n_bytes for freed in self._freed if freed.memory == memory)
        return reading.used_bytes - expected - int(self._spec.low * reading.total_bytes)

    def _releases(
        self, reading: Reading, need: int, reports: Sequence[ReplicaReport], now_ns: int
    ) -> Iterator[ReleaseOrder]:
        for kind in self._spec.release_kinds:
            for report, offer in _offers(reading, kind, reports):
                if need <= 0:
                    return
                order = _order(report, offer, max(need, self._spec.min_bytes))
                if offer.n_bytes >= self._spec.min_bytes and self._may_order(order.subject):
                    self._begin(order)
                    if kind is not ReleaseKind.RAM_TIER:  # redundant copies come back for free, a context does not
                        self._cool(order.subject, now_ns)
                    need -= order.n_bytes
                    yield order

    def _under_way(self, memory: Memory) -> bool:
        return any(order.memory == memory for order in self._outstanding.values())

    # --- keep_alive_s -----------------------------------------------------------------------------

    def _idle_too_long(self, reports: Iterable[ReplicaReport], now_ns: int) -> Iterator[ReleaseOrder]:
        for report in reports:
            span = self._keep_alive_s.get(report.model_id)
            if span is None or not report.loaded or not report.idle or report.idle_s < span:
                continue
            own = [offer for offer in report.offers if not offer.tier]
            resource = max(own, key=lambda offer: offer.n_bytes).resource if own else ""
            order = ReleaseOrder(
                report.replica_id,
                report.model_id,
                report.node_id,
                resource,
                ReleaseKind.WEIGHTS,
                sum(offer.n_bytes for offer in own if offer.resource == resource),
                report.idle_s,
                reason=ReleaseReason.KEEP_ALIVE,
            )
            if self._may_order(order.subject, ReleaseReason.KEEP_ALIVE):
                self._begin(order)
                self._cool(_keep_alive(order.subject), now_ns, min(span, self._spec.cooldown_s))
                yield order

    # --- bookkeeping ------------------------------------------------------------------------------

    def _may_order(self, subject: Subject, reason: ReleaseReason = ReleaseReason.PRESSURE) -> bool:
        cooling = (subject if reason is ReleaseReason.PRESSURE else _keep_alive(subject)) in self._not_before_ns
        return not cooling and not any(other[1:] == subject[1:] for other in self._outstanding)

    def _begin(self, order: ReleaseOrder) -> None:
        self._outstanding[order.subject] = order

    def _cool(self, subject: Subject, now_ns: int, seconds: float | None = None) -> None:
        self._not_before_ns[subject] = now_ns + int((self._spec.cooldown_s if seconds is None else seconds) * 1e9)


def fullest(reports: Iterable[ReplicaReport]) -> tuple[Reading, ...]:
    """One reading per memory: the replicas of a node look at the same one, and the fullest look
    counts."""
    found: dict[Memory, Reading] = {}
    for reading in (reading for report in reports for reading in report.readings if reading.total_bytes > 0):
        known = found.get(reading.memory)
        if known is None or reading.share > known.share:
            found[reading.memory] = reading
    return tuple(found[memory] for memory in sorted(found))


def _offers(
    reading: Reading, kind: ReleaseKind, reports: Iterable[ReplicaReport]
) -> list[tuple[ReplicaReport, ReleaseOffer]]:
    """What may be released by one kind: of a model's own memory the longest idle first, of tiers
    the largest view of each."""
    of_tiers = kind is ReleaseKind.RAM_TIER
    found = [
        (report, offer)
        for report in reports
        if report.node_id == reading.node_id and (report.idle or of_tiers)
        for offer in report.offers
        if offer.kind is kind and offer.resource == reading.resource
    ]
    return sorted(found, key=lambda it: (-it[1].n_bytes if of_tiers else -it[0].idle_s, it[0].replica_id))


def _order(report: ReplicaReport, offer: ReleaseOffer, wanted: int) -> ReleaseOrder:
    n_bytes = min(offer.n_bytes, wanted) if offer.tier else offer.n_bytes
    return ReleaseOrder(
        report.replica_id,
        report.model_id,
        report.node_id,
        offer.resource,
        offer.kind,
        n_bytes,
        report.idle_s,
        tier=offer.tier,
    )


def _keep_alive(subject: Subject) -> Subject:
    return (ReleaseReason.KEEP_ALIVE, *subject[1:])
