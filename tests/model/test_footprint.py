"""Estimates from the header, beside what llama.cpp and the process really take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from erllama.config import EngineConfig
from erllama.footprint.copies import row_groups
from erllama.footprint.estimate import PROCESS_BYTES, compute_buffers, estimate, process_bytes, weights
from erllama.footprint.shape import MemoryShape
from erllama.gguf.header import read_header
from erllama.llama.library import build_info
from erllama.testing.measured_load import MeasuredLoad, measure_load
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape

pytestmark = pytest.mark.model

MIB = 1 << 20
SPARE_BYTES = 12 * MIB
"""What a process has more or less of between two runs: graphs, Python's and the C library's heaps."""
REAL = {
    "qwen2-0.5b": replace(SHAPES["qwen2-0.5b"], n_layer=3),
    "llama-1b": replace(SHAPES["llama-1b"], n_layer=2),
    "gemma3-270m": ModelShape("gemma3", 6, 640, 4, 1, 2048, 32768, head_dim=256, tied=False, sliding_window=512),
    "jamba": ModelShape("jamba", 4, 1024, 16, 4, 3584, 8192),
    "mamba-130m": ModelShape("mamba", 4, 768, 0, 0, 0, 8192),
}


@dataclass(frozen=True)
class Case:
    shape: str
    file_type: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return "-".join([self.shape, self.file_type, *(f"{name}={value}" for name, value in self.settings.items())])


CASES = [
    Case("qwen2-0.5b", "Q4_0", {"n_ctx": 4096, "n_parallel": 2}),
    Case("qwen2-0.5b", "F16", {"n_ctx": 4096, "n_parallel": 1, "n_batch": 128}),
    Case("qwen2-0.5b", "Q8_0", {"n_ctx": 2048, "n_parallel": 3, "flash_attn": False}),
    Case(
        "qwen2-0.5b", "Q4_0", {"n_ctx": 2048, "n_parallel": 12, "use_mmap": False, "type_k": "q8_0", "type_v": "q8_0"}
    ),
    Case("llama-1b", "Q8_0", {"n_ctx": 3000, "n_parallel": 4, "n_batch": 64, "use_mmap": False}),
    Case("llama-1b", "Q4_0", {"n_ctx": 2048, "n_parallel": 8}),
    Case("gemma3-270m", "F16", {"n_ctx": 4096, "n_parallel": 2}),
    Case("gemma3-270m", "Q8_0", {"n_ctx": 2048, "n_parallel": 1, "flash_attn": False, "use_mmap": False}),
    Case("jamba", "F16", {"n_ctx": 4096, "n_parallel": 4, "use_mmap": False}),
    Case("mamba-130m", "Q8_0", {"n_ctx": 4096, "n_parallel": 16, "n_batch": 256}),
]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("footprint")

    @cache
    def path(shape: str, file_type: str) -> Path:
        file = folder / f"{shape}-{file_type}.gguf"
        write_random_model(file, REAL[shape], file_type=file_type)
        return file

    return path


def near(estimated: int, measured: int, spare: int = MIB // 4) -> bool:
    """Within 10 % of what it took; logs are rounded to hundredths of a MiB."""
    return abs(estimated - measured) <= measured / 10 + spare


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_load_takes_what_its_header_lets_expect(path_of, case: Case):
    settings = {"path": str(path_of(case.shape, case.file_type)), "n_threads": 1, **case.settings}
    config = EngineConfig(**settings)
    shape = MemoryShape.of([read_header(config.path)], row_groups(build_info()))
    need, of_weights, took = estimate(shape, config), weights(shape, config), measure_load(settings)

    assert near(need.kv_bytes, took.kv), took
    assert near(compute_buffers(shape, config)[0], took.compute), took
    assert near(of_weights.private_bytes, took.private), took
    if case.file_type != "Q4_0":  # a mapping reaches over the pages of what was copied, too
        assert near(of_weights.mapped_bytes, took.mapped), took
    private = need.total_bytes - of_weights.mapped_bytes
    assert near(private, took.loaded_private, SPARE_BYTES), took
    # Python and its libraries take 90 to 140 MiB, which is the installation's affair
    process = took.process + process_bytes(shape) - PROCESS_BYTES
    assert near(process, took.unloaded, SPARE_BYTES), took
    check_resident(need.total_bytes + process, took, copied=case.file_type == "Q4_0" and config.use_mmap)


def check_resident(expected: int, took: MeasuredLoad, *, copied: bool) -> None:
    """The whole process: pages of tensors that were copied are counted by the system until it needs
    them.
    """
    droppable = took.mapped if copied else 0
    assert expected <= took.loaded * 1.1 + SPARE_BYTES, took
    assert expected >= (took.loaded - droppable) * 0.9 - SPARE_BYTES, took
