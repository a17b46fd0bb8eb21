"""How many rows one decode may have for llama.cpp to compute each of them bit for bit as it would
alone. It chooses kernels by the number of rows.

Matrices: tried with the loaded model, because the thresholds depend on the type of each matrix, on
the processor and on the build. Measured on x86 with AVX-512: files whose matrices are all Q8_0, or
Q4_0 beside Q8_0, any number; those with Q5_K or Q6_K (also Q4_0 as llama-quantize writes it, for its
output is Q6_K) up to 7; with Q2_K, Q3_K or Q4_K up to 3; F16 and BF16 one.

Attention: llama.cpp's source says (ggml-cpu/ops.cpp, flash_attn_ext). With K and V both f16, or both
f32, a lone row over 512 cells and more is computed in parts, several rows are not; from 64 rows of
a sequence on, they are computed in tiles. Any other pair of types has one path. Without flash
attention, and on GPUs, nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from erllama.backend.slices import ROW_UNIT, TILE_UNIT
from erllama.config import CTX_PAD, EngineConfig
from erllama.sequence.sampling import Logits

MAX_EXACT_ROWS = TILE_UNIT - 1
_TRIED = (2, 3, 4, 6, 8, 16, MAX_EXACT_ROWS)  # on both sides of the thresholds, 4 and 8
_N_ALONE = 8  # rows that are computed alone, too
_SPLIT_CELLS = 512

Decode = Callable[[int, Sequence[int]], Sequence[Logits]]
"""Compute tokens from a position on; logits after each, valid until the next call. What was there from
that position on is forgotten before."""


def probe_rows(decode: Decode, n_vocab: int, n_most: int) -> int:
    """The most rows, up to `n_most`, that a lone sequence of few tokens may have at once. Computes
    some 110 tokens where all is well.
    """
    tokens = [(1 + 7919 * i) % n_vocab for i in range(max(n_most, _N_ALONE))]
    alone = [decode(i, tokens[i : i + 1])[0].copy() for i in range(_N_ALONE)]
    exact = 1
    for n_rows in (*(n for n in _TRIED if n < n_most), n_most):
        rows = decode(0, tokens[:n_rows])
        if not all(np.array_equal(row, one) for row, one in zip(rows, alone, strict=False)):
            break
        exact = n_rows
    return exact


def has_two_paths(config: EngineConfig) -> bool:
    """Whether flash attention on the CPU computes rows in more than one way: in tiles when there are
    many, and in as many parts as there are threads when one is alone.
    """
    return config.flash_attn and config.type_k == config.type_v and config.type_k in ("f16", "f32")


def slice_unit(config: EngineConfig) -> int:
    """`Backend.slice_unit` of a model with plain attention on the CPU."""
    unit = TILE_UNIT if has_two_paths(config) else ROW_UNIT
    return unit if config.n_batch >= 2 * unit else 0


def threads_change_bits(config: EngineConfig) -> bool:
    """Whether the number of threads could change what a promise of `deterministic` covers: a lone
    token's attention over more than 256 cells is summed up by threads.
    """
    return config.deterministic and has_two_paths(config)


def attends_alike(config: EngineConfig, n_sequences: int, n_tokens: int) -> bool:
    """Whether attention over up to `n_tokens` takes one path for 1 to 63 rows of each of `n_sequences`
    that are computed in one pass.
    """
    if not config.flash_attn:
        return False
    return not has_two_paths(config) or n_sequences > 1 or -(-n_tokens // CTX_PAD) * CTX_PAD < _SPLIT_CELLS
