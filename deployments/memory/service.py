"""The memory scheduler as Serve runs it: handles for groups of replicas, Ray's metrics for numbers.
One per application: see `app.py`.

Reaching replicas goes by `handle.broadcast`, which does not wake a model that is scaled to zero.
Not thread-safe: one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.config import BuildArgs
from deployments.memory.messages import Reading, ReleaseRecord, ReplicaLocation
from deployments.memory.scheduler import Scheduler
from deployments.serve_log import share_serve_log
from deployments.telemetry.ray_recorder import RayRecorder
from deployments.telemetry.recorder import Recorder

_ORDER_SLACK_S = 30.0  # beyond the save: a context of gigabytes is freed, a queue of threads is waited for


class ServeGroup:
    """The replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, method: str, *args: Any, timeout_s: float, first: bool = False) -> list[Any]:
        """See `scheduler.Group`."""
        try:
            # The public `results_async` knows one timeout for all: one hung replica would cost us
            # the answers of the others.
            response: Any = self._handle.broadcast(method, *args)
            results = await asyncio.wait_for(response._fetch_replica_results_async(), timeout_s)
        except DeploymentUnavailableError:
            return []
        except (TimeoutError, RayError, RayServeException) as error:
            return [error]
        return await gathered([_answer(result, timeout_s) for result in results], first=first)


async def _answer(result: Any, timeout_s: float) -> Any:
    try:
        return await asyncio.wait_for(result.get_async(), timeout_s)
    except TimeoutError:
        result.cancel()
        return TimeoutError(f"no answer within {timeout_s:g} s")
    except Exception as error:  # raised by the replica's method, or by Ray for a replica that died
        return error


async def gathered(answers: Sequence[Coroutine[Any, Any, Any]], *, first: bool) -> list[Any]:
    """All answers, in the order of their arrival; with `first` up to the first that says
    something."""
    tasks = [asyncio.get_running_loop().create_task(answer) for answer in answers]
    found: list[Any] = []
    try:
        for task in asyncio.as_completed(tasks):
            found.append(await task)
            if first and found[-1] is not None and not isinstance(found[-1], BaseException):
                return found
    finally:
        for left in tasks:
            left.cancel()
    return found


class RayMeter:
    """Gauges and counters for a recorder, which is that of Ray's metrics endpoint."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder or RayRecorder()

    def reading(self, reading: Reading, *, exhausted: bool) -> None:
        tags = {"node": reading.node_id, "resource": reading.resource}
        self._recorder.set("erllama_memory_used_bytes", reading.used_bytes, tags)
        self._recorder.set("erllama_memory_total_bytes", reading.total_bytes, tags)
        self._recorder.set("erllama_memory_exhausted", float(exhausted), tags)

    def release(self, record: ReleaseRecord) -> None:
        order = record.order
        tags = {"reason": str(order.reason), "kind": str(order.kind), "model": order.model_id}
        self._recorder.inc("erllama_memory_releases", 1, tags)
        self._recorder.inc("erllama_memory_freed_bytes", max(0, record.result.freed_bytes), tags)


def _group_of(app_name: str, deployment: str) -> ServeGroup:
    handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment, app_name, _check_exists=False)
    return ServeGroup(handle)


def replica_location() -> ReplicaLocation:
    """Where the replica runs whose process asks."""
    context = ray.get_runtime_context()
    gpu_ids = context.get_accelerator_ids().get("GPU", [])
    return ReplicaLocation(serve.get_replica_context().replica_id.unique_id, context.get_node_id(), tuple(gpu_ids))


class MemoryScheduler(Scheduler):
    """The deployment: `Scheduler` with Serve's log, from the start of its replica to the end.
    `handles` by model id. Serve runs `__init__` on the event loop that calls the other methods, so
    the rounds can begin there."""

    def __init__(self, args: dict[str, Any], handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        share_serve_log()
        config = BuildArgs.model_validate(args)
        super().__init__(
            config.scheduler,
            {model_id: ServeGroup(handle) for model_id, handle in handles.items()},
            {model.id: model.keep_alive_s for model in config.models if model.keep_alive_s is not None},
            order_timeout_s=config.policy.evict_save_timeout_s + _ORDER_SLACK_S,
            meter=RayMeter(),
        )
        self._watched: dict[str, tuple[str, str]] = {}
        self.start()

    async def watch(self, apps: Mapping[str, tuple[str, str]]) -> None:
        """Look after these models, too, until told otherwise: application and deployment by model id."""
        new = {model_id: app for model_id, app in apps.items() if self._watched.get(model_id) != app}
        for model_id in self._watched.keys() - apps.keys():
            self._groups.pop(model_id, None)
        self._groups |= {model_id: _group_of(*app) for model_id, app in new.items()}
        self._watched = dict(apps)

    def __del__(self) -> None:
        """How Serve stops a replica."""
        if hasattr(self, "_tasks"):  # not when `__init__` failed
            self.close()
