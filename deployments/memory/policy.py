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
from dataclasses import dataclass, replace

from deployments.config import ReleaseKind, SchedulerSpec
from deployments.memory.messages import Memory, Reading, ReleaseOffer, ReleaseOrder, ReleaseReason, ReplicaReport

Subject = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """`exhausted` are memories that are too full while nothing can be released; `newly_exhausted`
    those of them that no earlier plan named."""

    orders: tuple[ReleaseOrder, ...]
    readings: tuple[Reading, ...]
    exhausted: tuple[Memory, ...] = ()
    newly_exhausted: tuple[Memory, ...] = ()


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
        self._freed: list[tuple[int, ReleaseOrder]] = []  # with what it freed; readings from before do not show it
        self._not_before_ns: dict[tuple[str, Subject], int] = {}  # by kind, or for keep_alive_s by reason

    def plan(self, reports: Sequence[ReplicaReport], now_ns: int, asked_ns: int) -> ReleasePlan:
        """Orders for this moment, by what replicas answered to a question that was put at
        `asked_ns`."""
        self._not_before_ns = {what: until for what, until in self._not_before_ns.items() if until > now_ns}
        self._freed = [(at_ns, order) for at_ns, order in self._freed if at_ns > asked_ns]
        readings = fullest(reports)
        orders = list(self._idle_too_long(reports, now_ns))
        exhausted: list[Memory] = []
        for reading in readings:
            need = self._need(reading)
            if need > 0:
                orders += self._releases(reading, need, reports, now_ns)
                if not any(order.memory == reading.memory for order in self._outstanding.values()):
                    exhausted.append(reading.memory)
        new = tuple(memory for memory in exhausted if memory not in self._reported)
        self._reported.update(new)
        return ReleasePlan(tuple(orders), readings, tuple(exhausted), new)

    def ended(self, order: ReleaseOrder, freed_bytes: int, now_ns: int) -> None:
        """What came of an order; 0 bytes for one that failed or was refused."""
        self._outstanding.pop(order.subject, None)
        if freed_bytes > 0:
            self._freed.append((now_ns, replace(order, n_bytes=freed_bytes)))
        if freed_bytes < self._spec.min_bytes:
            self._cool(order.kind, order, now_ns)  # it was not worth it; or it cannot be done now

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
        orders = (*self._outstanding.values(), *(order for _, order in self._freed))
        expected = sum(order.n_bytes for order in orders if order.memory == memory)
        return reading.used_bytes - expected - int(self._spec.low * reading.total_bytes)

    def _releases(
        self, reading: Reading, need: int, reports: Sequence[ReplicaReport], now_ns: int
    ) -> Iterator[ReleaseOrder]:
        for kind in self._spec.release_kinds:
            for report, offer in _offers(reading, kind, reports):
                if need <= 0:
                    return
                order = _order(report, offer, max(need, self._spec.min_bytes))
                if offer.n_bytes >= self._spec.min_bytes and self._may_order(kind, order):
                    self._outstanding[order.subject] = order
                    if kind is not ReleaseKind.RAM_TIER:  # redundant copies come back for free, a context does not
                        self._cool(kind, order, now_ns)
                    need -= order.n_bytes
                    yield order

    # --- keep_alive_s -----------------------------------------------------------------------------

    def _idle_too_long(self, reports: Iterable[ReplicaReport], now_ns: int) -> Iterator[ReleaseOrder]:
        for report in reports:
            span = self._keep_alive_s.get(report.model_id)
            if span is None or not report.loaded or not report.idle or report.idle_s < span:
                continue
            own = [offer for offer in report.offers if not offer.tier]
            resource = max(own, key=lambda offer: offer.n_bytes).resource if own else ""
            n_bytes = sum(offer.n_bytes for offer in own if offer.resource == resource)
            reason = ReleaseReason.KEEP_ALIVE
            order = _order(report, ReleaseOffer(ReleaseKind.WEIGHTS, resource, n_bytes), n_bytes, reason)
            if self._may_order(reason, order):
                self._outstanding[order.subject] = order
                self._cool(reason, order, now_ns, min(span, self._spec.cooldown_s))
                yield order

    # --- bookkeeping ------------------------------------------------------------------------------

    def _may_order(self, why: str, order: ReleaseOrder) -> bool:
        return order.subject not in self._outstanding and (why, order.subject) not in self._not_before_ns

    def _cool(self, why: str, order: ReleaseOrder, now_ns: int, seconds: float | None = None) -> None:
        span_s = self._spec.cooldown_s if seconds is None else seconds
        self._not_before_ns[why, order.subject] = now_ns + int(span_s * 1e9)


def fullest(reports: Iterable[ReplicaReport]) -> tuple[Reading, ...]:
    """One reading per memory: the replicas of a node look at the same one, and the fullest look
    counts."""
    readings = [reading for report in reports for reading in report.readings if reading.total_bytes > 0]
    found = {reading.memory: reading for reading in sorted(readings, key=lambda reading: reading.share)}
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


def _order(
    report: ReplicaReport, offer: ReleaseOffer, wanted: int, reason: ReleaseReason = ReleaseReason.PRESSURE
) -> ReleaseOrder:
    return ReleaseOrder(
        report.replica_id,
        report.model_id,
        report.node_id,
        offer.resource,
        offer.kind,
        min(offer.n_bytes, wanted) if offer.tier else offer.n_bytes,
        report.idle_s,
        offer.tier,
        reason,
    )
