"""A machine for `erllama doctor` to examine: a common server, instead of where the pictures are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deployments.config import ModelSpec
from deployments.doctor.build import BuildFacts
from deployments.doctor.machine import MachineFacts
from deployments.doctor.models import ModelFacts
from deployments.doctor.network import PortFacts
from deployments.doctor.tiers import TierFacts
from erllama.footprint.fit import MemoryNeed

GIB = 1 << 30
CONFIG = """\
http_options: {host: 0.0.0.0, port: 8000}
applications:
- name: erllama
  import_path: deployments.app:build_app
  args:
    models:
    - {id: qwen, path: /models/qwen2.5-7b-instruct-q4_k_m.gguf, n_ctx: 8192, n_parallel: 4}
    store:
      tiers:
      - {url: file:///var/cache/erllama, max_bytes: 200GiB}
"""
_INFO = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | OPENMP = 1 |"
_FLAGS = frozenset({"avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni"})
_BUILD = BuildFacts(_INFO, cpu_flags=_FLAGS, versions={"ray": "2.60.0"}, pins=("ray[serve]==2.60.*",))
_MACHINE = MachineFacts(
    n_cpus=16,
    cpu_quota=None,
    n_physical=8,
    ram_total=64 * GIB,
    ram_used=6 * GIB,
    shm_total=64 << 20,
    shm_free=64 << 20,
    n_descriptors=1024,
    memlock_bytes=None,
)
_TIER = TierFacts(
    "file:///var/cache/erllama", "disk", write_bytes_s=1.1e9, read_bytes_s=2.4e9, delete_s=0.001, skew_s=0.0,
    max_bytes=200 * GIB, free_bytes=120 * GIB,
)  # fmt: skip


def facts() -> dict[str, Any]:
    """In place of what `deployments.doctor.examine` would collect here, by the names of its collectors."""
    return {
        "collect_machine": lambda: _MACHINE,
        "collect_build": lambda wants_gpu: replace(_BUILD, wants_gpu=tuple(wants_gpu)),
        "collect_model": _model,
        "collect_tiers": lambda configs: [_TIER for _ in configs],
        "collect_network": lambda host, port, keys: PortFacts(host, port, keys=keys),
    }


def _model(spec: ModelSpec, n_replicas: int, room_bytes: int, *, measure: bool) -> ModelFacts:
    need = MemoryNeed(4683 << 20, 1792 << 20, 304 << 20)
    return ModelFacts(
        spec.id, str(spec.path), spec.n_ctx or 0, spec.n_parallel, n_replicas, need=need, room_bytes=room_bytes
    )
