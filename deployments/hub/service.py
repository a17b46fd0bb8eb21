"""The manager of the hub's models as Serve runs it. One per application: see `app.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

import psutil
from ray import serve

from cache_store.config import parse_bytes
from deployments.config import BuildArgs, deployment_name
from deployments.hub.launcher import ServeLauncher, hub_apps
from deployments.hub.manager import HubManager
from deployments.hub.messages import FoundModel, Granted
from deployments.hub.nodes import ClusterNodes
from deployments.hub.residents import Loadable
from deployments.hub.specs import loadable_of
from deployments.memory.sources import NvidiaMemory
from deployments.model.drain import app_is_deleted, watch_drain
from deployments.model.ray_errors import mapped_errors
from deployments.serve_log import share_serve_log
from deployments.telemetry.ray_recorder import RayRecorder
from deployments.telemetry.recorder import Sample, SampleFeed
from erllama.errors import ErllamaError
from erllama.hub.hub import Hub
from erllama.hub.manifest import Manifest
from erllama.hub.name import ModelName

log = logging.getLogger(__name__)


class ModelManager(HubManager):
    """The deployment: `HubManager` with Serve's log, from the start of its replica to the end.

    `scheduler` is the handle of the memory scheduler, which looks after the hub's models as after the
    configured ones; None without one. Serve runs `__init__` on the event loop that calls the other
    methods.
    """

    def __init__(self, args: dict[str, Any], node_cpus: int, scheduler: Any | None = None) -> None:
        share_serve_log()
        config = BuildArgs.model_validate(args)
        self._scheduler = scheduler
        self._watched: dict[str, tuple[str, str]] = {}
        self._numbers = SampleFeed(RayRecorder())
        self._hub, self._load_timeout_s = Hub(config.hub), config.hub.load_timeout_s
        hub, gpu_memory = self._hub, NvidiaMemory()
        app_name = serve.get_replica_context().app_name
        others = repr((config.store, config.policy, config.scheduler, config.routing))
        memory_bytes = None if config.hub.memory_bytes is None else parse_bytes(config.hub.memory_bytes)

        def load(model_id: str, room_bytes: int) -> Loadable:
            gpus = [reading.total_bytes for reading in gpu_memory.read("")]
            gpu_bytes = int(config.scheduler.high * min(gpus)) if gpus else None
            return loadable_of(hub, config.hub, model_id, room_bytes, others, gpu_bytes=gpu_bytes)

        async def loadable(model_id: str, room_bytes: int) -> Loadable:
            return await asyncio.to_thread(load, model_id, room_bytes)

        def known(deployments: Collection[str]) -> list[Loadable]:
            most = int(config.scheduler.high * psutil.virtual_memory().total) if memory_bytes is None else memory_bytes
            names = [ModelName.parse(one.name).short for one in hub.list() if isinstance(one, Manifest)]
            return _loadable([name for name in names if deployment_name(name) in deployments], load, most)

        super().__init__(
            config.hub,
            ServeLauncher(app_name, config, node_cpus, known),
            ClusterNodes(config.scheduler.total_bytes),
            loadable,
            high=config.scheduler.high,
            memory_bytes=memory_bytes,
        )
        self.start()
        watch_drain(lambda: _end_models(app_name))

    async def names(self) -> list[str]:
        """What is in the hub, by the names that requests use."""
        manifests = await asyncio.to_thread(self._hub.list)
        return [ModelName.parse(one.name).short for one in manifests if isinstance(one, Manifest)]

    async def find(self, name: str) -> FoundModel:
        """Raises `ModelNotFound` with near names."""
        manifest = await asyncio.to_thread(self._hub.show, name)
        return FoundModel(ModelName.parse(manifest.name).short, manifest.digest, self._load_timeout_s)

    async def processes(self) -> dict[str, Granted]:
        """Where the models are that have a process."""
        return {
            running.model_id: Granted(running.app_name, self._processes.deployment(running))
            for running in self._processes
            if running.app_name
        }

    async def _round(self) -> None:
        await super()._round()
        self._count()
        await self._tell_scheduler()

    def _count(self) -> None:
        n_awake = sum(self._processes.is_awake(running.model_id) for running in self._processes)
        swaps = [Sample("erllama_hub_swaps", n, {"what": what}) for what, n in self._processes.swaps.items()]
        self._numbers.feed([*swaps, Sample("erllama_hub_models_in_memory", n_awake)])

    async def _tell_scheduler(self) -> None:
        apps = {
            model_id: (granted.app_name, granted.deployment) for model_id, granted in (await self.processes()).items()
        }
        if self._scheduler is None or apps == self._watched:
            return
        try:
            with mapped_errors():
                await self._scheduler.watch.remote(apps)
            self._watched = apps
        except ErllamaError as error:  # it starts, or is replaced: it is told with the next round
            log.info("event=hub_scheduler_not_told error=%s", error.message)

    def __del__(self) -> None:
        """How Serve stops a replica."""
        if hasattr(self, "_processes"):  # not when `__init__` failed
            self.close()


def _loadable(model_ids: Iterable[str], load: Callable[[str, int], Loadable], room_bytes: int) -> list[Loadable]:
    """What each would be loaded as; without those that cannot be."""
    found: list[Loadable] = []
    for model_id in model_ids:
        try:
            found.append(load(model_id, room_bytes))
        except ErllamaError as error:
            log.info("event=hub_not_loadable model=%s error=%s", model_id, error.message)
    return found


def _end_models(app_name: str) -> None:
    """With the application go the models that it has brought along."""
    if app_is_deleted():
        for name in hub_apps(app_name):
            serve.delete(name, _blocking=False)
