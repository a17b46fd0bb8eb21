"""What a model takes as it would be configured, from its header alone: python
examples/memory_need.py MODEL.gguf --n-ctx 8192 --n-parallel 8 --type-k q8_0 --type-v q8_0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from erllama.config import KV_TYPES, make_config
from erllama.footprint.copies import row_groups
from erllama.footprint.estimate import estimate, process_bytes
from erllama.footprint.shape import MemoryShape
from erllama.gguf.check import split_paths
from erllama.gguf.header import read_header
from erllama.llama.library import build_info


def table(options: argparse.Namespace) -> list[str]:
    """A line for each part, in MiB. Raises `ErllamaError` for what is no model, or no setting of one."""
    config = make_config(None, vars(options))
    shape = MemoryShape.of([read_header(part) for part in split_paths(config.path)], row_groups(build_info()))
    need = estimate(shape, config)
    rows = {"weights": need.weights_bytes, "KV": need.kv_bytes, "computing": need.compute_bytes}
    rows["the process"] = process_bytes(shape)
    rows["RAM, all together"] = sum(rows.values())
    if need.gpu.total_bytes:
        rows |= {
            "GPU: weights": need.gpu.weights_bytes,
            "GPU: KV": need.gpu.kv_bytes,
            "GPU: computing": need.gpu.compute_bytes,
            "GPU, all together": need.gpu.total_bytes,
        }
    return [f"{name:<18}{n_bytes / 2**20:>10.1f} MiB" for name, n_bytes in rows.items()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", metavar="MODEL.gguf", help="the first part of a split one, or demo")
    parser.add_argument("--n-ctx", type=int, default=4096, help="tokens of one sequence")
    parser.add_argument("--n-parallel", type=int, default=4, help="sequences at once")
    parser.add_argument("--type-k", choices=KV_TYPES, default="f16")
    parser.add_argument("--type-v", choices=KV_TYPES, default="f16")
    parser.add_argument("--n-gpu-layers", type=int, default=0, help="-1: all of them")
    print("\n".join(table(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
