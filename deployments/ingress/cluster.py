"""The machines as Ray knows them, and the memory scheduler as it tells of itself: the real
`ClusterPort`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray

from deployments.dialects.erllama_admin.cluster import (
    ClusterNode,
    MemoryRelease,
    MemoryUse,
    Pressure,
    SchedulerState,
)
from deployments.memory.messages import Reading, ReleaseRecord, SchedulerStatus
from deployments.model.ray_errors import mapped_errors


class RayCluster:
    """`scheduler` is the handle of the memory scheduler, None without one; `high` is the share of a
    memory above which it releases. One event loop.
    """

    def __init__(self, scheduler: Any | None, high: float) -> None:
        self._scheduler = scheduler
        self._high = high

    async def nodes(self) -> list[ClusterNode]:
        """See `ClusterPort`."""
        with mapped_errors():
            nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        return [cluster_node(node) for node in nodes]

    async def scheduler(self) -> SchedulerState | None:
        """See `ClusterPort`."""
        if self._scheduler is None:
            return None
        with mapped_errors():
            status: SchedulerStatus = await self._scheduler.status.remote()
        return scheduler_state(status, self._high)


def cluster_node(node: Mapping[str, Any]) -> ClusterNode:
    """`node` is an entry of `ray.nodes()`; a dead one has no resources."""
    resources: Mapping[str, float] = node.get("Resources") or {}
    return ClusterNode(
        id=str(node["NodeID"]),
        address=str(node.get("NodeManagerAddress", "")),
        alive=bool(node.get("Alive")),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
    )


def scheduler_state(status: SchedulerStatus, high: float) -> SchedulerState:
    return SchedulerState(
        started=status.started,
        evictions=sum(status.releases.values()),
        evicted_bytes=sum(status.freed_bytes.values()),
        memories=tuple(_memory_use(reading, status.exhausted, high) for reading in status.readings),
        last=tuple(_memory_release(record) for record in status.last),
        errors=dict(status.errors),
    )


def _memory_use(reading: Reading, exhausted: tuple[str, ...], high: float) -> MemoryUse:
    pressure = Pressure.NONE if reading.share < high else Pressure.HIGH
    if f"{reading.node_id} {reading.resource}" in exhausted:
        pressure = Pressure.EXHAUSTED
    return MemoryUse(reading.node_id, reading.resource, reading.used_bytes, reading.total_bytes, pressure)


def _memory_release(record: ReleaseRecord) -> MemoryRelease:
    order, result = record.order, record.result
    return MemoryRelease(
        time=record.at,
        model=order.model_id,
        replica=order.replica_id,
        node=order.node_id,
        reason=str(order.reason),
        kind=str(order.kind),
        bytes=result.freed_bytes,
        seconds=record.seconds,
        outcome=result.kept or "done",
    )
