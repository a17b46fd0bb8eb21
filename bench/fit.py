"""What a model takes of memory: estimated from its header, beside a real load.

    python bench/fit.py [--model FILE ...] [--json FILE]

Each load is a process of its own, with a sequence filled to the end of its context. Shapes have random
weights and the number of layers that their name gives; `--model` adds files. "Held out" shapes and
settings (`new.*`) had no part in finding the formulas.

NAME.kv, .compute, .private   estimate over llama.cpp's own number, of the KV, of the buffers it
                              computes in, and of weights that are no pages of the file
NAME.grown                    estimate over what unloading gave back: all but mapped weights
NAME.resident                 estimate over the resident memory of the whole process, where nothing of
                              it is pages whose copy is used
NAME.total                    MiB that the estimate has, the process included
process, process.token        MiB of a process without a model, and bytes per token of a vocabulary
                              that stays when its model was unloaded
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Figures, make_parser, say

from erllama.config import EngineConfig
from erllama.footprint.copies import row_groups
from erllama.footprint.estimate import compute_buffers, estimate, process_bytes, weights
from erllama.footprint.shape import MemoryShape
from erllama.gguf.header import read_header
from erllama.llama.library import build_info
from erllama.testing.measured_load import MeasuredLoad, measure_load
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape

MIB = 1 << 20
LAYERS_OF = {
    "qwen2-0.5b.3": replace(SHAPES["qwen2-0.5b"], n_layer=3),
    "llama-1b.2": replace(SHAPES["llama-1b"], n_layer=2),
    "gemma3-270m.6": ModelShape("gemma3", 6, 640, 4, 1, 2048, 32768, head_dim=256, tied=False, sliding_window=512),
    "jamba.4": ModelShape("jamba", 4, 1024, 16, 4, 3584, 8192),
    "mamba-130m.4": ModelShape("mamba", 4, 768, 0, 0, 0, 8192),
    "new.qwen2-1.5b.3": replace(SHAPES["qwen2-1.5b"], n_layer=3),
    "new.qwen3-4b.2": ModelShape("qwen3", 2, 2560, 32, 8, 9728, 40960, rope_base=1e6, head_dim=128),
    "new.llama-3b.2": ModelShape("llama", 2, 3072, 24, 8, 8192, 131072, rope_base=5e5),
    "new.gemma3-1b.6": ModelShape("gemma3", 6, 1152, 4, 1, 6912, 32768, head_dim=256, tied=False, sliding_window=512),
    "new.mamba-790m.2": ModelShape("mamba", 2, 1536, 0, 0, 0, 8192),
}
LOADS: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen2-0.5b.3", "Q4_0", {"n_ctx": 4096, "n_parallel": 4}),
    ("qwen2-0.5b.3", "F16", {"n_ctx": 4096, "n_parallel": 1, "flash_attn": False}),
    ("llama-1b.2", "Q8_0", {"n_ctx": 2048, "n_parallel": 8, "use_mmap": False}),
    ("gemma3-270m.6", "F16", {"n_ctx": 4096, "n_parallel": 2}),
    ("jamba.4", "F16", {"n_ctx": 4096, "n_parallel": 4}),
    ("mamba-130m.4", "Q8_0", {"n_ctx": 4096, "n_parallel": 16}),
    ("new.qwen2-1.5b.3", "Q4_0", {"n_ctx": 2560, "n_parallel": 5, "n_batch": 256}),
    ("new.qwen3-4b.2", "Q8_0", {"n_ctx": 2048, "n_parallel": 2, "type_k": "q8_0", "type_v": "q8_0"}),
    ("new.llama-3b.2", "Q4_0", {"n_ctx": 1536, "n_parallel": 6, "flash_attn": False}),
    ("new.gemma3-1b.6", "F16", {"n_ctx": 3072, "n_parallel": 3, "use_mmap": False}),
    ("new.mamba-790m.2", "F16", {"n_ctx": 2048, "n_parallel": 4}),
]


def compare(out: Figures, name: str, settings: Mapping[str, Any]) -> tuple[MemoryShape, MeasuredLoad]:
    config = EngineConfig(**settings)
    shape = MemoryShape.of([read_header(config.path)], row_groups(build_info()))
    need, in_ram, took = estimate(shape, config), weights(shape, config), measure_load(settings)
    total = need.total_bytes + process_bytes(shape)
    out.add(f"{name}.total", total / MIB, "MiB")
    out.add_ratio(f"{name}.kv", need.kv_bytes, took.kv)
    out.add_ratio(f"{name}.compute", compute_buffers(shape, config)[0], took.compute)
    out.add_ratio(f"{name}.private", in_ram.private_bytes, took.private)
    out.add_ratio(f"{name}.grown", need.total_bytes - in_ram.mapped_bytes, took.loaded_private)
    if not (in_ram.mapped_bytes and in_ram.private_bytes):
        out.add_ratio(f"{name}.resident", total, took.loaded)
    return shape, took


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="FILE")
    args = parser.parse_args()
    out = Figures()
    seen: list[tuple[MemoryShape, MeasuredLoad]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file_type, settings in LOADS:
            path = Path(folder) / "model.gguf"
            write_random_model(path, LAYERS_OF[name], file_type=file_type)
            say(name, file_type, settings)
            label = "-".join([name, file_type, *(str(value) for value in settings.values())])
            seen.append(compare(out, label, {"path": str(path), **settings}))
    for model in args.model:
        say(model)
        seen.append(compare(out, model.stem, {"path": str(model), "n_ctx": 2048, "n_parallel": 4}))
    add_process(out, seen)
    out.report(args.json)


def add_process(out: Figures, seen: list[tuple[MemoryShape, MeasuredLoad]]) -> None:
    """From the models with the fewest and the most tokens."""
    (small, few), (large, many) = (f(seen, key=lambda one: one[0].n_vocab) for f in (min, max))
    out.add("process", few.unloaded / MIB, "MiB")
    if large.n_vocab > small.n_vocab:
        out.add("process.token", (many.unloaded - few.unloaded) / (large.n_vocab - small.n_vocab), "bytes")


if __name__ == "__main__":
    main()
