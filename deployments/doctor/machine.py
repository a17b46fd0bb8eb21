"""Processors, memory and limits of a machine against what the models and the store take of them."""

from __future__ import annotations

import math
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.doctor.finding import Finding, fail, gib, ok, warn
from deployments.memory.sources import SystemMemory

_RAY_MEMORY_SHARE = 0.95  # of RAM, beyond which Ray kills workers; RAY_memory_usage_threshold changes it
_RAY_STORE_SHARE = 0.3  # of RAM: Ray's object store
_RAY_STORE_LEAST_CAP = 10_000_000_000  # it is capped by /dev/shm, but not below this
_SHM_SHARE = 0.95
_DESCRIPTORS = 8192


@dataclass(frozen=True, slots=True)
class ReplicaCpus:
    """Of a model: its replicas, the CPUs that each asks Ray for, and the threads that each runs."""

    model: str
    n_replicas: int
    n_cpus: float
    n_threads: int


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """`n_cpus` are those that this process may use by its affinity; `cpu_quota` what its cgroup grants,
    in CPUs, None without one. Sizes are bytes; `shm_bytes` 0 means that there is no /dev/shm.
    """

    n_cpus: int
    cpu_quota: float | None
    n_physical: int
    ram_total: int
    ram_used: int
    shm_total: int
    shm_free: int
    n_descriptors: int
    memlock_bytes: int | None

    @property
    def usable_cpus(self) -> float:
        return self.n_cpus if self.cpu_quota is None else min(self.n_cpus, self.cpu_quota)


def cpu_findings(facts: MachineFacts, models: list[ReplicaCpus]) -> Iterator[Finding]:
    """Ray counts CPUs as `n_cpus` and places replicas by it; threads run on what there really is."""
    usable, quota = facts.usable_cpus, facts.cpu_quota
    granted = f", of which the cgroup grants {quota:g}" if quota and quota < facts.n_cpus else ""
    there = f"{facts.n_cpus} CPUs{granted}"
    asked = sum(model.n_replicas * model.n_cpus for model in models)
    large = [model.model for model in models if model.n_cpus > facts.n_cpus]
    if large:
        why = "no node has so many, and their replicas stay in state loading"
        todo = "num_cpus or n_threads of at most what a node has"
        yield fail("CPUs", f"{', '.join(large)} asks for more CPUs than the {facts.n_cpus} here", why, todo)
        return
    if asked > facts.n_cpus:
        why = "on one machine some replicas find no place and stay in state loading"
        todo = "fewer replicas, a smaller num_cpus, or more nodes"
        yield fail("CPUs", f"the models ask for {asked:g} CPUs, and there are {there}", why, todo)
        return
    threads = sum(model.n_replicas * model.n_threads for model in models)
    if threads > math.ceil(usable):
        why = "threads of a decode wait for each other: one that has no core stops all of them"
        todo = f"n_threads of all replicas together at most {max(1, math.floor(usable))}"
        yield warn("CPUs", f"{threads} threads of models, and {there}", why, todo)
    else:
        yield ok("CPUs", f"{there} ({facts.n_physical} cores); models use {threads} threads")


def descriptor_findings(facts: MachineFacts) -> Iterator[Finding]:
    told = f"{facts.n_descriptors} open files are allowed"
    if facts.n_descriptors < _DESCRIPTORS:
        why = "each stream takes two, Ray hundreds: connections are refused under load"
        yield warn("open files", told, why, "ulimit -n 65536; LimitNOFILE=65536 in a unit of systemd")
    else:
        yield ok("open files", told)


def lock_findings(facts: MachineFacts, locked: dict[str, int]) -> Iterator[Finding]:
    """`locked`: bytes of the models with `use_mlock`."""
    limit = facts.memlock_bytes
    if limit is None:
        return
    for model, n_bytes in locked.items():
        if n_bytes > limit:
            told = f"{model} has use_mlock and {gib(n_bytes)}, and {gib(limit)} may be locked"
            todo = "ulimit -l unlimited; LimitMEMLOCK=infinity in a unit of systemd"
            yield warn("memory locks", told, "its weights are not kept in RAM", todo)


