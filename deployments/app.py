"""`build_app(args)`: the whole graph of the application, and every `serve.deployment(...)` of the project.

    serve run serve_config.yaml       import_path: deployments.app:build_app

One ingress (HTTP, rendering, tokenising) holds a handle to each model's deployment. `max_ongoing_requests` is far above the number of
sequences on purpose: admission and queueing happen in the engine, and a control call must never wait behind streams.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import threading
import time
import weakref
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from cache_store import ObjectReader, StoreError
from deployments.config import Autoscaling, BuildArgs, Failover, ModelSpec, RoutingSpec, SchedulerSpec, StoreSpec, deployment_name
from deployments.drain import DrainWatch, app_is_deleted
from deployments.ingress import make_http_app
from deployments.kv_router import router_config
from deployments.memory_sources import make_sources
from deployments.model_client import ModelClient
from deployments.model_replica import ModelReplica
from deployments.ports import ServedModel
from deployments.prompts import PromptSource
from deployments.scheduler_service import SchedulerService, replica_place
from erllama.cache.policy import CachePolicy
from erllama.cache.setup import replay_root
from erllama.chat.transcript_book import ReplayBook
from erllama.config import padded_context
from erllama.errors import EngineStopped, ErllamaError

log = logging.getLogger(__name__)

_MAX_ONGOING = 10_000  # no limit in practice: the engine's own queue refuses first
_HEALTH_PERIOD_S = 5.0  # a check costs next to nothing, and clients wait for a broken replica to be replaced
_LAST_FLUSH_S = 5.0
_ROUTINE = ("CALL memory_report OK", "CALL hear OK")  # as Serve's access log begins
_GOODBYE_S = 5.0  # before Serve kills an ingress replica


def share_serve_log() -> None:
    """Send our packages' log lines where Serve's own go: the replica's file, with the request id in every line."""
    serve_log = logging.getLogger("ray.serve")
    serve_log.addFilter(_tells_news)
    for name in ("deployments", "erllama", "cache_store"):
        ours = logging.getLogger(name)
        ours.handlers = serve_log.handlers
        ours.setLevel(serve_log.level)
        ours.propagate = False


def _tells_news(record: logging.LogRecord) -> bool:
    """False for Serve's lines about what the memory scheduler asks every replica every few seconds."""
    return not (getattr(record, "serve_access_log", False) and record.getMessage().startswith(_ROUTINE))


class Replica(ModelReplica):
    """`ModelReplica` with Serve's log and both ways a replica is told to go.

    A graceful stop (`serve shutdown`, scale-down, a new config) drains and calls the destructor. SIGTERM (a node that is going away) makes
    Ray's worker leave through `sys.exit`, hence the exit handler: what the context holds is saved either way.
    """

    def __init__(
        self, spec: ModelSpec, store: StoreSpec, policy: CachePolicy, *, n_cpus: int, routing: RoutingSpec | None, scheduler: SchedulerSpec
    ) -> None:
        share_serve_log()
        sources = make_sources(scheduler.sources, scheduler.total_bytes) if scheduler.enabled else ()
        super().__init__(spec, n_cpus=n_cpus, store=store.config(), policy=policy, routing=routing, place=replica_place(), sources=sources)
        # Before the interpreter ends its thread pools, which readers and drivers of object stores use; `atexit` comes after that. Private,
        # but what concurrent.futures itself uses.
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_stop, weakref.ref(self))
        reference = weakref.ref(self)
        self._watch = DrainWatch(lambda: _drain(reference, spec.drain_s))

    async def check_health(self) -> None:
        """Ends the process of a replica whose engine is dead or stuck: Serve would wait for three failures, and its clients with it."""
        try:
            await super().check_health()
        except EngineStopped as error:
            if self._draining:
                raise
            log.error("this replica cannot go on and leaves: %s", error)
            store = self._model.store
            if store is not None:
                await asyncio.to_thread(store.flush, _LAST_FLUSH_S)
            os._exit(1)  # a thread that hangs in llama.cpp would keep any gentler exit waiting

    def __del__(self) -> None:
        model = getattr(self, "_model", None)  # absent when the load failed
        if model is not None:
            model.shutdown()


