"""`Cluster`: a running erllama application from inside its Ray cluster, for jobs, drivers, tasks
and actors. Blocking.

    from deployments.jobs.cluster import Cluster
    with Cluster.connect() as cluster:
        print(cluster.models(), cluster.model("demo").complete("Once upon a time",
        response_tokens=16).text)

Everything goes by Serve handle, nothing over HTTP. Asking never wakes a model that is scaled to
zero; only a request does. Not for use on an event loop: `ModelClient` is for that.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import ray
from ray import serve

from cache_store import StoreStats
from deployments.config import deployment_name
from deployments.http.model_library import ModelStanding
from deployments.http.model_names import ModelNames
from deployments.hub.messages import FoundModel
from deployments.jobs.hub_models import HUB, HubModels
from deployments.jobs.loop_thread import LoopThread
from deployments.jobs.remote_model import RemoteModel, blocking_handle
from deployments.model.client import APP_NAME, ModelClient
from deployments.model.ray_errors import mapped_errors
from erllama.errors import EngineStopped, ErllamaError, ModelNotFound
from erllama.events import Completion
from erllama.stats import EngineStats, EvictResult

INGRESS = "ingress"
SCHEDULER = "scheduler"
_CONNECT_S = 5.0
_ANSWER_S = 30.0  # for what the ingress and the scheduler have at hand; a start of either takes a few seconds


class ClusterUnavailable(ErllamaError):
    """There is no cluster at the address, or no such application runs on it. The message says what
    does."""

    http_status = 503
    code = "cluster_unavailable"


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model as it runs. `state` and `message` are Serve's; `replicas` counts those that run,
    `engines` has one entry for each.

    The totals are sums over the replicas that run now, since each of them started. `hit_ratio` is
    the share of prompt tokens that were taken over instead of computed.
    """

    id: str
    aliases: tuple[str, ...]
    state: str
    message: str
    replicas: int
    engines: tuple[EngineStats, ...]

    @property
    def running(self) -> int:
        return sum(engine.n_running for engine in self.engines)

    @property
    def queued(self) -> int:
        return sum(engine.n_queued for engine in self.engines)

    @property
    def prompt_tokens(self) -> int:
        return sum(engine.counts.prompt_tokens for engine in self.engines)

    @property
    def cached_tokens(self) -> int:
        return sum(engine.counts.cached_tokens for engine in self.engines)

    @property
    def completion_tokens(self) -> int:
        return sum(engine.counts.completion_tokens for engine in self.engines)

    @property
    def hit_ratio(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Cluster:
    """Client of one application. Close it, or use it as a context manager, to leave a cluster that
    `connect` joined; the clients that `model` gave end with it."""

    def __init__(self, app_name: str, *, joined: bool = False) -> None:
        self._app = app_name
        self._joined = joined
        self._loop = LoopThread()
        self._clients: dict[tuple[object, ...], RemoteModel] = {}
        self._hub_models: HubModels | None = None
        self._handles: dict[str, Any] = {}

    @classmethod
    def connect(cls, app_name: str = APP_NAME, address: str = "auto") -> Cluster:
        """The application `app_name`. A process that is part of a cluster already stays in it,
        whatever `address` says."""
        joined = not ray.is_initialized()
        if joined:
            _join(address)
        cluster = cls(app_name, joined=joined)
        try:
            cluster._application()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def close(self) -> None:
        """End the clients of models, and leave the cluster if `connect` joined it. Idempotent."""
        self._loop.close()
        if self._joined:
            self._joined = False
            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def models(self) -> tuple[str, ...]:
        """Ids of the models that the application serves: those of its config in their order, then those
        of its hub."""
        configured = tuple(self._served())
        hub = self._hub(self._application())
        names = [] if hub is None else self._loop.run(hub.names())
        return (*configured, *(name for name in names if name not in configured))

    def model(self, name: str, *, timeout_s: float | None = None) -> RemoteModel:
        """The client of a model by its id or an alias, or by its name in the hub: then it is loaded when
        it is called. Raises `ModelNotFound`, which names what is served.

        A call ends with `ModelUnavailable` when no replica has answered after `timeout_s`; None
        waits as long as a model takes to start.
        """
        found = self._resolve(name)
        return self._client(found, timeout_s) if isinstance(found, str) else self._hub_client(found, timeout_s)

    def status(self) -> tuple[ModelState, ...]:
        """Every configured model with its replicas and what their engines count, and of the hub those
        that have a process, or are waited for."""
        served, application = self._served(), self._application()
        configured = [self._state(model_id, aliases, application) for model_id, aliases in served.items()]
        standings = self._standings(application)
        of_hub = [self._hub_state(model_id, standing, application) for model_id, standing in standings.items()]
        return (*configured, *of_hub)

    def evict(self, name: str) -> list[EvictResult]:
        """Save and release the context of every running replica of a model; none for one that is
        scaled to zero, or of which nothing runs."""
        found = self._resolve(name)
        running = self._running(found if isinstance(found, str) else found.model_id, self._application())
        return [] if running is None else running.evict()

    def store_stats(self) -> dict[str, list[StoreStats | None]]:
        """By model id, one snapshot per running replica; None for a replica without a store."""
        application = self._application()
        known = (*self._served(), *self._standings(application))
        clients = {model_id: self._running(model_id, application) for model_id in known}
        return {model_id: client.store_stats() for model_id, client in clients.items() if client is not None}

    def scheduler_status(self) -> Any | None:
        """What the memory scheduler says of itself; None when the application runs none."""
        if SCHEDULER not in self._application().deployments:
            return None
        return self._ask(SCHEDULER, "status")

    def _application(self) -> Any:
        applications = serve.status().applications
        if self._app not in applications:
            others = ", ".join(applications) or "none"
            raise ClusterUnavailable(f"no application {self._app!r} runs on this cluster; there is {others}")
        return applications[self._app]

    def _served(self) -> Mapping[str, tuple[str, ...]]:
        served: Mapping[str, tuple[str, ...]] = self._ask(INGRESS, "served")
        return served

    def _resolve(self, name: str) -> str | FoundModel:
        """The id of a configured model, or what the hub has of that name."""
        served = self._served()
        model_id = ModelNames(served).find(name)
        if model_id is not None:
            return model_id
        hub = self._hub(self._application())
        if hub is not None:
            return self._loop.run(hub.find(name))
        raise ModelNotFound(f"the model {name!r} does not exist; served are: {', '.join(served)}", param="model")

    def _hub(self, application: Any) -> HubModels | None:
        """None where the application has no hub."""
        if HUB not in application.deployments:
            return None
        if self._hub_models is None:
            self._hub_models = HubModels(self._app, partial(_answered, self._handle(HUB)))
        return self._hub_models

    def _standings(self, application: Any) -> dict[str, ModelStanding]:
        """Of the models of the hub that have a process, or are waited for."""
        hub = self._hub(application)
        return {} if hub is None else self._loop.run(hub.standings())

    def _state(self, model_id: str, aliases: tuple[str, ...], application: Any) -> ModelState:
        deployment = application.deployments[deployment_name(model_id)]
        engines = self._engines(model_id, application)
        state = str(deployment.status.value)
        return ModelState(model_id, aliases, state, deployment.message, len(engines), engines)

    def _hub_state(self, model_id: str, standing: ModelStanding, application: Any) -> ModelState:
        engines = self._engines(model_id, application)
        return ModelState(model_id, (), str(standing.phase), standing.reason, len(engines), engines)

    def _engines(self, model_id: str, application: Any) -> tuple[EngineStats, ...]:
        running = self._running(model_id, application)
        with suppress(EngineStopped):  # it went away since we looked: what Serve says is what there is to say
            return () if running is None else tuple(running.stats())
        return ()

    def _running(self, model_id: str, application: Any) -> RemoteModel | None:
        """The client of a model that runs, through which nothing is loaded; None when it does not run."""
        configured = application.deployments.get(deployment_name(model_id))
        if configured is not None:
            return self._client(model_id) if configured.replica_states.get("RUNNING", 0) else None
        hub = self._hub(application)
        client = None if hub is None else self._loop.run(hub.running(model_id))
        return None if client is None else RemoteModel(client, loop=self._loop)

    def _client(self, model_id: str, timeout_s: float | None = None) -> RemoteModel:
        key = (model_id, timeout_s)
        if key not in self._clients:
            client = ModelClient.connect(model_id, self._app, timeout_s=timeout_s, get_handle=blocking_handle)
            self._clients[key] = RemoteModel(client, loop=self._loop)
        return self._clients[key]

    def _hub_client(self, found: FoundModel, timeout_s: float | None) -> RemoteModel:
        key = (found.model_id, found.digest, timeout_s)
        if key not in self._clients:
            hub = self._hub_models
            assert hub is not None  # it has found the model
            self._clients[key] = RemoteModel(hub.client(found, timeout_s), loop=self._loop)
        return self._clients[key]

    def _ask(self, deployment: str, method: str) -> Any:
        return self._loop.run(_answered(self._handle(deployment), method))

    def _handle(self, deployment: str) -> Any:
        app = self._app
        if deployment not in self._application().deployments:
            raise ClusterUnavailable(f"the application {app!r} has no deployment {deployment!r}: is it erllama's?")
        if deployment not in self._handles:
            self._handles[deployment] = blocking_handle(deployment, app)
        return self._handles[deployment]


async def _answered(handle: Any, method: str, *args: Any) -> Any:
    try:
        async with asyncio.timeout(_ANSWER_S):
            with mapped_errors():
                return await getattr(handle, method).remote(*args)
    except TimeoutError:
        raise ClusterUnavailable(
            f"the {handle.deployment_name} of {handle.app_name!r} has not answered for {_ANSWER_S:.0f} s"
        ) from None


def _join(address: str) -> None:
    if address.startswith("ray://"):
        raise ClusterUnavailable(
            "Ray Client (ray://) cannot stream from a deployment: run on a node of the cluster, or use `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself tries for minutes, and ends the process then
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=address, namespace="serve", log_to_driver=False)
    except (OSError, ValueError) as error:
        raise ClusterUnavailable(f"no Ray cluster at address {address!r}: {error}") from None


def chat(model: RemoteModel, messages: Sequence[Mapping[str, Any]], **params: Any) -> Completion:
    """The assistant's reply to a conversation, rendered by the model's own template. Raises the
    error that ended it."""
    return model.complete(model.apply_chat_template(messages), **params)
