"""All checks of one machine with one config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deployments.config import BuildArgs, ModelSpec
from deployments.cpu_shares import CpuSupply, cpu_shares, n_replicas
from deployments.doctor.build import build_findings, collect_build
from deployments.doctor.finding import Finding, Level, fail
from deployments.doctor.hub import collect_hub, hub_findings
from deployments.doctor.machine import (
    MachineFacts,
    ReplicaCpus,
    collect_machine,
    cpu_findings,
    descriptor_findings,
    lock_findings,
    memory_findings,
    shm_findings,
)
from deployments.doctor.models import ModelFacts, collect_model, model_findings
from deployments.doctor.network import collect_network, network_findings
from deployments.doctor.tiers import collect_tiers, tier_findings
from deployments.launch import ConfigError, load_args

_SHM = "/dev/shm"


def examine(path: Path) -> Iterator[Finding]:
    """Findings as they come. A config that cannot be read leaves the machine's own checks."""
    applications, http = list[BuildArgs](), dict[str, Any]()
    try:
        applications, http = load_args(path), _http_options(path)
    except ConfigError as error:
        todo = "mend it; the serve_config.yaml of the repository has every key"
        yield fail("config", str(error), "nothing of it can be served", todo)
    machine = collect_machine()
    specs = [spec for args in applications for spec in args.models]
    build = list(build_findings(collect_build(spec.id for spec in specs if spec.num_gpus)))
    yield from build
    loads = not any(finding.level is Level.FAIL and finding.check == "llama.cpp's build" for finding in build)
    yield from cpu_findings(machine, [one for args in applications for one in replicas(args, machine.n_cpus)])
    yield from descriptor_findings(machine)
    models = [
        collect_model(spec, n_replicas(spec), machine.ram_total - machine.ram_used, measure=loads) for spec in specs
    ]
    yield from _memory(machine, applications, specs, models)
    yield from model_findings(models)
    for args in applications:
        store = args.store.config()
        yield from tier_findings(collect_tiers(store.tiers if store else ()), kv_bytes_per_token(models))
        if args.hub.enabled:
            yield from hub_findings(collect_hub(args.hub))
        keys = len(args.http.api_keys)
        yield from network_findings(collect_network(http.get("host", "127.0.0.1"), http.get("port", 8000), keys))


def _memory(
    machine: MachineFacts, applications: list[BuildArgs], specs: list[ModelSpec], models: list[ModelFacts]
) -> Iterator[Finding]:
    tiers = sum(shm_bytes(args) for args in applications)
    high = min((args.scheduler.high for args in applications), default=1.0)
    yield from memory_findings(machine, tiers + sum(model.total_bytes for model in models), high)
    yield from shm_findings(machine, tiers)
    pairs = zip(specs, models, strict=True)
    locked = {spec.id: model.need.weights_bytes for spec, model in pairs if model.need and spec.use_mlock}
    yield from lock_findings(machine, locked)


def replicas(args: BuildArgs, node_cpus: int) -> list[ReplicaCpus]:
    """What the replicas of each model ask for and run, on a node with so many CPUs."""
    shares = cpu_shares(args, CpuSupply(node_cpus))
    found = []
    for spec in args.models:
        share = shares[spec.id]
        n_threads = share.n_threads if spec.n_threads == "auto" else spec.n_threads
        found.append(ReplicaCpus(spec.id, n_replicas(spec), share.num_cpus, n_threads))
    return found


def shm_bytes(args: BuildArgs) -> int:
    """The budgets of the store's tiers in /dev/shm."""
    store = args.store.config()
    tiers = store.tiers if store else ()
    return sum(tier.budget_bytes or 0 for tier in tiers if tier.is_local and Path(tier.path).is_relative_to(_SHM))


def kv_bytes_per_token(models: list[ModelFacts]) -> dict[str, float]:
    sizes = {model.id: (model.need.kv_bytes, model.context * model.n_parallel) for model in models if model.need}
    return {model: n_bytes / n_tokens for model, (n_bytes, n_tokens) in sizes.items() if n_bytes and n_tokens}


def _http_options(path: Path) -> dict[str, Any]:
    """Of Serve: not of `args`."""
    options = yaml.safe_load(path.read_text()).get("http_options")
    return options if isinstance(options, dict) else {}
