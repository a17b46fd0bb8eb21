"""What a replica reports to the memory scheduler and how it takes orders: pure fakes first, then
the real engine and store behind them.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cache_store import Store, StoreConfig, TierConfig
from cache_store.records import StoreStats, TierStats
from deployments.config import ModelSpec, ReleaseKind
from deployments.memory.messages import (
    RAM,
    GarbageOrder,
    Reading,
    ReleaseOffer,
    ReleaseOrder,
    ReleaseResult,
    ReplicaLocation,
)
from deployments.memory.replica import ReplicaMemory, tier_offers
from deployments.memory.sources import NvidiaMemory
from deployments.model.replica import ModelReplica
from erllama.cache.policy import CachePolicy
from erllama.model import Model
from erllama.stats import EvictResult, ModelMemory
from erllama.testing.stub_backend import StubBackend
from tests.support.replica_kit import complete

IDLE = ModelMemory(
    kv_bytes=1000,
    weights_bytes=500,
    weights_private_bytes=100,
    n_running=0,
    n_queued=0,
    idle_s=60.0,
    has_context=True,
    weights_loaded=True,
    on_gpu=False,
)
HERE = ReplicaLocation("r1", "node")


class FakeModel:
    store = None

    def __init__(self, memory: ModelMemory = IDLE) -> None:
        self.now = memory
        self.calls: list[str] = []

    def memory(self) -> ModelMemory:
        return self.now

    def evict(self) -> EvictResult:
        self.calls.append("evict")
        return EvictResult(10, 1000)

    def unload(self) -> EvictResult:
        self.calls.append("unload")
        return EvictResult(10, 1100, weights_unloaded=True)


def order(kind: ReleaseKind = ReleaseKind.CONTEXT, replica_id: str = "r1", idle_s: float = 60.0) -> ReleaseOrder:
    return ReleaseOrder(replica_id, "m", "node", RAM, kind, 1000, idle_s)


def release(memory: ModelMemory, one: ReleaseOrder) -> tuple[ReleaseResult | None, list[str]]:
    model = FakeModel(memory)
    return ReplicaMemory(model, "m", HERE, ()).release(one), model.calls


@pytest.mark.parametrize(
    ("memory", "one", "expected", "calls"),
    [
        (IDLE, order(), ReleaseResult(1000), ["evict"]),
        (IDLE, order(ReleaseKind.WEIGHTS), ReleaseResult(1100), ["unload"]),
        (IDLE, order(replica_id="r2"), None, []),
        (replace(IDLE, n_running=1, idle_s=0.0), order(), ReleaseResult(0, "in use"), []),
        (replace(IDLE, n_queued=1, idle_s=0.0), order(ReleaseKind.WEIGHTS), ReleaseResult(0, "in use"), []),
        (replace(IDLE, idle_s=2.0), order(), ReleaseResult(0, "used since"), []),
        (IDLE, ReleaseOrder("r1", "m", "node", RAM, ReleaseKind.RAM_TIER, 1000, tier="ram_file"), ReleaseResult(0), []),
    ],
)
def test_an_order_is_carried_out_by_whom_it_names_if_nobody_needs_the_memory(memory, one, expected, calls):
    assert release(memory, one) == (expected, calls)


def test_a_report_offers_the_context_and_what_of_the_weights_is_not_mapped_from_the_file():
    report = ReplicaMemory(FakeModel(), "m", HERE, ()).report(with_delta=True)
    assert report.offers == (ReleaseOffer(ReleaseKind.CONTEXT, RAM, 1000), ReleaseOffer(ReleaseKind.WEIGHTS, RAM, 100))
    assert (report.replica_id, report.model_id, report.node_id, report.loaded, report.idle_s) == (
        "r1",
        "m",
        "node",
        True,
        60.0,
    )
    gone = replace(IDLE, kv_bytes=0, weights_bytes=0, weights_private_bytes=0, has_context=False, weights_loaded=False)
    report = ReplicaMemory(FakeModel(gone), "m", HERE, ()).report(with_delta=True)
    assert (report.offers, report.loaded) == ((), False)


class TwoGpus(NvidiaMemory):
    def __init__(self) -> None:
        pass

    def read(self, node_id: str) -> tuple[Reading, ...]:
        return (Reading(node_id, "gpu:x", 1, 2),)

    def resources(self, ids: tuple[str, ...]) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"gpu:{id}" for id in ids)


def test_what_is_on_gpus_is_offered_to_them_in_equal_parts_and_freed_in_equal_parts():
    model = FakeModel(replace(IDLE, on_gpu=True))
    memory = ReplicaMemory(model, "m", replace(HERE, gpu_ids=("x", "y")), [TwoGpus()])
    offers = memory.report(with_delta=True).offers
    assert offers == tuple(
        ReleaseOffer(kind, gpu, n)
        for kind, n in ((ReleaseKind.CONTEXT, 500), (ReleaseKind.WEIGHTS, 250))
        for gpu in ("gpu:x", "gpu:y")
    )
    assert memory.release(replace(order(), resource="gpu:x")) == ReleaseResult(500)


def test_a_tier_in_ram_is_offered_where_a_lower_tier_outlives_it():
    def stats(*tiers: tuple[str, int]) -> StoreStats:
        return StoreStats(tuple(TierStats(label, n, 1, None, 0, 0, 0.0, 0.0, 0, 0, True) for label, n in tiers), 0, 0)

    assert list(tier_offers(stats(("ram_file", 7), ("disk", 9)))) == [
        ReleaseOffer(ReleaseKind.RAM_TIER, RAM, 7, "ram_file")
    ]
    assert list(tier_offers(stats(("ram_file", 7), ("ram_file2", 9)))) == []
    assert list(tier_offers(stats(("disk", 7), ("ram_file", 9)))) == []
    assert list(tier_offers(stats(("ram_file", 0), ("s3", 9)))) == []


# --- engine and store -----------------------------------------------------------------------------


def make_replica(folder: Path, name: str, *above: TierConfig) -> ModelReplica:
    (folder / "model.gguf").write_bytes(b"not read by the stub")
    spec = ModelSpec(id="stub", path=str(folder / "model.gguf"), fingerprint="trusted", n_ctx=1024, n_parallel=2)
    store = StoreConfig(tiers=(*above, TierConfig(str(folder / "kv"), max_bytes=1 << 30)))
    return ModelReplica(
        spec,
        n_cpus=1,
        store=store,
        policy=CachePolicy(min_tokens=32, cold_min_tokens=32),
        location=ReplicaLocation(name, "node"),
        make_model=partial(Model, make_backend=StubBackend.from_config),
    )


@pytest.fixture
def replicas(tmp_path):
    made = [make_replica(tmp_path, name) for name in ("r1", "r2")]
    yield made
    for replica in made:
        replica.close()


def store_of(replica: ModelReplica) -> Store:
    store = replica._model.store
    assert store is not None
    return store


def test_what_one_replica_stored_another_knows_once_it_has_heard(replicas):
    async def story() -> None:
        one, other = replicas
        for replica in replicas:
            await asyncio.to_thread(store_of(replica).wait_loaded, 30)
        done = await complete(one, range(3, 103), response_tokens=1, seed=1)
        assert len(done.tokens) == 1
        result = await one.evict()  # waits for the store
        assert result.n_tokens
        assert store_of(other).prefixes() == ()
        report = pickle.loads(pickle.dumps(await one.memory_report(True)))
        assert (await one.memory_report(True)).delta is None, "told once"
        await other.apply_deltas([report.delta])
        assert [prefix.n_tokens for prefix in store_of(other).prefixes()] == [
            prefix.n_tokens for prefix in store_of(one).prefixes()
        ]

    asyncio.run(story())


def test_a_tiers_garbage_is_collected_by_whom_the_order_names_and_left_alone_by_the_others(replicas):
    async def story() -> None:
        for replica in replicas:
            await asyncio.to_thread(store_of(replica).wait_loaded, 30)
        reports = [await replica.memory_report(True) for replica in replicas]
        (mine,), (others,) = (report.tiers.values() for report in reports)
        assert mine & others, "both know that it is one directory"
        one = GarbageOrder("r1", mine, deadline_s=10.0, for_s=60.0)
        collected = await replicas[0].collect_garbage(one)
        assert collected is not None
        assert collected.is_done, collected
        assert await replicas[1].collect_garbage(one) is None
        assert (
            await replicas[1].collect_garbage(replace(one, replica_id="r2", tier_ids=frozenset({"elsewhere"}))) is None
        )

    asyncio.run(story())


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no file system in RAM")
def test_of_a_real_tier_in_ram_goes_what_the_disk_has_too(tmp_path):
    async def story(replica: ModelReplica) -> None:
        await complete(replica, range(3, 103), response_tokens=1, seed=1)
        await replica.evict()  # waits until the lower tier has it
        (offer,) = (offer for offer in (await replica.memory_report(False)).offers if offer.tier)
        result = await replica.release(
            ReleaseOrder("r1", "stub", "node", RAM, ReleaseKind.RAM_TIER, offer.n_bytes, tier=offer.tier)
        )
        assert result == ReleaseResult(offer.n_bytes)
        assert not [offer for offer in (await replica.memory_report(False)).offers if offer.tier]
        assert store_of(replica).prefixes()[0].tiers == ("disk",)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        replica = make_replica(tmp_path, "r1", TierConfig(folder, max_bytes=1 << 28))
        try:
            asyncio.run(story(replica))
        finally:
            replica.close()


def test_a_real_context_goes_by_order_and_not_while_it_is_in_use(replicas):
    async def story() -> None:
        replica = replicas[0]
        await complete(replica, [1, 2, 3], response_tokens=1, seed=1)
        report = await replica.memory_report(False)
        assert report.idle
        assert report.loaded
        order = ReleaseOrder("r1", "stub", "node", RAM, ReleaseKind.WEIGHTS, 1, report.idle_s)
        assert await replica.release(replace(order, idle_s=report.idle_s + 99)) == ReleaseResult(0, "used since")
        result = await replica.release(order)
        assert result is not None
        assert result.kept == ""
        assert not (await replica.memory_report(False)).loaded
        await complete(replica, [1, 2, 3], response_tokens=1, seed=1)
        assert (await replica.memory_report(False)).loaded

    asyncio.run(story())
