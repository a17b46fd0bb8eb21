"""`build_app(args)`: the whole graph of the application, and every `serve.deployment(...)` of the
project.

    serve run serve_config.yaml       import_path: deployments.app:build_app

One ingress (HTTP, rendering, tokenising) holds a handle to each model's deployment.
`max_ongoing_requests` is far above the number of sequences on purpose: admission and queueing
happen in the engine, and a control call must never wait behind streams (measured: with a limit of 1
and a stream running, a broadcast waited 3 s for the stream's end).

Serve hashes `args`: any change of them replaces every process of the application, models included,
one after the other. With `max_surge_percent` 0 the old process goes first and requests wait for the
new one; with 100 the new one comes first, which takes twice the memory. The ingress always surges.
"""

from __future__ import annotations

import math
import os
from typing import Any

import ray
from ray import serve

from deployments.config import Autoscaling, BuildArgs, ModelSpec, deployment_name
from deployments.ingress.deployment import Ingress, ingress_grace_s
from deployments.memory.service import MemoryScheduler
from deployments.model.deployment import Replica
from deployments.model.load_limit import MAX_LOADS
from deployments.routing.router import router_config

_MAX_ONGOING = 10_000  # no limit in practice: the engine's own queue refuses first
_HEALTH_PERIOD_S = 5.0  # a check costs next to nothing, and clients wait for a broken replica to be replaced
_HEALTH_TIMEOUT_S = 10.0  # a check never waits for the engine; three in a row, and the replica is replaced


def build_app(config: dict[str, Any]) -> serve.Application:
    """The application for the `args` of a serve config. Raises pydantic's `ValidationError`, which
    names the key, for a wrong one.

    Serve would validate an argument that is annotated with a pydantic class, but does not see
    postponed annotations.
    """
    args = BuildArgs.model_validate(config)
    share = cpu_share(args, cluster_cpus())
    models = {spec.id: _model(spec, args, share) for spec in args.models}
    shared = (args.model_dump(mode="json"), models)
    scheduler = None
    if args.scheduler.enabled:
        scheduler = _deployment(
            MemoryScheduler,
            "scheduler",
            num_replicas=1,
            health_check_period_s=_HEALTH_PERIOD_S,
            ray_actor_options={"num_cpus": 0},  # it asks a few questions every few seconds
        ).bind(*shared)
    return _deployment(
        Ingress,
        "ingress",
        num_replicas=args.http.ingress_replicas,
        max_surge_percent=100,  # an update starts the new one first: it needs no CPU of its own
        graceful_shutdown_timeout_s=ingress_grace_s(args),
        # it waits for others; what it computes (tokenising) is small beside a prefill
        ray_actor_options={"num_cpus": 0},
    ).bind(*shared, scheduler)


def _deployment(of: type[Any], name: str, **options: Any) -> serve.Deployment:
    decorate: Any = serve.deployment(name=name, max_ongoing_requests=_MAX_ONGOING, **options)
    deployment: serve.Deployment = decorate(of)
    return deployment


def _model(spec: ModelSpec, args: BuildArgs, share: int) -> serve.Application:
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
    return _deployment(
        Replica,
        deployment_name(spec.id),
        graceful_shutdown_timeout_s=spec.graceful_shutdown_timeout_s,
        max_surge_percent=spec.max_surge_percent,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        max_constructor_retry_count=MAX_LOADS,
        ray_actor_options=actor_options,
        **options,
    ).bind(
        spec,
        args.store,
        args.policy,
        n_cpus=max(1, math.floor(num_cpus)),
        routing=None if router is None else args.routing,
        scheduler=args.scheduler,
        salts=args.http.salts(spec.id),
    )


def replica_cpus(spec: ModelSpec, share: int) -> float:
    """CPUs to ask Ray for: as configured, else as many as the configured threads, else the model's
    share of a node."""
    if spec.num_cpus != "auto":
        return spec.num_cpus
    return spec.n_threads if spec.n_threads != "auto" else share


def cpu_share(args: BuildArgs, node_cpus: int) -> int:
    """CPUs for each replica that names none: a node's CPUs divided by all replicas that start with
    the app, at least one."""
    n_replicas = sum(
        max(1, spec.autoscaling.min_replicas) if spec.autoscaling else spec.num_replicas for spec in args.models
    )
    return max(1, node_cpus // n_replicas)


def cluster_cpus() -> int:
    """CPUs of the smallest node that has any, as Ray counts them; this machine's when no cluster is
    connected."""
    nodes: list[dict[str, Any]] = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    return min(filter(None, cpus), default=os.cpu_count() or 1)


def _autoscaling(spec: ModelSpec, scaling: Autoscaling) -> dict[str, Any]:
    return {
        **scaling.model_dump(),
        "initial_replicas": scaling.min_replicas,
        # a waiting request must not wait for a timer too
        "upscale_delay_s": 0.0 if scaling.min_replicas == 0 else scaling.upscale_delay_s,
        "target_ongoing_requests": scaling.target_ongoing_requests or spec.n_parallel,
    }
