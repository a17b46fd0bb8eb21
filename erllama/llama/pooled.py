"""A context that computes one pooled output per token sequence: an embedding, or with a rank head
(cross encoders, Qwen3-Reranker) how well the two texts of a pair match.

Pooling is the model's own where its GGUF names one, else the mean over tokens. Vectors are
L2-normalised, as OpenAI's and llama-server's are. A score is the head's first output as llama.cpp
leaves it: a logit of any size, or for Qwen3 the probability of the first label, "yes".

It is made at the first use, holds nothing between calls, and never touches the KV of running
sequences. Engine thread only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from erllama.errors import ContextOverflow, DecodeFailed, InvalidParameter, NotSupported
from erllama.llama.batch import LlamaBatch
from erllama.llama.library import captured_errors

MAX_POOLED_TOKENS = 8192  # an encoder attends over a whole input at once: its compute buffer grows with this
_MAX_SEQUENCES = 16  # inputs per decode


class PooledContext:
    """Inputs of up to `n_ctx` tokens each, as many of them in a decode as fit."""

    def __init__(self, model: Any, *, n_ctx: int, n_threads: int, causal: bool) -> None:
        """Raises `NotSupported` when llama.cpp makes no such context."""
        self._n_ctx = min(n_ctx, MAX_POOLED_TOKENS)
        self._n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._ctx = self._make_context(model, n_threads, llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
        if self._ctx and llama_cpp.llama_pooling_type(self._ctx) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            llama_cpp.llama_free(self._ctx)
            self._ctx = self._make_context(model, n_threads, llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        if not self._ctx:
            raise NotSupported("llama.cpp cannot make a context with pooling for this model", param="model")
        self._ranks = llama_cpp.llama_pooling_type(self._ctx) == llama_cpp.LLAMA_POOLING_TYPE_RANK
        self._n_embd = int(llama_cpp.llama_model_n_embd_out(model))
        self._compute = llama_cpp.llama_decode if causal else llama_cpp.llama_encode
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
        """One vector of shape (n_embd,), float32, length 1, per input. Raises `NotSupported`,
        `InvalidParameter` or `ContextOverflow`.
        """
        if self._ranks:
            raise NotSupported("this model ranks pairs of texts; it has no embeddings", param="model")
        return [_unit(vector) for vector in self._run(inputs, self._n_embd, "embed")]

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """One finite score per input, each of them a pair of texts. Raises as `embed` does."""
        if not self._ranks:
            raise NotSupported("this model has no rank head", param="model")
        scores = [float(output[0]) for output in self._run(inputs, 1, "rank")]
        if not all(map(math.isfinite, scores)):
            raise DecodeFailed("the rank head gave a score that is no finite number")
        return scores

    def _run(self, inputs: Sequence[Sequence[int]], width: int, verb: str) -> list[NDArray[np.float32]]:
        """`width` floats per input. `verb` is what the model does, for the words of an error."""
        for i, tokens in enumerate(inputs):
            self._check(i, tokens, verb)
        outputs: list[NDArray[np.float32]] = []
        while len(outputs) < len(inputs):
            outputs += self._run_some(inputs[len(outputs) :], width)
        return outputs

    def _check(self, i: int, tokens: Sequence[int], verb: str) -> None:
        if not tokens:
            raise InvalidParameter(f"input[{i}] has no tokens", param="input")
        if len(tokens) > self._n_ctx:
            raise ContextOverflow(
                f"input[{i}] has {len(tokens)} tokens; this model {verb}s at most {self._n_ctx}", param="input"
            )
        if not (min(tokens) >= 0 and max(tokens) < self._n_vocab):
            raise InvalidParameter(f"input[{i}] holds a token id outside 0 to {self._n_vocab - 1}", param="input")

    def _run_some(self, inputs: Sequence[Sequence[int]], width: int) -> list[NDArray[np.float32]]:
        """Compute as many of the first inputs as fit into one decode (at least one)."""
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
        status = self._compute(self._ctx, self._batch.struct)
        if status != 0:
            raise DecodeFailed(f"llama.cpp answered {status} for {n_tokens} tokens of {n_inputs} inputs")
        return [self._output(seq_id, width) for seq_id in range(n_inputs)]

    def _output(self, seq_id: int, width: int) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_embeddings_seq(self._ctx, seq_id)
        output: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(width,)).copy()
        return output

    def close(self) -> None:
        """Free the context. Idempotent."""
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
            self._ctx = None


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.float32(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector
