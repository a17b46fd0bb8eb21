"""Models of the hub as applications of Serve: the real `Launcher` of the manager."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from ray import serve

from deployments.config import BuildArgs, deployment_name
from deployments.hub.app_name import HubAppName, hub_prefix
from deployments.hub.policy import Residence
from deployments.hub.residents import Loadable, Running
from deployments.memory.service import ServeGroup
from deployments.model.states import LoadState, load_state
from deployments.model_app import model_app
from erllama.errors import ErllamaError
from erllama.stats import EvictResult, ModelMemory

log = logging.getLogger(__name__)

_LOOK_S = 3.0
_SAVE_SLACK_S = 30.0  # beyond the bound of a save
_MODEL = "model-"  # how deployments of models begin


def hub_apps(app_name: str) -> list[str]:
    """Those that there are. Asks Serve's controller, so it blocks."""
    return [name for name in serve.status().applications if name.startswith(hub_prefix(app_name))]


def hub_models(app_name: str) -> list[tuple[str, str]]:
    """Application and deployment of each of them. Asks Serve's controller, so it blocks."""
    applications = serve.status().applications
    return [
        (name, deployment)
        for name, application in applications.items()
        if name.startswith(hub_prefix(app_name))
        for deployment in application.deployments
    ]


class ServeLauncher:
    """`known` gives what those models of the hub would be loaded as whose deployments have these names:
    for what runs already. It blocks.
    """

    def __init__(
        self, app_name: str, args: BuildArgs, node_cpus: int, known: Callable[[Collection[str]], list[Loadable]]
    ) -> None:
        self._app_name = app_name
        self._args = args
        self._node_cpus = node_cpus
        self._known = known
        self._groups: dict[str, ServeGroup] = {}

    async def find(self) -> list[Running]:
        names = await asyncio.to_thread(hub_apps, self._app_name)
        if not names:
            return []
        loadables = await asyncio.to_thread(self._known, {self.deployment(name) for name in names})
        known = {(_model(loadable), loadable.build): loadable for loadable in loadables}
        found = []
        for name in names:
            parsed = self._parsed(name)
            found.append(await self._found(name, parsed.node_id, known.get((parsed.model, parsed.build))))
        return [running for running in found if running is not None]

    async def _found(self, name: str, node_id: str, loadable: Loadable | None) -> Running | None:
        if loadable is None:  # not what its name means now, or deleted
            log.info("event=hub_outdated app=%s", name)
            await asyncio.to_thread(serve.delete, name, False)  # it drains, as one that is redeployed does
            return None
        seen, now_ns = await self.look(name), time.monotonic_ns()
        running = Running(loadable, name, node_id, Residence.AWAKE, now_ns, now_ns)
        if seen is not None:
            _, memory = seen
            running.settled_ns = now_ns
            running.n_running = memory.n_running + memory.n_queued
            awake = memory.weights_loaded or memory.has_context
            running.residence = Residence.AWAKE if awake else Residence.ASLEEP
        return running

    async def start(self, loadable: Loadable, node_id: str) -> str:
        name = HubAppName(_model(loadable), loadable.build, node_id, f"{time.time_ns():x}").text_for(self._app_name)
        await asyncio.to_thread(self._start, loadable, node_id, name)
        return name

    def _start(self, loadable: Loadable, node_id: str, name: str) -> None:
        spec = loadable.spec
        # a model that sleeps holds no CPU: those that run share the node's
        num_cpus = 0.0 if spec.num_cpus == "auto" else spec.num_cpus
        app = model_app(spec, self._args, num_cpus=num_cpus, n_threads=self._node_cpus, node_id=node_id)
        target = serve.RunTarget(target=app, name=name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    async def state(self, app_name: str) -> LoadState:
        return await asyncio.to_thread(load_state, app_name, self.deployment(app_name))

    async def look(self, app_name: str) -> tuple[str, ModelMemory] | None:
        answers = await self._ask(app_name, "look", timeout_s=_LOOK_S)
        return next((answer for answer in answers if isinstance(answer, tuple)), None)

    async def sleep(self, app_name: str) -> bool:
        bound_s = self._args.policy.evict_save_timeout_s + _SAVE_SLACK_S
        answers = await self._ask(app_name, "unload", timeout_s=bound_s)
        return bool(answers) and all(isinstance(one, EvictResult) and one.weights_unloaded for one in answers)

    async def end(self, app_name: str) -> None:
        self._groups.pop(app_name, None)
        await asyncio.to_thread(serve.delete, app_name)

    def deployment(self, app_name: str) -> str:
        return f"{_MODEL}{self._parsed(app_name).model}"

    def _parsed(self, app_name: str) -> HubAppName:
        return HubAppName.parse(app_name, self._app_name)

    async def _ask(self, app_name: str, method: str, *, timeout_s: float) -> list[Any]:
        try:
            return await self._group(app_name).ask(method, timeout_s=timeout_s)
        except ErllamaError as error:  # Serve does not know it yet, or any more
            log.debug("event=hub_cannot_ask app=%s error=%r", app_name, error)
            return []

    def _group(self, app_name: str) -> ServeGroup:
        if app_name not in self._groups:
            handle: Any = serve.get_deployment_handle(self.deployment(app_name), app_name, _check_exists=False)
            self._groups[app_name] = ServeGroup(handle)
        return self._groups[app_name]


def _model(loadable: Loadable) -> str:
    """As names of applications and deployments have it."""
    return deployment_name(loadable.model_id).removeprefix(_MODEL)
