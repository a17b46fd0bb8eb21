"""The deployment of one model, configured or of the hub, as Serve is told of it.

`max_ongoing_requests` is far above the number of sequences on purpose: admission and queueing happen
in the engine, and a control call must never wait behind streams (measured: with a limit of 1 and a
stream running, a broadcast waited 3 s for the stream's end).
"""

from __future__ import annotations

from typing import Any

from ray import serve

from deployments.config import Autoscaling, BuildArgs, ModelSpec, deployment_name
from deployments.cpu_shares import CpuShare
from deployments.model.deployment import Replica
from deployments.model.load_limit import MAX_LOADS
from deployments.routing.router import router_config
from deployments.versions import model_version, pin_version

MAX_ONGOING = 10_000  # no limit in practice: the engine's own queue refuses first
HEALTH_PERIOD_S = 5.0  # a check costs next to nothing, and clients wait for a broken replica to be replaced
_HEALTH_TIMEOUT_S = 10.0  # a check never waits for the engine; three in a row, and the replica is replaced


def make_deployment(of: type[Any], name: str, **options: Any) -> serve.Deployment:
    decorate: Any = serve.deployment(name=name, max_ongoing_requests=MAX_ONGOING, **options)
    deployment: serve.Deployment = decorate(of)
    return deployment


def model_app(
    spec: ModelSpec, args: BuildArgs, *, num_cpus: float, n_threads: int, node_id: str | None = None
) -> serve.Application:
    """One model, whose replicas are replaced when what they depend on changes. `num_cpus` are asked of
    Ray for each; `n_threads` is what it computes with where its configuration does not say. `node_id` is
    the node that it must run on, None for any.
    """
    actor_options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": spec.num_gpus, "resources": spec.resources}
    if node_id is not None:
        actor_options["label_selector"] = {"ray.io/node-id": node_id}
    if spec.memory is not None:
        actor_options["memory"] = spec.memory
    options: dict[str, Any] = {"num_replicas": spec.num_replicas}
    if spec.autoscaling is not None:
        options = {"autoscaling_config": _autoscaling(spec, spec.autoscaling)}
    router = router_config(spec, args.routing, args.store.config(), args.policy)
    if router is not None:
        options["request_router_config"] = router
    deployment = make_deployment(
        Replica,
        deployment_name(spec.id),
        graceful_shutdown_timeout_s=spec.graceful_shutdown_timeout_s,
        max_surge_percent=spec.max_surge_percent,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        max_constructor_retry_count=MAX_LOADS,
        ray_actor_options=actor_options,
        **options,
    )
    return pin_version(deployment, model_version(spec, args)).bind(
        spec,
        args.store,
        args.policy,
        n_cpus=n_threads,
        # also without a router: with a second replica there is one, and the first must not restart for it
        routing=args.routing if args.routing.enabled else None,
        scheduler=args.scheduler,
        salts=args.http.salts(spec.id),
    )


def static_model_app(spec: ModelSpec, args: BuildArgs, share: CpuShare) -> serve.Application:
    """A configured model."""
    return model_app(spec, args, num_cpus=share.num_cpus, n_threads=share.n_threads)


def _autoscaling(spec: ModelSpec, scaling: Autoscaling) -> dict[str, Any]:
    return {
        **scaling.model_dump(),
        "initial_replicas": scaling.min_replicas,
        # a waiting request must not wait for a timer too
        "upscale_delay_s": 0.0 if scaling.min_replicas == 0 else scaling.upscale_delay_s,
        "target_ongoing_requests": scaling.target_ongoing_requests or spec.n_parallel,
    }
