"""What to free, of whom and when: the decisions of the memory scheduler, without its I/O.

    above `high` of a memory -> drain it down to `low`, cheapest measure first, longest idle first
    idle for longer than the model's `keep_alive_s` -> unload it, pressure or not

Invariants: nothing here waits, logs or talks to a replica; time comes in as monotonic ns. Memories are looked at one by one: pressure on
one node or GPU touches nothing elsewhere. A replica has one order about its own memory at a time and never one that a running request would
feel. What was ordered counts as freed until a reading that is younger than its end says what it did: nothing is freed twice for one need.
A replica that gave something up is left alone for `cooldown_s`. All state may be lost at any time: it only makes decisions steadier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.config import Measure, SchedulerSpec
from deployments.memory.messages import Offer, Reading, Reason, Relief, ReplicaReport

Memory = tuple[str, str]  # node, resource
Subject = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """`exhausted` are memories that are too full while nothing can be freed; `told` those of them that nobody was told of yet."""

    orders: tuple[Relief, ...]
    readings: tuple[Reading, ...]
    exhausted: tuple[Memory, ...] = ()
    told: tuple[Memory, ...] = ()


@dataclass(frozen=True, slots=True)
class _Landed:
    """Freed bytes that readings from before `at_ns` do not show."""

    memory: Memory
    n_bytes: int
    at_ns: int


class PressurePolicy:
    """One scheduler's decisions. Every planned order must be reported back through `ended`, whatever became of it."""

    def __init__(self, spec: SchedulerSpec, keep_alive_s: Mapping[str, float] | None = None) -> None:
        """`keep_alive_s` by model id."""
        self._spec = spec
        self._keep_alive_s = dict(keep_alive_s or {})
        self._draining: set[Memory] = set()
        self._told: set[Memory] = set()
        self._flying: dict[Subject, Relief] = {}
        self._landed: list[_Landed] = []
        self._not_before_ns: dict[Subject, int] = {}

    def plan(self, reports: Sequence[ReplicaReport], now_ns: int, asked_ns: int) -> Plan:
        """Orders for this moment, by what replicas answered to a question that was put at `asked_ns`."""
        self._not_before_ns = {subject: until for subject, until in self._not_before_ns.items() if until > now_ns}
        self._landed = [landed for landed in self._landed if landed.at_ns > asked_ns]
        readings = fullest(reports)
        orders = list(self._outlived(reports, now_ns))
        exhausted: list[Memory] = []
        for reading in readings:
            need = self._need(reading)
            if need <= 0:
                continue
            relief = list(self._relief(reading, need, reports, now_ns))
            orders += relief
            if not relief and not self._under_way(_memory(reading)):
                exhausted.append(_memory(reading))
        told = tuple(memory for memory in exhausted if memory not in self._told)
        self._told.update(told)
        return Plan(tuple(orders), readings, tuple(exhausted), told)

    def ended(self, order: Relief, freed_bytes: int, now_ns: int) -> None:
        """What came of an order; 0 bytes for one that failed or was refused."""
        self._flying.pop(order.subject, None)
        if freed_bytes > 0:
            self._landed.append(_Landed((order.node_id, order.resource), freed_bytes, now_ns))
        if freed_bytes < self._spec.min_bytes:
            self._cool(order.subject, now_ns)  # it was not worth it; or it cannot be done now

    # --- pressure ----------------------------------------------------------------------------------------------------------

    def _need(self, reading: Reading) -> int:
        """Bytes to free now: from the moment a memory is above `high` until it is down to `low`."""
        memory = _memory(reading)
        if reading.share > self._spec.high:
            self._draining.add(memory)
        elif reading.share <= self._spec.low:
            self._draining.discard(memory)
            self._told.discard(memory)
        if memory not in self._draining:
            return 0
        coming = sum(order.n_bytes for order in self._flying.values() if (order.node_id, order.resource) == memory)
        coming += sum(landed.n_bytes for landed in self._landed if landed.memory == memory)
        return reading.used_bytes - coming - int(self._spec.low * reading.total_bytes)

    def _relief(self, reading: Reading, need: int, reports: Sequence[ReplicaReport], now_ns: int) -> Iterator[Relief]:
        for measure in self._spec.order:
            for report, offer in _offers(reading, measure, reports):
                if need <= 0:
                    return
                order = _order(report, offer, max(need, self._spec.min_bytes))
                if offer.n_bytes >= self._spec.min_bytes and self._free_to_go(order.subject):
                    self._launch(order)
                    if measure is not Measure.RAM_TIER:  # redundant copies come back for free, a context does not
                        self._cool(order.subject, now_ns)
                    need -= order.n_bytes
                    yield order

    def _under_way(self, memory: Memory) -> bool:
        return any((order.node_id, order.resource) == memory for order in self._flying.values())

    # --- keep_alive_s ------------------------------------------------------------------------------------------------------

    def _outlived(self, reports: Iterable[ReplicaReport], now_ns: int) -> Iterator[Relief]:
        for report in reports:
            span = self._keep_alive_s.get(report.model_id)
            if span is None or not report.loaded or not report.idle or report.idle_s < span:
                continue
            own = [offer for offer in report.offers if not offer.tier]
            resource = max(own, key=lambda offer: offer.n_bytes).resource if own else ""
            order = Relief(
                report.replica_id,
                report.model_id,
                report.node_id,
                resource,
                Measure.WEIGHTS,
                sum(offer.n_bytes for offer in own if offer.resource == resource),
                report.idle_s,
                reason=Reason.KEEP_ALIVE,
            )
            if self._free_to_go(order.subject, Reason.KEEP_ALIVE):
                self._launch(order)
                self._cool(_kept(order.subject), now_ns, min(span, self._spec.cooldown_s))
                yield order

    # --- bookkeeping -------------------------------------------------------------------------------------------------------

    def _free_to_go(self, subject: Subject, reason: Reason = Reason.PRESSURE) -> bool:
        cooling = (subject if reason is Reason.PRESSURE else _kept(subject)) in self._not_before_ns
        return not cooling and not any(flying[1:] == subject[1:] for flying in self._flying)

    def _launch(self, order: Relief) -> None:
        self._flying[order.subject] = order

    def _cool(self, subject: Subject, now_ns: int, seconds: float | None = None) -> None:
        self._not_before_ns[subject] = now_ns + int((self._spec.cooldown_s if seconds is None else seconds) * 1e9)