def memory_findings(facts: MachineFacts, need: int, high: float) -> Iterator[Finding]:
    """`need`: bytes that all models and tiers in memory take when they are full; `high`: the share at
    which our scheduler begins to free memory.
    """
    told = f"{gib(facts.ram_total)}, of which {gib(facts.ram_used)} are used"
    wanted = facts.ram_used + need
    limit = int(facts.ram_total * _RAY_MEMORY_SHARE)
    if need > limit:
        why = "Ray kills workers at 95 % of memory, and the kernel soon after"
        todo = "a smaller n_ctx, n_parallel or max_bytes of tiers in /dev/shm, or type_k and type_v q8_0"
        yield fail("memory", f"{told}; models and tiers take {gib(need)} when full", why, todo)
    elif wanted > facts.ram_total * high:
        why = f"beyond {high:.0%} the scheduler frees idle models, beyond 95 % Ray kills workers"
        todo = "end what else takes memory, or let the models take less (n_ctx, n_parallel, tiers in /dev/shm)"
        yield warn("memory", f"{told}; models and tiers take {gib(need)} more when full", why, todo)
    else:
        yield ok("memory", f"{told}; models and tiers take {gib(need)} more when full")


def shm_findings(facts: MachineFacts, tier_bytes: int) -> Iterator[Finding]:
    """`tier_bytes`: the budgets of all tiers there."""
    told = f"{gib(facts.shm_total)}, {gib(facts.shm_free)} free"
    larger = "docker run --shm-size 8g; in Kubernetes an emptyDir with medium Memory at /dev/shm"
    if not facts.shm_total:
        yield warn("/dev/shm", "there is none", "Ray's object store is slower in /tmp", "mount a tmpfs at /dev/shm")
        return
    if tier_bytes > facts.shm_total * _SHM_SHARE:
        why = "writes to the tier fail when it is full, and what processes computed is not shared"
        todo = f"max_bytes of at most {gib(facts.shm_total * 0.5)}, or {larger}"
        yield fail("/dev/shm", f"{told}; the store's tier there has {gib(tier_bytes)}", why, todo)
        return
    wanted = min(facts.ram_total * _RAY_STORE_SHARE, max(_RAY_STORE_LEAST_CAP, facts.shm_total * _SHM_SHARE))
    if wanted > facts.shm_free:
        why = "Ray puts its object store into /tmp, on disk"
        told = f"{told}; Ray's object store asks for {gib(wanted)}"
        yield warn("/dev/shm", told, why, f"{larger}, or `ray start --object-store-memory`")
    elif wanted + tier_bytes > facts.shm_total:
        why = "the object store takes memory when it is used: with both full, one of them cannot write"
        todo = f"a smaller max_bytes, or {larger}"
        told = f"{told}; tiers of {gib(tier_bytes)} share it with Ray's object store of {gib(wanted)}"
        yield warn("/dev/shm", told, why, todo)
    else:
        yield ok("/dev/shm", f"{told}; tiers take {gib(tier_bytes)}, Ray's object store up to {gib(wanted)}")


def collect_machine() -> MachineFacts:
    """Quick. Linux has all of it; elsewhere what is missing counts as unlimited."""
    [ram] = SystemMemory().read("")
    shm = Path("/dev/shm")
    size = shutil.disk_usage(shm) if shm.is_dir() else None
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return MachineFacts(
        n_cpus=n_cpus,
        cpu_quota=cpu_quota(Path("/")),
        n_physical=psutil.cpu_count(logical=False) or n_cpus,
        ram_total=ram.total_bytes,
        ram_used=ram.used_bytes,
        shm_total=size.total if size else 0,
        shm_free=size.free if size else 0,
        n_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        memlock_bytes=None if locked == resource.RLIM_INFINITY else locked,
    )


def cpu_quota(root: Path) -> float | None:
    """CPUs that the cgroup of a container grants (v2, then v1), as it is mounted below `root`; None
    without a limit.
    """
    cgroup = root / "sys" / "fs" / "cgroup"
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None  # "max", or -1
    return int(quota) / int(period)
