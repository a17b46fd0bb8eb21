"""What the scheduler does beside releasing memory: which replicas learn which index deltas, and
which replica collects the garbage of which tier when. Pure; time comes in as ns.

Replicas share a store, so what one of them wrote is of use to all: every replica gets all deltas
but its own, and its store skips what is about tiers that it does not have. Tiers that share an id
are one, whoever mounts it where, and one replica collects its garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cache_store import IndexDelta
from deployments.config import SchedulerSpec
from deployments.memory.messages import GarbageOrder, ReplicaReport

_DEADLINE_SHARE = 0.5  # of the interval: how long one collection may take
# intervals for which the others leave a tier alone; longer than one, so that they are told again
# before it ends
_HANDS_OFF = 1.5


class StoreUpkeep:
    def __init__(self, spec: SchedulerSpec) -> None:
        self._gossip = spec.gossip
        self._every_ns = int(spec.gc_s * 1e9)
        self._deadline_s = spec.gc_s * _DEADLINE_SHARE
        self._hands_off_s = spec.gc_s * _HANDS_OFF
        self._due_ns: dict[str, int] = {}  # of a tier, known by one of its ids

    def deltas_for(self, model_id: str, reports: Sequence[ReplicaReport]) -> tuple[IndexDelta, ...]:
        """What the replicas of a model should learn. Each also gets its own delta, which its store
        skips, unless it is alone.
        """
        if not self._gossip:
            return ()
        replicas = {report.replica_id for report in reports if report.model_id == model_id}
        return tuple(report.delta for report in reports if report.delta is not None and replicas - {report.replica_id})

    def garbage_orders(self, reports: Sequence[ReplicaReport], now_ns: int) -> Iterator[GarbageOrder]:
        """One order, to be told to all, for each tier that is due.

        A tier that is seen for the first time is due an interval later: a replica that has just
        started has better things to do.
        """
        for report, tier_ids in _collectors(reports):
            due_ns = self._due_ns.setdefault(min(tier_ids), now_ns + self._every_ns)
            if due_ns <= now_ns:
                self._due_ns[min(tier_ids)] = now_ns + self._every_ns
                yield GarbageOrder(report.replica_id, tier_ids, self._deadline_s, self._hands_off_s)


def _collectors(reports: Sequence[ReplicaReport]) -> Iterator[tuple[ReplicaReport, frozenset[str]]]:
    """The replica that is to collect each tier's garbage: the longest idle one of those that have
    the tier.

    That is not always the same replica, which does not matter.
    """
    known: set[str] = set()
    for report in sorted(reports, key=lambda report: (not report.idle, -report.idle_s, report.replica_id)):
        for tier in report.tiers:
            if tier.ids and known.isdisjoint(tier.ids):
                yield report, tier.ids
            known |= tier.ids
