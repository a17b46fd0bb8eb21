"""A cluster that a test makes up, and models that tell of replicas which there are not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache_store.records import StoreStats, TierStats
from deployments.dialects.erllama_admin.cluster import (
    ClusterNode,
    MemoryRelease,
    MemoryUse,
    Pressure,
    SchedulerState,
)
from deployments.http.answers import Answer
from deployments.http.ports import ReplicaState
from erllama.errors import ErllamaError
from erllama.stats import (
    CacheCounters,
    CauseCount,
    Counters,
    EngineStats,
    ModelMemory,
    ModelStatus,
    SequenceInfo,
)
from tests.support.http_fakes import FakeModel

RELEASE = MemoryRelease(1_790_000_001.0, "demo", "r1", "n1", "pressure", "context", 4096, 0.25, "done")
SCHEDULER = SchedulerState(
    started=1_790_000_000.0,
    evictions=3,
    evicted_bytes=8192,
    memories=(
        MemoryUse("n1", "ram", 600, 1000, Pressure.NONE),
        MemoryUse("n1", "gpu:a", 95, 100, Pressure.EXHAUSTED),
        MemoryUse("n1", "gpu:b", 90, 100, Pressure.HIGH),
    ),
    last=(RELEASE,),
    errors={"memory_report": 1},
)
NODES = (
    ClusterNode("n1", "10.0.0.1", True, 2.0, 2.0, 900),
    ClusterNode("n2", "10.0.0.2", True, 4.0, 0.0, 800),
)


@dataclass
class FakeCluster:
    """A `ClusterPort`; an error in place of an answer is raised, and what `hangs` never answers."""

    told_nodes: Sequence[ClusterNode] | ErllamaError = NODES
    told_scheduler: SchedulerState | ErllamaError | None = SCHEDULER
    hangs: bool = False
    n_asked: int = 0

    async def nodes(self):
        self.n_asked += 1
        return list(await self._told(self.told_nodes))

    async def scheduler(self):
        return await self._told(self.told_scheduler)

    async def _told(self, answer):
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(answer, ErllamaError):
            raise answer
        return answer


def replica_state(replica_id: str = "r1", **counted: object) -> ReplicaState:
    """A busy replica with a store; `counted` replaces counters of its cache."""
    cache = CacheCounters(
        **{
            "hits": {"exact:live": 2, "partial:disk": 3},
            "misses": 4,
            "saves": {"finish": 5},
            "prefill_tokens_per_s": 200.0,
            "saved_prefill_ms": 1500.0,
            **counted,
        }
    )
    counts = Counters(
        requests_admitted=9, requests_finished=7, prompt_tokens=900, cached_tokens=600, completion_tokens=50
    )
    running = (SequenceInfo("req-1", "generating", 100, 60, 104, 105),)
    stats = EngineStats(
        4,
        3,
        ModelStatus.GENERATING,
        1,
        0,
        1,
        running=running,
        counts=counts,
        cache=cache,
        causes={"evicted": CauseCount(2, 300)},
    )
    tier = TierStats("disk", 5000, 6, 10_000, 700, 800, 1e9, 0.001, 3, 0, True)
    store = StoreStats((tier,), 10, 1, {"finish": 5}, {"full": 1}, {"digest": 2}, {"budget": 3, "gone": 1})
    memory = ModelMemory(2000, 3000, 0, 1, 1, 0.0, True, True, False)
    return ReplicaState(ModelStatus.GENERATING, stats, store, replica_id, "n1", 4096, memory)


@dataclass
class WatchedModel(FakeModel):
    """A `FakeModel` whose replicas tell what `answers` says, none while it is not ready."""

    answers: list[Answer[ReplicaState]] = field(default_factory=lambda: [Answer(replica_state())])

    async def states(self, deadline_s):
        return self.answers if self.state is True else []
