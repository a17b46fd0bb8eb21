"""`build_app(args)`: the whole graph of the application.

    serve run serve_config.yaml       import_path: deployments.app:build_app

One ingress (HTTP, rendering, tokenising) holds a handle to each model's deployment. Models of the hub
are applications of their own, which the manager ("hub") makes when requests name them.

A change of `args` replaces the ingress, the scheduler and the manager, which take seconds and break
no stream, and those models that depend on what has changed (`versions`). A model's `num_cpus: auto`
is a share of the node, so that one more model changes it. With `max_surge_percent` 0 the old process
goes first and requests wait for the new one; with 100 the new one comes first, which takes twice the
memory. The ingress always surges.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from deployments.config import BuildArgs
from deployments.cpu_shares import cpu_shares, cpu_supply
from deployments.hub.service import ModelManager
from deployments.ingress.deployment import Ingress, ingress_grace_s
from deployments.memory.service import MemoryScheduler
from deployments.model_app import HEALTH_PERIOD_S, make_deployment, static_model_app


def build_app(config: dict[str, Any]) -> serve.Application:
    """The application for the `args` of a serve config. Raises pydantic's `ValidationError`, which
    names the key, for a wrong one.

    Serve would validate an argument that is annotated with a pydantic class, but does not see
    postponed annotations.
    """
    args = BuildArgs.model_validate(config)
    supply = cpu_supply([spec.id for spec in args.models], os.cpu_count() or 1)
    shares = cpu_shares(args, supply)
    models = {spec.id: static_model_app(spec, args, shares[spec.id]) for spec in args.models}
    dumped = args.model_dump(mode="json")
    scheduler = _single(MemoryScheduler, "scheduler").bind(dumped, models) if args.scheduler.enabled else None
    hub = _single(ModelManager, "hub").bind(dumped, supply.node_cpus, scheduler) if args.hub.enabled else None
    return make_deployment(
        Ingress,
        "ingress",
        num_replicas=args.http.ingress_replicas,
        max_surge_percent=100,  # an update starts the new one first: it needs no CPU of its own
        graceful_shutdown_timeout_s=ingress_grace_s(args),
        # it waits for others; what it computes (tokenising) is small beside a prefill
        ray_actor_options={"num_cpus": 0},
    ).bind(dumped, models, scheduler, hub)


def _single(of: type[Any], name: str) -> serve.Deployment:
    """The deployment of what there is once, and what asks a few questions every few seconds."""
    return make_deployment(
        of, name, num_replicas=1, health_check_period_s=HEALTH_PERIOD_S, ray_actor_options={"num_cpus": 0}
    )
