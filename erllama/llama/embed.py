"""Pooled embeddings, from encoder models (BERT and its family) and from generative ones.

Pooling is the model's own where its GGUF names one, else the mean over tokens. Vectors are
L2-normalised, as OpenAI's and llama-server's are. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from erllama.errors import NotSupported
from erllama.llama.pooled import PooledContext


class LlamaEmbedder:
    """Embeds token sequences of up to `n_ctx` tokens each."""

    def __init__(self, model: Any, *, n_ctx: int, n_threads: int, causal: bool) -> None:
        self._context = PooledContext(model, n_ctx=n_ctx, n_threads=n_threads, causal=causal)
        if self._context.pooling == llama_cpp.LLAMA_POOLING_TYPE_RANK:
            self.close()
            raise NotSupported("this model ranks pairs of texts; it has no embeddings", param="model")
        self._n_embd = int(llama_cpp.llama_model_n_embd_out(model))

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One vector of shape (n_embd,), float32, length 1, per input."""
        return [_unit(vector) for vector in self._context.run(inputs, self._n_embd, "embed")]

    def close(self) -> None:
        """Free the context. Idempotent."""
        self._context.close()


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.float32(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector
