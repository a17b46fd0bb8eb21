"""How full the memory of each node of the cluster is: the real `Nodes` of the manager."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.hub.rooms import NodeReading
from deployments.memory.sources import SystemMemory

log = logging.getLogger(__name__)

_ANSWER_S = 5.0


def _read(node_id: str, total_bytes: int | None) -> NodeReading:
    [reading] = SystemMemory(total_bytes).read(node_id)
    return NodeReading(node_id, reading.used_bytes, reading.total_bytes, time.monotonic_ns())


class ClusterNodes:
    """This node is read here, each other one by a task there. Nodes without a CPU run no models.
    `total_bytes` is `scheduler.total_bytes`.
    """

    def __init__(self, total_bytes: int | None) -> None:
        self._total_bytes = total_bytes
        self._own_id = ray.get_runtime_context().get_node_id()
        self._task: Any = ray.remote(num_cpus=0, max_retries=0)(_read)

    async def read(self) -> list[NodeReading]:
        """A node that does not answer in time is left out: nothing is placed there."""
        nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        ids = [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        found = await asyncio.gather(*map(self._reading, ids))
        return [reading for reading in found if reading is not None]

    async def _reading(self, node_id: str) -> NodeReading | None:
        if node_id == self._own_id:
            return _read(node_id, self._total_bytes)
        asked_ns = time.monotonic_ns()  # clocks differ from node to node
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        reference = self._task.options(scheduling_strategy=there).remote(node_id, self._total_bytes)
        try:
            async with asyncio.timeout(_ANSWER_S):
                reading: NodeReading = await reference
        except (TimeoutError, RayError) as error:
            log.warning("event=hub_node_silent node=%s error=%r", node_id, error)
            return None
        return NodeReading(node_id, reading.used_bytes, reading.total_bytes, asked_ns)