def _drain(reference: weakref.ref[Replica], seconds: float) -> None:
    replica = reference()
    if replica is not None:
        replica.drain(seconds)


def _stop(reference: weakref.ref[Replica]) -> None:
    replica = reference()
    if replica is not None:
        replica.__del__()


class MemoryScheduler(SchedulerService):
    """`SchedulerService` with Serve's log, running while its replica lives."""

    async def __init__(self, args: dict[str, Any], handles: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it: a loop runs
        share_serve_log()
        super().__init__(args, handles)
        self.start()

    async def __del__(self) -> None:
        await self.close()


@serve.ingress()
class Ingress:
    """The HTTP front. Serve asks for the ASGI app once, in the replica."""

    def __init__(self, args: dict[str, Any], handles: dict[str, Any], scheduler: Any | None = None) -> None:
        """`scheduler` makes it part of the application; nothing here asks it."""
        share_serve_log()
        config = BuildArgs.model_validate(args)
        self._options = config.http.options()
        self._drain_s = max(spec.drain_s for spec in config.models)
        self._grace_s = _ingress_grace_s(config)
        book, salt = _replay_book(config.store), config.store.salt
        self._models = {spec.id: _served(spec, handles[spec.id], book, salt, config.failover) for spec in config.models}
        threading.Thread(target=self._load_prompts, name="erllama-prompts", daemon=True).start()
        reference = weakref.ref(self)
        self._watch = DrainWatch(lambda: _end_streams(reference))

    def _load_prompts(self) -> None:
        """Open vocabularies and templates before the first request needs them: half a second for 152 k tokens."""
        for model_id, model in self._models.items():
            try:
                model.prompts.load()
            except ErllamaError as error:  # told to whoever asks for this model
                log.warning("prompts of %s cannot be loaded: %s", model_id, error)

    def served(self) -> dict[str, tuple[str, ...]]:
        """Model ids with their aliases: what `Cluster` asks."""
        return {model_id: model.aliases for model_id, model in self._models.items()}

    def end_streams(self) -> None:
        """Serve stops this process: tell the clients whose streams are too long to end in it.

        A connection cannot move. After an update streams have nearly all of the grace time to end by themselves; when the application
        itself goes, no model is left to finish them. Blocks; not for an event loop.
        """
        time.sleep(self._drain_s if app_is_deleted() else max(0.0, self._grace_s - _GOODBYE_S))
        for model in self._models.values():
            model.client.end_all(EngineStopped("the server is going away; send the request again", retry_after_s=1))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_http_app(self._models, self._options, echo_request_id=False)  # Serve does


def _end_streams(reference: weakref.ref[Any]) -> None:
    ingress = reference()
    if ingress is not None:
        ingress.end_streams()


def _ingress_grace_s(args: BuildArgs) -> float:
    return max(spec.graceful_shutdown_timeout_s for spec in args.models)


def _replay_book(store: StoreSpec) -> ReplayBook:
    """What this process knows of earlier replies, with the store behind it. A tier that cannot be used here costs hits, not the ingress."""
    config = store.config()
    try:
        reader = None if config is None else ObjectReader(config)
    except StoreError as error:
        log.warning("replies of earlier runs cannot be looked up here: %s", error)
        reader = None
    return ReplayBook(None if reader is None else reader.get)


def _served(spec: ModelSpec, handle: Any, book: ReplayBook, salt: str, failover: Failover) -> ServedModel:
    scales_to_zero = spec.autoscaling is not None and spec.autoscaling.min_replicas == 0
    client = ModelClient(handle, scales_to_zero=scales_to_zero, failover=failover)
    prompts = PromptSource(spec.path, n_ctx=padded_context(spec.n_ctx) or None, root=replay_root(spec.id, salt), book=book)
    return ServedModel(id=spec.id, client=client, prompts=prompts, created=int(time.time()), aliases=spec.aliases, replays=prompts)


def build_app(config: dict[str, Any]) -> serve.Application:
    """The application for the `args` of a serve config. Raises pydantic's `ValidationError`, which names the key, for a wrong one."""
    args = BuildArgs.model_validate(config)
    share = cpu_share(args, cluster_cpus())
    handles = {spec.id: _model_deployment(spec, args, share) for spec in args.models}
    scheduler = _scheduler_deployment(args, handles) if args.scheduler.enabled else None
    ingress: Any = serve.deployment(
        name="ingress",
        num_replicas=args.http.ingress_replicas,
        max_ongoing_requests=_MAX_ONGOING,
        max_surge_percent=100,  # an update starts the new one first: it needs no CPU of its own
        graceful_shutdown_timeout_s=_ingress_grace_s(args),
        ray_actor_options={"num_cpus": 0},  # it waits for others; what it computes (tokenising) is small beside a prefill
    )
    application: serve.Application = ingress(Ingress).bind(args.model_dump(mode="json"), handles, scheduler)
    return application


def _scheduler_deployment(args: BuildArgs, handles: dict[str, serve.Application]) -> serve.Application:
    deployment: Any = serve.deployment(
        name="scheduler",
        num_replicas=1,
        max_ongoing_requests=_MAX_ONGOING,
        health_check_period_s=_HEALTH_PERIOD_S,
        ray_actor_options={"num_cpus": 0},  # it asks a few questions every few seconds
    )
    application: serve.Application = deployment(MemoryScheduler).bind(args.model_dump(mode="json"), handles)
    return application


def _model_deployment(spec: ModelSpec, args: BuildArgs, share: int) -> serve.Application:
    num_cpus = replica_cpus(spec, share)
    actor_options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": spec.num_gpus, "resources": spec.resources}
    if spec.memory is not None:
        actor_options["memory"] = spec.memory
    options: dict[str, Any] = {"num_replicas": spec.num_replicas}
    if spec.autoscaling is not None:
        options = {"autoscaling_config": _autoscaling(spec, spec.autoscaling)}
    router = router_config(spec, args.routing, args.store.config(), args.policy)
    if router is not None:
        options["request_router_config"] = router
    deployment: Any = serve.deployment(
        name=deployment_name(spec.id),
        max_ongoing_requests=_MAX_ONGOING,
        graceful_shutdown_timeout_s=spec.graceful_shutdown_timeout_s,
        max_surge_percent=spec.max_surge_percent,
        health_check_period_s=_HEALTH_PERIOD_S,
        ray_actor_options=actor_options,
        **options,
    )
    application: serve.Application = deployment(Replica).bind(
        spec,
        args.store,
        args.policy,
        n_cpus=max(1, math.floor(num_cpus)),
        routing=None if router is None else args.routing,
        scheduler=args.scheduler,
    )
    return application


def replica_cpus(spec: ModelSpec, share: int) -> float:
    """CPUs to ask Ray for: as configured, else as many as the configured threads, else the model's share of a node."""
    if spec.num_cpus != "auto":
        return spec.num_cpus
    return spec.n_threads if spec.n_threads != "auto" else share


def cpu_share(args: BuildArgs, node_cpus: int) -> int:
    """CPUs for each replica that names none: a node's CPUs divided by all replicas that start with the app, at least one."""
    n_replicas = sum(max(1, spec.autoscaling.min_replicas) if spec.autoscaling else spec.num_replicas for spec in args.models)
    return max(1, node_cpus // n_replicas)


def cluster_cpus() -> int:
    """CPUs of the smallest node that has any, as Ray counts them; this machine's when no cluster is connected."""
    if ray.is_initialized():
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
        if any(cpus):
            return min(n for n in cpus if n)
    return os.cpu_count() or 1


def _autoscaling(spec: ModelSpec, scaling: Autoscaling) -> dict[str, Any]:
    return {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "initial_replicas": scaling.min_replicas,
        "upscale_delay_s": 0.0 if scaling.min_replicas == 0 else scaling.upscale_delay_s,  # a waiting request must not wait for a timer too
        "downscale_delay_s": scaling.downscale_delay_s,
        "target_ongoing_requests": scaling.target_ongoing_requests or spec.n_parallel,
    }
