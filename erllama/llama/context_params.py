"""How the context of an engine is made: for it, and for whoever asks what it would take."""

from __future__ import annotations

from typing import Any

import llama_cpp

from erllama.config import MAX_UBATCH, EngineConfig
from erllama.llama.row_numerics import MAX_EXACT_ROWS
from erllama.speculation.draft_length import LENGTHS

_GGML_TYPE_BF16 = 30  # llama-cpp-python has no name for it


def context_params(config: EngineConfig, n_ctx: int) -> Any:
    """llama_context_params of a context with `config.n_parallel` sequences of `n_ctx` tokens; threads
    are left to the caller.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx * config.n_parallel
    params.n_seq_max = config.n_parallel
    params.n_batch = config.n_batch
    params.n_ubatch = min(MAX_UBATCH, config.n_batch)
    params.n_outputs_max = max_logits(config)
    params.flash_attn_type = (
        llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if config.flash_attn else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.type_k = _ggml_type(config.type_k)
    params.type_v = _ggml_type(config.type_v)
    params.rope_freq_base = config.rope_freq_base
    params.rope_freq_scale = config.rope_freq_scale
    params.kv_unified = False
    params.no_perf = True
    return params


def max_logits(config: EngineConfig) -> int:
    """Rows of logits of one decode: for each token of a batch, 152 k floats each, it would be 300 MB."""
    if config.speculation == "off":
        return config.n_parallel
    return max(config.n_parallel, min(MAX_EXACT_ROWS, LENGTHS[-1] * config.n_parallel, config.n_batch))


def _ggml_type(name: str) -> int:
    if name == "bf16":
        return _GGML_TYPE_BF16
    return int(getattr(llama_cpp, f"GGML_TYPE_{name.upper()}"))
