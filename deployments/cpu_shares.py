"""How many CPUs each replica of a configured model asks of Ray, and computes with.

A model that names none (`num_cpus: auto`) gets a share of a node. A share that changed would restart the
model, so one that runs keeps what it has, and a model that is added asks for what is left, which may
be nothing: Ray's CPUs are bookkeeping, and a model that could not be placed would wait for ever. The
next start of the application divides anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.context import _get_global_client

from deployments.config import BuildArgs, ModelSpec, deployment_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CpuShare:
    """Of one replica. `num_cpus` is what Ray sets aside for it."""

    num_cpus: float
    n_threads: int


@dataclass(frozen=True, slots=True)
class CpuSupply:
    """What there is. `node_cpus` are those of the smallest node, `free_cpus` of the whole cluster what
    nobody has asked for, and `running` what each replica of a model has that runs already.
    """

    node_cpus: int
    n_nodes: int = 1
    free_cpus: float = math.inf
    running: Mapping[str, float] | None = None


def cpu_shares(args: BuildArgs, supply: CpuSupply) -> dict[str, CpuShare]:
    """By model id. Pure."""
    running = supply.running or {}
    added = sum(n_replicas(spec) for spec in args.models if _is_auto(spec) and spec.id not in running)
    even = max(1, supply.node_cpus // max(1, sum(map(n_replicas, args.models))))
    # some node has at least the average of what is free
    left = min(even, int(supply.free_cpus / (supply.n_nodes * max(1, added)))) if running else even
    return {spec.id: _share(spec, running.get(spec.id), even, left) for spec in args.models}


def _share(spec: ModelSpec, has: float | None, even: int, left: int) -> CpuShare:
    if not _is_auto(spec):
        asked = spec.num_cpus if spec.num_cpus != "auto" else spec.n_threads
        assert asked != "auto"
        return CpuShare(asked, max(1, math.floor(asked)))
    if has is not None:
        return CpuShare(has, max(1, math.floor(has)))
    return CpuShare(left, even)


def _is_auto(spec: ModelSpec) -> bool:
    """A number of threads is one of CPUs, too."""
    return spec.num_cpus == "auto" and spec.n_threads == "auto"


def n_replicas(spec: ModelSpec) -> int:
    """As many as start with the application."""
    return max(1, spec.autoscaling.min_replicas) if spec.autoscaling else spec.num_replicas


def cpu_supply(model_ids: Collection[str], default_cpus: int) -> CpuSupply:
    """What the cluster has; that many CPUs when none is connected."""
    if not ray.is_initialized():
        return CpuSupply(default_cpus)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [n for node in nodes if node["Alive"] and (n := int(node["Resources"].get("CPU", 0)))]
    free: float = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    running = _running_cpus({deployment_name(model_id): model_id for model_id in model_ids})
    return CpuSupply(min(cpus, default=default_cpus), max(1, len(cpus)), free, running)


def _running_cpus(models: Mapping[str, str]) -> dict[str, float]:
    """By model id, what Serve's deployments of these names ask for. A name that two applications have
    counts as none. While an application is built, which is when this is asked, Serve's details of it
    are empty; what its controller says of deployments is not. Private names of Ray: without them the
    shares are as at a first start.
    """
    found: dict[str, list[float]] = {}
    try:
        client = _get_global_client(raise_if_no_controller_running=False)
        listed: Any = {} if client is None else ray.get(client._controller.list_deployments_internal.remote())
        for deployment, (info, _) in listed.items():
            if deployment.name in models:
                asked = float(info.replica_config.ray_actor_options["num_cpus"])
                found.setdefault(models[deployment.name], []).append(asked)
    except (AttributeError, KeyError, TypeError, ValueError, ray.exceptions.RayError) as error:
        log.warning("shares of CPUs are divided anew, which restarts models: Ray tells them otherwise (%r)", error)
        return {}
    return {model_id: told[0] for model_id, told in found.items() if len(told) == 1}
