"""Which tensors llama.cpp copies into the layout of its kernels, and which stay pages of the file.

A weight that is multiplied goes into a buffer of its own (CPU_REPACK, private memory) when its type
has a kernel with another layout on this CPU and its rows come in groups of eight or four:
`ggml_repack_get_optimal_repack_type` in ggml-cpu/repack.cpp. Embeddings are looked up and not
multiplied, so they stay where they are; an output matrix that is the embedding (tied) is a tensor of
its own in llama-model.cpp (TENSOR_DUPLICATED), and a copy where its type has such a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from erllama.gguf.header import TensorInfo

RowGroups = Mapping[str, int]
"""By tensor type: of how many rows a multiple must be there. Types that are not in it stay mapped."""

NONE: RowGroups = MappingProxyType({})
_AVX2: RowGroups = MappingProxyType({"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8})
_AVX512: RowGroups = MappingProxyType({**_AVX2, "Q2_K": 8})
_NEON: RowGroups = MappingProxyType(
    {**dict.fromkeys(("Q4_0", "Q8_0", "Q1_0", "IQ4_NL", "MXFP4"), 4), **dict.fromkeys(("Q4_K", "Q5_K", "Q6_K"), 8)}
)
_LOOKED_UP = re.compile(r"(^|\.)(token_embd|position_embd|token_types|per_layer_token_embd|embed_tokens)\.")
_FEATURE = re.compile(r"(\w+) = 1")


def row_groups(system_info: str) -> RowGroups:
    """What the CPU of `llama_print_system_info` ("... AVX2 = 1 | ... | REPACK = 1 |") copies."""
    features = set(_FEATURE.findall(system_info))
    if "REPACK" not in features:
        return NONE
    if "AVX512" in features:
        return _AVX512
    if "AVX2" in features:
        return _AVX2
    return _NEON if "DOTPROD" in features else NONE


def is_copied(tensor: TensorInfo, groups: RowGroups) -> bool:
    """Whether a weight of a layer or of the output is copied."""
    return not _LOOKED_UP.search(tensor.name) and copied_as_output(tensor, groups)


def copied_as_output(tensor: TensorInfo, groups: RowGroups) -> bool:
    """Whether a matrix would be copied if it were multiplied."""
    group = groups.get(tensor.type)
    return group is not None and len(tensor.shape) >= 2 and tensor.shape[1] % group == 0