def fullest(reports: Iterable[ReplicaReport]) -> tuple[Reading, ...]:
    """One reading per memory: the replicas of a node look at the same one, and the fullest look counts."""
    found: dict[Memory, Reading] = {}
    for reading in (reading for report in reports for reading in report.readings if reading.total_bytes > 0):
        known = found.get(_memory(reading))
        if known is None or reading.share > known.share:
            found[_memory(reading)] = reading
    return tuple(found[memory] for memory in sorted(found))


def _offers(reading: Reading, measure: Measure, reports: Iterable[ReplicaReport]) -> list[tuple[ReplicaReport, Offer]]:
    """What may go by one measure: of a model's own memory the longest idle first, of tiers the largest view of each."""
    found = [
        (report, offer)
        for report in reports
        if report.node_id == reading.node_id
        for offer in report.offers
        if offer.measure is measure and offer.resource == reading.resource and (report.idle or measure is Measure.RAM_TIER)
    ]
    return sorted(found, key=_by_size if measure is Measure.RAM_TIER else _by_idleness)


def _by_size(ranked: tuple[ReplicaReport, Offer]) -> tuple[float, str]:
    return -ranked[1].n_bytes, ranked[0].replica_id


def _by_idleness(ranked: tuple[ReplicaReport, Offer]) -> tuple[float, str]:
    return -ranked[0].idle_s, ranked[0].replica_id


def _order(report: ReplicaReport, offer: Offer, wanted: int) -> Relief:
    n_bytes = min(offer.n_bytes, wanted) if offer.tier else offer.n_bytes
    return Relief(
        report.replica_id, report.model_id, report.node_id, offer.resource, offer.measure, n_bytes, report.idle_s, tier=offer.tier
    )


def _memory(reading: Reading) -> Memory:
    return (reading.node_id, reading.resource)


def _kept(subject: Subject) -> Subject:
    return (Reason.KEEP_ALIVE, *subject[1:])
