"""What the scheduler does beside freeing memory: who hears which news, and who cleans up which tier when. Pure; time comes in as ns.

Replicas share a store, so what one of them wrote is of use to all: everyone hears everything but what is their own, and skips what is not
of a place it has. Tiers that share a mark are one place, whoever mounts it where, and one replica cleans it up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cache_store import News
from deployments.config import SchedulerSpec
from deployments.memory.messages import Collect, ReplicaReport

_COLLECT_SHARE = 0.5  # of the interval: how long one collection may take
_HANDS_OFF = 1.5  # intervals for which the others leave a place alone; longer than one, so that it is told again before it ends


class Chores:
    def __init__(self, spec: SchedulerSpec) -> None:
        self._relay = spec.relay
        self._every_ns = int(spec.collect_s * 1e9)
        self._deadline_s = spec.collect_s * _COLLECT_SHARE
        self._hands_off_s = spec.collect_s * _HANDS_OFF
        self._due_ns: dict[str, int] = {}  # of a place, known by one of its marks

    def news_for(self, model_id: str, reports: Sequence[ReplicaReport]) -> tuple[News, ...]:
        """What the replicas of a model should hear. Each also hears its own news, which its store skips, unless it is alone."""
        if not self._relay:
            return ()
        hearers = {report.replica_id for report in reports if report.model_id == model_id}
        return tuple(report.news for report in reports if report.news is not None and hearers - {report.replica_id})

    def collections(self, reports: Sequence[ReplicaReport], now_ns: int) -> Iterator[Collect]:
        """One order, to be told to all, for each place that is due.

        A place that is seen for the first time is due an interval later: whoever has just started has better things to do.
        """
        for report, marks in _keepers(reports):
            due_ns = self._due_ns.setdefault(min(marks), now_ns + self._every_ns)
            if due_ns <= now_ns:
                self._due_ns[min(marks)] = now_ns + self._every_ns
                yield Collect(report.replica_id, marks, self._deadline_s, self._hands_off_s)


def _keepers(reports: Sequence[ReplicaReport]) -> Iterator[tuple[ReplicaReport, frozenset[str]]]:
    """The replica that is to keep each place clean, an idle one if there is any; the longest idle is not always the same one, which does
    not matter."""
    known: set[str] = set()
    for report in sorted(reports, key=lambda report: (not report.idle, -report.idle_s, report.replica_id)):
        for tier in report.tiers:
            if tier.marks and known.isdisjoint(tier.marks):
                yield report, tier.marks
            known |= tier.marks
