"""Pooled embeddings, from encoder models (BERT and its family) and from generative ones, in a
context of their own.

Pooling is the model's own where its GGUF names one, else the mean over tokens. Vectors are
L2-normalised, as OpenAI's and llama-server's are. The context is made at the first use, holds
nothing between calls, and never touches the KV of running sequences. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from erllama.errors import ContextOverflow, DecodeFailed, InvalidParameter, NotSupported
from erllama.llama.batch import LlamaBatch
from erllama.llama.library import captured_errors

_MAX_SEQUENCES = 16  # inputs per decode
_MAX_TOKENS = 8192  # an encoder attends over a whole input at once: its compute buffer grows with this


class LlamaEmbedder:
    """Embeds token sequences of up to `n_ctx` tokens each."""

    def __init__(self, model: Any, *, n_ctx: int, n_threads: int, causal: bool) -> None:
        self._n_ctx = min(n_ctx, _MAX_TOKENS)
        self._n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._ctx = self._make_context(model, n_threads, llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
        if self._ctx and llama_cpp.llama_pooling_type(self._ctx) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            llama_cpp.llama_free(self._ctx)
            self._ctx = self._make_context(model, n_threads, llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        if not self._ctx:
            raise NotSupported("llama.cpp cannot make an embedding context for this model", param="model")
        if llama_cpp.llama_pooling_type(self._ctx) == llama_cpp.LLAMA_POOLING_TYPE_RANK:
            self.close()
            raise NotSupported("this model ranks pairs of texts; it has no embeddings", param="model")
        self._encode = llama_cpp.llama_decode if causal else llama_cpp.llama_encode
        self._n_embd = int(llama_cpp.llama_model_n_embd_out(model))
        self._batch = LlamaBatch(self._n_ctx)

    def _make_context(self, model: Any, n_threads: int, pooling: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self._n_ctx
        params.n_seq_max = _MAX_SEQUENCES
        params.kv_unified = True  # inputs share n_ctx tokens, however they divide them
        params.embeddings = True
        params.pooling_type = pooling
        params.n_threads = params.n_threads_batch = n_threads
        params.no_perf = True
        with captured_errors():
            return llama_cpp.llama_init_from_model(model, params)

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One vector of shape (n_embd,), float32, length 1, per input."""
        for i, tokens in enumerate(inputs):
            if not tokens:
                raise InvalidParameter(f"input[{i}] has no tokens", param="input")
            if len(tokens) > self._n_ctx:
                raise ContextOverflow(
                    f"input[{i}] has {len(tokens)} tokens; this model embeds at most {self._n_ctx}", param="input"
                )
            if not (min(tokens) >= 0 and max(tokens) < self._n_vocab):
                raise InvalidParameter(f"input[{i}] holds a token id outside 0 to {self._n_vocab - 1}", param="input")
        vectors: list[NDArray[np.float32]] = []
        while len(vectors) < len(inputs):
            vectors += self._embed_some(inputs[len(vectors) :])
        return vectors

    def _embed_some(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Embed as many of the first inputs as fit into one decode (at least one)."""
        n_tokens = n_inputs = 0
        for seq_id, tokens in enumerate(inputs[:_MAX_SEQUENCES]):
            if n_tokens + len(tokens) > self._n_ctx:
                break
            n_tokens = self._batch.put(n_tokens, seq_id, 0, tokens, n_logits=len(tokens))
            n_inputs += 1
        self._batch.struct.n_tokens = n_tokens
        memory = llama_cpp.llama_get_memory(self._ctx)
        if memory:
            llama_cpp.llama_memory_clear(memory, False)
        status = self._encode(self._ctx, self._batch.struct)
        if status != 0:
            raise DecodeFailed(f"llama.cpp answered {status} for {n_tokens} tokens of {n_inputs} inputs")
        return [self._vector(seq_id) for seq_id in range(n_inputs)]

    def _vector(self, seq_id: int) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_embeddings_seq(self._ctx, seq_id)
        vector: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._n_embd,)).copy()
        norm = np.float32(np.linalg.norm(vector))
        if norm > 0:
            vector /= norm
        return vector

    def close(self) -> None:
        """Free the context. Idempotent."""
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
            self._ctx = None
