"""The scheduler's rounds over fake replicas: who is asked, what is ordered, and that nobody's
trouble is anybody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from cache_store import GarbageReport, IndexDelta
from deployments.app import build_app
from deployments.config import BuildArgs, ReleaseKind, SchedulerSpec
from deployments.memory import service
from deployments.memory.messages import (
    RAM,
    GarbageOrder,
    Reading,
    ReleaseOffer,
    ReleaseOrder,
    ReleaseReason,
    ReleaseRecord,
    ReleaseResult,
    ReplicaReport,
    SchedulerStatus,
)
from deployments.memory.scheduler import Scheduler
from deployments.memory.service import gathered
from deployments.serve_log import _is_worth_a_line

GB = 1 << 30
TIER_IDS = frozenset({"aa"})
SPEC = SchedulerSpec(min_bytes=1, interval_s=1, timeout_s=1, gc_s=10)


class FakeReplica:
    """Holds one context of 20 GB on a machine of 100 GB of which others use 70."""

    def __init__(self, name: str, *, gb: int = 20, elsewhere: int = 70) -> None:
        self.name = name
        self.held = gb * GB
        self.elsewhere = elsewhere * GB
        self.delta: IndexDelta | None = None
        self.applied: list[IndexDelta] = []
        self.garbage_orders: list[GarbageOrder] = []
        self.orders: list[ReleaseOrder] = []
        self.failure: Exception | None = None
        self.problems: tuple[str, ...] = ()
        self.go = asyncio.Event()
        self.go.set()

    async def call(self, method: str, *args: Any) -> Any:
        return await getattr(self, method)(*args)

    async def memory_report(self, with_delta: bool) -> ReplicaReport:
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        delta, self.delta = self.delta, None
        return ReplicaReport(
            self.name,
            self.name,
            "node",
            idle_s=99.0,
            readings=(Reading("node", RAM, self.elsewhere + self.held, 100 * GB),),
            offers=(ReleaseOffer(ReleaseKind.CONTEXT, RAM, self.held),) if self.held else (),
            tiers={"disk": TIER_IDS},
            delta=delta if with_delta else None,
            problems=self.problems,
        )

    async def release(self, order: ReleaseOrder) -> ReleaseResult | None:
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        if order.replica_id != self.name:
            return None
        self.orders.append(order)
        freed, self.held = self.held, 0
        return ReleaseResult(freed)

    async def apply_deltas(self, deltas: list[IndexDelta]) -> None:
        self.applied += deltas

    async def collect_garbage(self, order: GarbageOrder) -> GarbageReport | None:
        self.garbage_orders.append(order)
        return GarbageReport(0, None, 0, 0, 0, is_done=True) if order.replica_id == self.name else None


class FakeGroup:
    def __init__(self, *replicas: FakeReplica) -> None:
        self.replicas = replicas

    async def ask(self, method: str, *args: Any, timeout_s: float, first: bool = False) -> list[Any]:
        return await asyncio.gather(*(self.one(replica, method, args) for replica in self.replicas))

    async def one(self, replica: FakeReplica, method: str, args: tuple[Any, ...]) -> Any:
        if not replica.go.is_set():  # hung: what a real group says when the time is up
            return TimeoutError("no answer")
        try:
            return await replica.call(method, *args)
        except Exception as error:
            return error


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        self.now += 1000
        return self.now


class FakeMeter:
    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.exhausted: list[bool] = []
        self.releases: list[ReleaseRecord] = []

    def reading(self, reading: Reading, *, exhausted: bool) -> None:
        self.readings.append(reading)
        self.exhausted.append(exhausted)

    def release(self, record: ReleaseRecord) -> None:
        self.releases.append(record)


class Fixture:
    def __init__(
        self, *groups: FakeGroup, spec: SchedulerSpec = SPEC, keep_alive_s: dict[str, float] | None = None
    ) -> None:
        self.clock, self.meter = Clock(), FakeMeter()
        by_model = {group.replicas[0].name if group.replicas else "none": group for group in groups}
        self.scheduler = Scheduler(
            spec,
            by_model,
            keep_alive_s or {},
            order_timeout_s=1.0,
            meter=self.meter,
            clock=self.clock,
        )

    async def round(self, seconds: float = 1.0) -> SchedulerStatus:
        self.clock.now += int(seconds * 1e9)
        await self.scheduler.tick()
        await self.settled()
        return await self.scheduler.status()

    async def settled(self) -> None:
        """Until all that the rounds so far have begun has ended."""
        while self.scheduler._tasks:
            await asyncio.gather(*self.scheduler._tasks)


def run(story: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def test_an_action_is_done_counted_shown_and_logged_in_one_line(caplog):
    async def story() -> None:
        replica = FakeReplica("m")
        it = Fixture(FakeGroup(replica))
        with caplog.at_level(logging.INFO, "deployments.memory.scheduler"):
            status = await it.round()
        assert [order.kind for order in replica.orders] == [ReleaseKind.CONTEXT]
        (record,) = status.last
        assert (record.order.reason, record.order.model_id, record.result) == (
            ReleaseReason.PRESSURE,
            "m",
            ReleaseResult(20 * GB),
        )
        assert (status.releases, status.freed_bytes) == ({"context": 1}, {"context": 20 * GB})
        assert it.meter.releases == [record]
        assert it.meter.readings == list(status.readings) == [Reading("node", RAM, 90 * GB, 100 * GB)]
        assert it.meter.exhausted == [False]
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(
            "event=memory_released reason=pressure kind=context model=m replica=m node=node resource=ram "
        )
        assert f"freed_bytes={20 * GB}" in line
        status = await it.round()
        assert len(status.last) == 1
        assert status.readings[0].used_bytes == 70 * GB

    run(story)


def test_a_memory_with_nothing_left_to_free_is_logged_once(caplog):
    async def story() -> None:
        it = Fixture(FakeGroup(FakeReplica("m", gb=0, elsewhere=95)))
        for _ in range(5):
            status = await it.round()
        assert status.exhausted == ("node ram",)
        assert it.meter.exhausted[-1]

    run(story)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["event=memory_exhausted"]


def test_a_replica_that_hangs_or_fails_holds_up_nobody(caplog):
    async def story() -> None:
        hung, failing, well = FakeReplica("hung"), FakeReplica("failing"), FakeReplica("well")
        hung.go.clear()
        failing.failure = RuntimeError("out of order")
        it = Fixture(FakeGroup(well, hung), FakeGroup(failing), FakeGroup())
        status = await it.round()
        assert [record.order.replica_id for record in status.last] == ["well"]
        assert [report.replica_id for report in status.replicas] == ["well"]
        status = await it.round()
        assert status.errors == {"memory_report": 4}
        assert len([record for record in caplog.records if "memory_report" in record.getMessage()]) == 2, (
            "logged when it begins"
        )

    run(story)


def test_an_order_that_does_not_end_stops_neither_the_rounds_nor_later_orders():
    async def story() -> None:
        slow, quick = FakeReplica("slow"), FakeReplica("quick", gb=0, elsewhere=90)
        it = Fixture(FakeGroup(slow), FakeGroup(quick))
        waiting = asyncio.Event()

        async def wait(order: ReleaseOrder) -> ReleaseResult:
            await waiting.wait()
            return ReleaseResult(20 * GB)

        slow.release = wait  # type: ignore[method-assign]
        await it.scheduler.tick()
        await asyncio.sleep(0)
        quick.held = 10 * GB
        quick.elsewhere = 90 * GB
        await it.scheduler.tick()
        for _ in range(10):
            await asyncio.sleep(0)
        assert [order.replica_id for order in quick.orders] == ["quick"]
        waiting.set()
        await it.settled()
        assert {record.order.replica_id for record in (await it.scheduler.status()).last} == {"slow", "quick"}

    run(story)


def test_an_order_that_fails_is_reported_and_tried_again_after_the_cooldown():
    async def story() -> None:
        replica = FakeReplica("m")
        it = Fixture(FakeGroup(replica))
        original = replica.release

        async def fail(order: ReleaseOrder) -> ReleaseResult:
            raise RuntimeError("no")

        replica.release = fail  # type: ignore[method-assign]
        status = await it.round()
        assert "no" in status.last[0].result.kept
        assert status.errors == {"release": 1}
        replica.release = original  # type: ignore[method-assign]
        await it.round(10)
        assert not replica.orders
        await it.round(60)
        assert replica.orders

    run(story)


def test_news_go_to_all_but_a_model_whose_only_replica_told_them():
    async def story() -> None:
        one, twin, other = FakeReplica("one", gb=0), FakeReplica("twin", gb=0), FakeReplica("other", gb=0)
        it = Fixture(FakeGroup(one), FakeGroup(other))
        delta = one.delta = IndexDelta("owner")
        status = await it.round()
        assert (one.applied, other.applied) == ([], [delta])
        assert status.deltas == 1
        await it.round()
        assert other.applied == [delta], "told once"
        off = Fixture(FakeGroup(twin), FakeGroup(other), spec=SchedulerSpec(gossip=False))
        twin.delta = delta
        await off.round()
        assert other.applied == [delta]

    run(story)


def test_one_replica_collects_the_garbage_of_a_tier_at_each_interval_and_all_others_hear_of_it():
    async def story() -> None:
        one, other = FakeReplica("one", gb=0), FakeReplica("other", gb=0)
        it = Fixture(FakeGroup(one), FakeGroup(other))
        await it.round()
        assert not one.garbage_orders, "not at once: whoever has just started has better things to do"
        await it.round(9)
        await it.round(1)
        status = await it.round(1)
        assert one.garbage_orders == other.garbage_orders
        (order,) = one.garbage_orders
        assert (order.tier_ids, status.tiers_collected) == (TIER_IDS, 1)
        assert order.for_s > SPEC.gc_s, "until it is told again"
        await it.round(10)
        assert len(one.garbage_orders) == 2

    run(story)


def test_a_source_that_fails_is_counted_and_logged_when_it_begins_to(caplog):
    async def story() -> None:
        replica = FakeReplica("m", gb=0)
        it = Fixture(FakeGroup(replica))
        replica.problems = ("CallableMemory: ImportError('x')",)
        for _ in range(3):
            status = await it.round()
        assert status.errors == {"source": 1}

    run(story)
    assert len(caplog.records) == 1


def test_the_loop_goes_on_after_a_round_that_failed_and_its_end_is_noticed(caplog):
    async def story() -> None:
        it = Fixture(FakeGroup(FakeReplica("m", gb=0)), spec=SchedulerSpec(interval_s=0.1))
        failed, went_on = 0, asyncio.Event()

        async def tick() -> None:
            nonlocal failed
            failed += 1
            if failed == 1:
                raise RuntimeError("a bug")
            went_on.set()

        it.scheduler.tick = tick  # type: ignore[method-assign]
        it.scheduler.start()
        await it.scheduler.check_health()
        await went_on.wait()
        assert (await it.scheduler.status()).errors == {"round": 1}
        it.clock.now += 10**15
        with pytest.raises(RuntimeError, match="has not finished a round"):
            await it.scheduler.check_health()
        it.scheduler.close()
        it.scheduler.close()
        with pytest.raises(RuntimeError):
            await it.scheduler.check_health()

    run(story)


async def turn() -> None:
    await asyncio.sleep(0)


def test_the_deployments_rounds_begin_with_it_and_end_when_serve_stops_it(monkeypatch):
    monkeypatch.setattr(service, "share_serve_log", lambda: None)
    args = BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}]})

    async def story() -> None:
        deployment = service.MemoryScheduler(args.model_dump(mode="json"), {})
        while not (await deployment.status()).ticked:
            await turn()
        await deployment.check_health()
        deployment.__del__()
        deployment.close()
        while len(asyncio.all_tasks()) > 1:
            await turn()
        with pytest.raises(RuntimeError, match="has not finished a round"):
            await deployment.check_health()

    asyncio.run(story())
    service.MemoryScheduler.__new__(service.MemoryScheduler).__del__()  # one that failed to start


@pytest.mark.parametrize(("first", "expected"), [(True, [None, "done"]), (False, [None, "done", "late"])])
def test_an_order_waits_for_the_one_it_names_and_a_question_for_all(first, expected):
    async def answer(value: Any, after: asyncio.Event, done: asyncio.Event | None = None) -> Any:
        await after.wait()
        if done is not None:
            done.set()
        return value

    async def story() -> None:
        now, then = asyncio.Event(), asyncio.Event()
        now.set()
        last = asyncio.Event() if first else then  # a replica that hangs
        assert (
            await gathered([answer(None, now), answer("done", now, then), answer("late", last)], first=first)
            == expected
        )

    run(story)


# --- the config -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"high": 1.1}, "high"),
        ({"low": 0}, "low"),
        ({"high": 0.7}, "low (0.75) must be below high (0.7)"),
        ({"low": 0.85}, "low"),
        ({"interval_s": 0}, "interval_s"),
        ({"interval_s": ".inf"}, "interval_s"),
        ({"min_bytes": 0}, "min_bytes"),
        ({"cooldown_s": -1}, "cooldown_s"),
        ({"release_kinds": ["context", "weight"]}, "release_kinds"),
        ({"release_kinds": ["context", "context"]}, "release_kinds"),
        ({"sources": ["sistem"]}, "sources"),
        ({"sources": ["system", "system"]}, "sources"),
        ({"sources": ["none", "system"]}, "sources"),
        ({"sources": ["module:"]}, "sources"),
        ({"total_bytes": 0}, "total_bytes"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"gc_s": 0}, "gc_s"),
        ({"gosip": True}, "gosip"),
    ],
)
def test_a_wrong_scheduler_is_refused_by_name(section, named):
    with pytest.raises(ValidationError) as caught:
        BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], "scheduler": section})
    assert named in str(caught.value)
    assert "scheduler" in str(caught.value)


def test_a_config_survives_the_way_to_the_replica_and_keep_alive_needs_a_scheduler():
    model = {"id": "x", "path": "a", "keep_alive_s": 60}
    scheduler = {"release_kinds": ["weights", "context"], "sources": ["my.probe:read"]}
    args = BuildArgs.model_validate({"models": [model], "scheduler": scheduler})
    assert BuildArgs.model_validate(args.model_dump(mode="json")) == args
    assert args.scheduler.release_kinds == (ReleaseKind.WEIGHTS, ReleaseKind.CONTEXT)
    with pytest.raises(ValidationError, match=r"keep_alive_s needs scheduler\.enabled"):
        BuildArgs.model_validate({"models": [model], "scheduler": {"enabled": False}})
    with pytest.raises(ValidationError, match="keep_alive_s"):
        BuildArgs.model_validate({"models": [{**model, "keep_alive_s": 0}]})


# --- the application ------------------------------------------------------------------------------


def test_what_the_scheduler_asks_all_the_time_is_not_in_the_log_unless_it_fails():
    def line(message: str, **extra: Any) -> logging.LogRecord:
        return logging.makeLogRecord({"name": "ray.serve", "msg": message, **extra})

    assert not _is_worth_a_line(line("CALL memory_report OK 1.0ms", serve_access_log=True))
    assert _is_worth_a_line(line("CALL memory_report ERROR 1.0ms", serve_access_log=True))
    assert _is_worth_a_line(line("CALL generate OK 1.0ms", serve_access_log=True))
    assert _is_worth_a_line(line("CALL memory_report OK 1.0ms"))


def test_the_application_has_one_scheduler_unless_it_is_switched_off():
    models = [{"id": name, "path": "a"} for name in ("x", "y")]

    def deployed(**scheduler: bool) -> Any:
        ingress = build_app({"models": models, "scheduler": scheduler})._bound_deployment
        return ingress.init_args[2]

    service = deployed()._bound_deployment
    assert (service.name, service.num_replicas, service.ray_actor_options["num_cpus"]) == ("scheduler", 1, 0)
    assert set(service.init_args[1]) == {"x", "y"}
    assert deployed(enabled=False) is None
