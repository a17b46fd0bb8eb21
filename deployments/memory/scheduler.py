"""The memory scheduler: asks all replicas every `interval_s`, decides with `ReleasePolicy`, orders
releases, spreads index deltas, has garbage collected.

Invariants: nobody needs it. It holds nothing that the next one could not ask for again, and
requests never pass through it. A round never waits for an order: orders run as tasks, and what they
freed counts until a younger reading shows it. No replica that is slow, hung or gone holds up the
others, and a model that is scaled to zero is not woken. One event loop owns everything here.

Replicas share a store, so what one of them wrote is of use to all: every replica gets all deltas,
and its store skips its own and what is about tiers that it does not have. One replica collects the
garbage of a tier.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cache_store import GarbageReport, IndexDelta
from deployments.config import SchedulerSpec
from deployments.memory.messages import (
    GarbageOrder,
    Reading,
    ReleaseOrder,
    ReleaseRecord,
    ReleaseResult,
    ReplicaReport,
    SchedulerStatus,
)
from deployments.memory.policy import ReleasePlan, ReleasePolicy

log = logging.getLogger(__name__)

_STUCK_ROUNDS = 20
# of the interval: Serve samples the load of replicas at fixed intervals too, and must not meet our
# questions each time
_JITTER = 0.1
_GC_DEADLINE_SHARE = 0.5  # of `gc_s`: how long one collection may take
# times `gc_s`: for how long the others leave a tier alone; longer than one interval, so that they
# are told again before it ends
_HANDS_OFF = 1.5


class Group(Protocol):
    """The replicas of one model."""

    async def ask(self, method: str, *args: Any, timeout_s: float, first: bool = False) -> list[Any]:
        """Call a method on every running replica: its results, and for those that raised or did not
        answer in time, the exceptions. Empty where no replica runs. `first`: wait for no more once
        one has answered something that is not None. Raises nothing for what happens to a
        replica."""
        ...


class Meter(Protocol):
    """Where numbers go that outlive a status: metrics."""

    def reading(self, reading: Reading, *, exhausted: bool) -> None:
        """How full a memory is; `exhausted`: too full, with nothing left to release."""

    def release(self, record: ReleaseRecord) -> None:
        """An order that has ended."""


class Scheduler:
    """`groups` by model id. `order_timeout_s` bounds one order: an evict waits for its save.
    `clock` is monotonic in ns."""

    def __init__(
        self,
        spec: SchedulerSpec,
        groups: Mapping[str, Group],
        keep_alive_s: Mapping[str, float],
        *,
        order_timeout_s: float,
        meter: Meter,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._spec = spec
        self._groups = dict(groups)
        self._order_timeout_s = order_timeout_s
        self._meter = meter
        self._clock = clock
        self._policy = ReleasePolicy(spec, keep_alive_s)
        self._status = SchedulerStatus(time.time())
        self._garbage_due_ns: dict[str, int] = {}  # of a tier, known by one of its ids
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._silent: set[tuple[str, str]] = set()  # whose failure to answer has been logged
        self._round_ns = clock()

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the rounds on the running loop."""
        self._main = asyncio.get_running_loop().create_task(self._run(), name="erllama-scheduler")

    def close(self) -> None:
        """Stop asking and wait for no one. Idempotent."""
        for task in (*self._tasks, self._main):
            if task is not None:
                task.cancel()

    async def check_health(self) -> None:
        """Raise `RuntimeError` when the rounds have ended or hang; Serve then starts another
        scheduler."""
        silent_s = (self._clock() - self._round_ns) / 1e9
        if self._main is not None and (
            self._main.done() or silent_s > _STUCK_ROUNDS * (self._spec.interval_s + self._spec.timeout_s)
        ):
            raise RuntimeError(f"the scheduler has not finished a round for {silent_s:.0f} s")

    async def status(self) -> SchedulerStatus:
        """What it knows and did since it started."""
        return copy.deepcopy(self._status)

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception as error:  # the next round may go well; a scheduler that stops frees nothing
                log.exception("event=scheduler_error")
                self._status.error("round", repr(error))
            await asyncio.sleep(self._spec.interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))

    # --- a round ----------------------------------------------------------------------------------

    async def tick(self) -> None:
        """One round: ask, decide, order."""
        asked_ns = self._clock()
        reports: list[ReplicaReport] = await self._ask_all("memory_report", self._spec.gossip)
        plan = self._policy.plan(reports, self._clock(), asked_ns)
        self._note(plan, reports)
        for order in plan.orders:
            self._spawn(self._release(order))
        for model_id in list(self._groups):
            deltas = _news_for(model_id, reports)
            if deltas:
                self._spawn(self._spread_deltas(model_id, deltas))
        for garbage in self._garbage_orders(reports, self._clock()):
            self._spawn(self._collect_garbage(garbage))
        self._round_ns = self._clock()

    async def _ask_all(self, method: str, *args: Any, extra_s: float = 0.0) -> list[Any]:
        asked = [self._ask(model_id, method, *args, extra_s=extra_s) for model_id in list(self._groups)]
        return [answer for answers in await asyncio.gather(*asked) for answer in answers]

    async def _ask(self, model_id: str, method: str, *args: Any, extra_s: float = 0.0) -> list[Any]:
        """What the replicas of a model answer within `timeout_s` of the config and `extra_s`; who
        does not is counted, and logged when that begins."""
        group = self._groups.get(model_id)
        if group is None:  # it has gone meanwhile
            return []
        answers = await group.ask(method, *args, timeout_s=self._spec.timeout_s + extra_s)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in failures:
            self._status.error(method, repr(failure))
        if failures and (model_id, method) not in self._silent:
            log.warning(
                "event=scheduler_no_answer model=%s method=%s replicas=%d error=%r",
                model_id,
                method,
                len(failures),
                failures[0],
            )
        (self._silent.add if failures else self._silent.discard)((model_id, method))
        return [answer for answer in answers if answer is not None and not isinstance(answer, BaseException)]

    def _note(self, plan: ReleasePlan, reports: Sequence[ReplicaReport]) -> None:
        known = {(report.replica_id, problem) for report in self._status.replicas for problem in report.problems}
        for report in reports:
            for problem in report.problems:
                if (report.replica_id, problem) not in known:
                    self._status.error("source", problem)
                    log.warning("event=memory_source_failed node=%s problem=%s", report.node_id, problem)
        self._status.ticked = time.time()
        self._status.readings = plan.readings
        # without deltas: a status is for people, and they can be megabytes
        self._status.replicas = tuple(replace(report, delta=None) for report in reports)
        self._status.exhausted = tuple(f"{node_id} {resource}" for node_id, resource in plan.exhausted)
        for reading in plan.readings:
            self._meter.reading(reading, exhausted=reading.memory in plan.exhausted)
            if reading.memory in plan.newly_exhausted:
                log.warning(
                    "event=memory_exhausted node=%s resource=%s share=%.3f: nothing idle is left to release",
                    reading.node_id,
                    reading.resource,
                    reading.share,
                )

    # --- orders -----------------------------------------------------------------------------------

    async def _release(self, order: ReleaseOrder) -> None:
        began_ns = self._clock()
        result = ReleaseResult(0, "cut short")
        try:
            result = await self._result(order)
        finally:  # whatever happened: a replica whose order never ends would never get another
            self._policy.ended(order, result.freed_bytes, self._clock())
        record = ReleaseRecord(time.time(), order, result, (self._clock() - began_ns) / 1e9)
        self._status.last.append(record)
        self._status.releases[order.kind] += 1
        self._status.freed_bytes[order.kind] += result.freed_bytes
        self._meter.release(record)
        if self._spec.log:
            log.info("event=memory_released %s", record.line())

    async def _result(self, order: ReleaseOrder) -> ReleaseResult:
        group = self._groups.get(order.model_id)
        if group is None:
            return ReleaseResult(0, "gone")
        answers = await group.ask("release", order, timeout_s=self._order_timeout_s, first=True)
        for answer in answers:
            if isinstance(answer, ReleaseResult):
                return answer
        failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        if failure is None:
            return ReleaseResult(0, "gone")
        self._status.error("release", repr(failure))
        return ReleaseResult(0, f"failed: {failure!r}")

    # --- the store's upkeep -----------------------------------------------------------------------

    async def _spread_deltas(self, model_id: str, deltas: Sequence[IndexDelta]) -> None:
        await self._ask(model_id, "apply_deltas", deltas)
        self._status.deltas += len(deltas)

    def _garbage_orders(self, reports: Sequence[ReplicaReport], now_ns: int) -> Iterator[GarbageOrder]:
        """One order, to be told to all, for each tier that is due. One that is seen for the first
        time is due an interval later: a replica that has just started has better things to do."""
        gc_s = self._spec.gc_s
        next_ns = now_ns + int(gc_s * 1e9)
        for report, tier_ids in _collectors(reports):
            if self._garbage_due_ns.setdefault(min(tier_ids), next_ns) <= now_ns:
                self._garbage_due_ns[min(tier_ids)] = next_ns
                yield GarbageOrder(report.replica_id, tier_ids, gc_s * _GC_DEADLINE_SHARE, gc_s * _HANDS_OFF)

    async def _collect_garbage(self, order: GarbageOrder) -> None:
        reports: list[GarbageReport] = await self._ask_all("collect_garbage", order, extra_s=order.deadline_s)
        self._status.tiers_collected += sum(report.is_done for report in reports)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._status.error("task", repr(error))
            log.error("event=scheduler_error error=%r", error)


def _news_for(model_id: str, reports: Sequence[ReplicaReport]) -> list[IndexDelta]:
    """What the replicas of a model should learn; not the news of one that is alone, which are its
    own."""
    replicas = {report.replica_id for report in reports if report.model_id == model_id}
    return [report.delta for report in reports if report.delta is not None and replicas - {report.replica_id}]


def _collectors(reports: Sequence[ReplicaReport]) -> Iterator[tuple[ReplicaReport, frozenset[str]]]:
    """The replica that is to collect each tier's garbage: the longest idle one of those that have
    the tier. That is not always the same replica, which does not matter."""
    known: set[str] = set()
    for report in sorted(reports, key=lambda report: (not report.idle, -report.idle_s, report.replica_id)):
        for ids in report.tiers.values():
            if ids and known.isdisjoint(ids):
                yield report, ids
            known |= ids
