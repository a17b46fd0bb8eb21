"""Scores of models with a rank head (cross encoders, Qwen3-Reranker): how well the two texts of a
pair match. Engine thread only.

A score is the head's first output as llama.cpp leaves it: a logit of any size, or for Qwen3 the
probability of the first label, "yes".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import llama_cpp

from erllama.errors import DecodeFailed, NotSupported
from erllama.llama.pooled import PooledContext


class LlamaRanker:
    """Ranks token sequences of up to `n_ctx` tokens, each of them a pair of texts."""

    def __init__(self, model: Any, *, n_ctx: int, n_threads: int, causal: bool) -> None:
        self._context = PooledContext(model, n_ctx=n_ctx, n_threads=n_threads, causal=causal)
        if self._context.pooling != llama_cpp.LLAMA_POOLING_TYPE_RANK:
            self.close()
            raise NotSupported("this model has no rank head", param="model")

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """One finite score per input."""
        scores = [float(output[0]) for output in self._context.run(inputs, 1, "rank")]
        if not all(map(math.isfinite, scores)):
            raise DecodeFailed("the rank head gave a score that is no finite number")
        return scores

    def close(self) -> None:
        """Free the context. Idempotent."""
        self._context.close()
