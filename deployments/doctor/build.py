"""The build of llama.cpp against the processor, the GPUs and the versions that are wanted."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from deployments.doctor.finding import Finding, fail, ok, warn

# names in llama.cpp's build and in /proc/cpuinfo, those that matter for speed
_INSTRUCTIONS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AVX512_VBMI": "avx512vbmi",
}
_FAST = ("AVX2", "FMA", "F16C", "AVX512", "AVX512_VNNI")
_REBUILD = "build it on this machine: make clean, remove llama.cpp-* in the folder of `pip cache dir`, make setup"
_REBUILD_GPU = "CMAKE_ARGS=-DGGML_CUDA=on make setup"
_PINNED = ("ray", "llama-cpp-python")
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """`info` is what llama.cpp says of itself, "" when it cannot be loaded, for the reason in
    `problem`. `gpu_backends` are libraries of the build (cuda, hip, vulkan, ...), `devices` the GPUs
    that it sees; `gpus` are those of the machine by its driver. `cpu_flags` are empty where the
    system does not tell them.
    """

    info: str
    problem: str = ""
    gpu_backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    cpu_flags: frozenset[str] = frozenset()
    wants_gpu: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[str, ...] = ()


def build_findings(facts: BuildFacts) -> list[Finding]:
    return [*_instructions(facts), *_gpus(facts), *_versions(facts)]


def _instructions(facts: BuildFacts) -> Iterator[Finding]:
    check = "llama.cpp's build"
    if facts.problem:
        todo = "install it again; if it dies of an illegal instruction, " + _REBUILD
        yield fail(check, f"cannot be loaded: {facts.problem}", "no model can be loaded", todo)
        return
    used = {name for name, value in re.findall(r"(\w+) = (\d)", facts.info) if value == "1"}
    if not facts.cpu_flags or not used & _INSTRUCTIONS.keys():
        yield ok(check, "loads; its instructions cannot be compared with this processor's")
        return
    unknown = sorted(name for name in used & _INSTRUCTIONS.keys() if _INSTRUCTIONS[name] not in facts.cpu_flags)
    if unknown:
        why = "a process that loads a model dies of an illegal instruction"
        yield fail(check, f"uses {', '.join(unknown)}, which this processor lacks", why, _REBUILD)
        return
    unused = [name for name in _FAST if name not in used and _INSTRUCTIONS[name] in facts.cpu_flags]
    if unused:
        why = "prompts are computed at a fraction of this processor's speed"
        yield warn(check, f"does not use {', '.join(unused)}, which this processor has", why, _REBUILD)
        return
    yield ok(check, f"uses {', '.join(name for name in _FAST if name in used)}")


def _gpus(facts: BuildFacts) -> Iterator[Finding]:
    check = "GPU"
    there, built = ", ".join(facts.gpus), ", ".join(facts.gpu_backends)
    users = ", ".join(facts.wants_gpu)
    if users and not (facts.gpus or facts.devices):
        why = "Ray finds no node for their replicas, and they stay in state loading"
        yield fail(
            check, f"num_gpus is set for {users}, and this machine has none", why, "num_gpus: 0, or another node"
        )
    elif facts.gpus and not facts.gpu_backends:
        level = fail if users else warn
        why = f"{users or 'a model'} computes on the CPU alone"
        yield level(check, f"{there}, and llama.cpp is built without GPUs", why, _REBUILD_GPU)
    elif facts.gpu_backends and not facts.devices:
        why = "models are computed on the CPU"
        todo = "look at the driver (nvidia-smi, /dev/nvidia*) and CUDA_VISIBLE_DEVICES; a container needs --gpus all"
        yield warn(check, f"the build has {built}, and sees no GPU", why, todo)
    elif facts.devices and not users:
        todo = "num_gpus: 1 (or a fraction) for a model that fits there"
        yield warn(
            check, f"{', '.join(facts.devices)}, and no model has num_gpus", "they are computed on the CPU", todo
        )
    elif facts.devices:
        yield ok(check, f"{', '.join(facts.devices)}: for {users}")
    else:
        yield ok(check, "none, and none is asked for")


def _versions(facts: BuildFacts) -> Iterator[Finding]:
    wrong = []
    for pin in map(Requirement, facts.pins):
        version = facts.versions.get(pin.name)
        if version is None or not pin.specifier.contains(version, prereleases=True):
            wrong.append(f"{pin.name} {version or 'is missing'} (wanted: {pin.specifier})")
    if wrong:
        why = "private names and binary layouts that erllama relies on change between releases"
        yield fail("versions", "; ".join(wrong), why, "install with -c constraints.txt, as `make setup` does")
    else:
        told = [f"{name} {version}" for name, version in facts.versions.items()]
        yield ok("versions", ", ".join([f"Python {sys.version.split()[0]}", *told]))


def collect_build(wants_gpu: Iterable[str]) -> BuildFacts:
    """Takes a second: llama.cpp is loaded in a child process, because a build for another processor
    dies of an illegal instruction.
    """
    told, problem = _asked()
    return BuildFacts(
        info=told.get("info", ""),
        problem=problem,
        gpu_backends=tuple(told.get("backends", ())),
        devices=tuple(told.get("devices", ())),
        gpus=_gpus_of_machine(),
        cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
        wants_gpu=tuple(wants_gpu),
        versions={name: version for name in _PINNED if (version := _version(name))},
        pins=pins_of(importlib.metadata.requires("erllama") or ()),
    )


def pins_of(requirements: Iterable[str]) -> tuple[str, ...]:
    """Those of a distribution's requirements whose versions matter most."""
    return tuple(line for line in requirements if Requirement(line).name in _PINNED and "extra ==" not in line)


def _asked() -> tuple[dict[str, Any], str]:
    """What the build tells, or why it does not."""
    command = [sys.executable, "-m", "erllama.llama.build_probe"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
        told = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, str(error)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {}, f"status {done.returncode} {''.join(last)[:200]}".strip()
    return told, ""


def _gpus_of_machine() -> tuple[str, ...]:
    """By the drivers: this needs no library of theirs."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        name = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        found.append(name[1].strip() if name else "an NVIDIA GPU")
    if not found and Path("/dev/nvidia0").exists():
        found.append("an NVIDIA GPU")
    if Path("/dev/kfd").exists():
        found.append("an AMD GPU")
    return tuple(found)


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(flags[1].split()) if flags else frozenset()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
