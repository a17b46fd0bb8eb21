"""llama.cpp as a `Backend`: one model, one context, many sequences.

Ownership: `LlamaBackend` owns the weights (`weights.py`) and the context and frees them in `close`,
in that reverse order. The context may go earlier and come back (`release_context`,
`ensure_context`), and after it the weights (`unload`). The engine thread makes every call but
`abort`; loading happens before it starts, loading again on it. ctypes releases the GIL for the
length of a decode. What is done with KV is in `state.py`.

Each sequence has its own KV stream (`kv_unified` off): its numerics do not depend on what its
neighbours hold, and attention does not walk over their cells. Measured on the 0.5B shape with 8
sequences of 1500 tokens, streams prefill 1.6 and decode 1.2 times as fast as a unified cache; with
short sequences both are equal. The price: a batch is computed in one pass only over sequences whose
ids follow each other, in ascending order. The engine keeps ids dense (`Admission.close_gap`,
`swap`), and `LlamaBatch.fill` orders the rows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import llama_cpp
import numpy as np
import psutil
from numpy.typing import NDArray

from erllama.backend.batch_plan import BatchPlan
from erllama.config import EngineConfig, padded_context
from erllama.errors import DecodeAborted, DecodeFailed, LoadFailedForNow, NotSupported
from erllama.gguf.check import check_adapter, check_cache_types
from erllama.grammar.matcher import GrammarCompiler
from erllama.kv.layout import KvKind
from erllama.llama.abort import AbortFlag
from erllama.llama.batch import LlamaBatch
from erllama.llama.context_params import context_params, max_logits
from erllama.llama.library import captured_errors, check_model, gpu_devices, reason_of, trim_heap
from erllama.llama.pooled import MAX_POOLED_TOKENS, PooledContext
from erllama.llama.row_numerics import attends_alike, probe_rows, slice_unit, threads_change_bits
from erllama.llama.state import LlamaState
from erllama.llama.vocab import LlamaVocab
from erllama.llama.weights import LlamaWeights, private_bytes
from erllama.sequence.sampling import Logits
from erllama.stats import AdapterSet

_ALL_LAYERS = -1
_ABORTED = 2  # what llama_decode answers then


class LlamaBackend(LlamaState):
    """See `ModelBackend` for the contract of the public names."""

    state_version = f"llama-cpp-python {llama_cpp.__version__}, state {llama_cpp.LLAMA_STATE_SEQ_VERSION}"
    gpu_devices = staticmethod(gpu_devices)

    def __init__(self, config: EngineConfig) -> None:
        """Load the model and make the context. Raises `ModelLoadError` with the reason."""
        super().__init__(config.n_parallel)
        self._config = config
        self.max_logits = max_logits(config)
        self.weights_mapped = config.use_mmap and not config.use_mlock
        self._pooled: PooledContext | None = None
        self._active: AdapterSet = ()
        self._abort = AbortFlag()
        self._exact_rows = 1
        self.kv_bytes = 0
        self.info, self.generates = check_model(config.path)
        check_cache_types(self.info, config.type_k, config.type_v)
        self.on_gpu = config.n_gpu_layers != 0 and bool(gpu_devices())
        all_or_none = _ALL_LAYERS if self.on_gpu else 0
        self.n_gpu_layers = all_or_none if config.n_gpu_layers == "auto" else config.n_gpu_layers
        self.n_threads = config.thread_limit or len(os.sched_getaffinity(0))
        self._n_threads_now = self.n_threads
        self.adapts_threads = config.n_threads == "auto" and not self.on_gpu and not threads_change_bits(config)
        self._weights = LlamaWeights(config.path, self._model_params())
        try:
            self.vocab: LlamaVocab = self._weights.vocab
            self.n_vocab = self.vocab.n_vocab
            self.eog_tokens = self.vocab.eog_tokens
            self.piece = self.vocab.piece
            self.token_text = self.vocab.token_text
            self.tokenize = partial(self.vocab.tokenize, add_special=False, parse_special=False)
            self.grammars = GrammarCompiler(self.vocab.token_table)
            self.n_ctx = self._context_size()
            self.embeds = not self.info.ranks
            self.rank_tokens = min(self.n_ctx, MAX_POOLED_TOKENS) if self.info.n_scores else 0
            if self.generates:
                self._batch = LlamaBatch(config.n_batch)
                self._open_first_context()
        except BaseException:
            self.close()
            raise

    # --- decode -----------------------------------------------------------------------------------

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        assert self._ctx, "decode without a context"
        n_logits = sum(row.n_logits for row in plan.rows)
        if n_logits > self.max_logits:  # llama.cpp would end the process
            raise DecodeFailed(f"a decode wants {n_logits} rows of logits, at most {self.max_logits}")
        self._use_adapters(plan.adapters)
        ends = self._batch.fill(plan)
        self._abort.clear()
        status = llama_cpp.llama_decode(self._ctx, self._batch.struct)
        if status == _ABORTED:
            raise DecodeAborted(f"a decode of {plan.n_tokens} tokens of {len(plan.rows)} sequences was aborted")
        if status != 0:
            raise DecodeFailed(
                f"llama_decode answered {status} for {plan.n_tokens} tokens of {len(plan.rows)} sequences"
            )
        return [
            tuple(map(self._logits, range(end - row.n_logits, end))) for row, end in zip(plan.rows, ends, strict=True)
        ]

    def set_threads(self, n_threads: int) -> None:
        if n_threads != self._n_threads_now:
            self._n_threads_now = n_threads
            if self._ctx:
                llama_cpp.llama_set_n_threads(self._ctx, n_threads, n_threads)

    @property
    def slice_unit(self) -> int:
        alike = self.kv_layout.kind is KvKind.ATTENTION and not self.on_gpu and not self._config.deterministic
        return slice_unit(self._config) if alike else 0

    def abort(self) -> None:
        self._abort.set()

    def exact_rows(self, n_sequences: int, n_tokens: int) -> int:
        return self._exact_rows if attends_alike(self._config, n_sequences, n_tokens) else 1

    def _logits(self, index: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        return self._pooled_context().embed(inputs)

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        if not self.rank_tokens:
            raise NotSupported("this model has no rank head: it cannot score pairs of texts", param="model")
        return self._pooled_context().rank(inputs)

    def _pooled_context(self) -> PooledContext:
        if self._pooled is None:
            self._weights.ensure()
            self._pooled = PooledContext(
                self._weights.model, n_ctx=self.n_ctx, n_threads=self.n_threads, causal=self.generates
            )
        return self._pooled

    # --- adapters ---------------------------------------------------------------------------------

    def check_adapter(self, path: str) -> None:
        check_adapter(path, self.info)

    def load_adapter(self, handle: str, path: str) -> None:
        self._weights.load_adapter(handle, path)

    def free_adapter(self, handle: str) -> None:
        if any(use.handle == handle for use in self._active):
            self._use_adapters(())
        self._weights.free_adapter(handle)

    def _use_adapters(self, adapters: AdapterSet) -> None:
        if adapters == self._active:
            return
        n = len(adapters)
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*(self._weights.adapter(use.handle) for use in adapters))
        scales = (ctypes.c_float * n)(*(use.scale for use in adapters))
        if llama_cpp.llama_set_adapters_lora(self._ctx, pointers, n, scales) != 0:
            raise DecodeFailed(f"llama.cpp refused the adapters {[use.handle for use in adapters]}")
        self._active = adapters

    # --- loading and freeing ----------------------------------------------------------------------

    def _model_params(self) -> Any:
        config = self._config
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = self.n_gpu_layers
        modes = {
            (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
            (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
            (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
            (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
        }
        params.load_mode = modes[config.use_mmap, config.use_mlock]
        return params

    def _context_size(self) -> int:
        trained = int(llama_cpp.llama_model_n_ctx_train(self._weights.model))
        if not self.generates:
            return trained  # absolute positions: an encoder cannot go beyond what it was trained with
        return padded_context(self._config.n_ctx or trained)

    def _make_context(self) -> Any:
        config = self._config
        params = context_params(config, self.n_ctx)
        params.n_threads = params.n_threads_batch = self._n_threads_now
        with captured_errors() as errors:
            ctx = llama_cpp.llama_init_from_model(self._weights.model, params)
        if not ctx:
            wanted = f"{config.n_parallel} x {self.n_ctx} tokens"
            reason = reason_of(errors, "llama.cpp gives no reason; is there enough memory?")
            raise LoadFailedForNow(f"cannot make a context of {wanted} for {config.path}: {reason}", param="n_ctx")
        self._abort.clear()
        self._abort.install(ctx)
        return ctx

    def _open_first_context(self) -> None:
        """In a thread that ends at once: the one that loads a model is not the one that decodes.

        Each thread that ever computed keeps a team of OpenMP workers, and with more workers than
        cores libgomp hardly spins any more: a probe on the loading thread cost the engine thread a
        quarter of its decode speed (82 to 59 tokens per second on two cores).
        """
        with ThreadPoolExecutor(1, thread_name_prefix="erllama-probe") as thread:
            thread.submit(self._open_context).result()
            if self._config.speculation == "exact" and not self.on_gpu and self.kv_layout.kind.cuttable:
                self._exact_rows = thread.submit(self._probe_rows).result()

    def _probe_rows(self) -> int:
        n_rows = probe_rows(self._decode_probe, self.n_vocab, self.max_logits)
        self.drop(0)
        return n_rows

    def _decode_probe(self, start: int, tokens: Sequence[int]) -> list[Logits]:
        """Compute tokens of sequence 0, which nobody uses yet, with logits after each."""
        self.cut(0, start)
        self._batch.struct.n_tokens = n = self._batch.put(0, 0, start, tokens, len(tokens))
        if llama_cpp.llama_decode(self._ctx, self._batch.struct) != 0:
            raise LoadFailedForNow(f"llama.cpp could not compute {n} tokens of {self._config.path}", param="path")
        return [self._logits(i) for i in range(n)]

    def _open_context(self) -> None:
        private = private_bytes()
        try:
            self._attach(self._make_context())
            # an opaque layout does not tell
            self.kv_bytes = self._known_kv_bytes() or max(0, private_bytes() - private)
        except BaseException:
            self._free_context()
            raise

    def _free_context(self) -> None:
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
        self._detach()
        self.kv_bytes = 0
        self._active = ()  # or an adapter that is freed later would be taken out of a context that is gone

    @property
    def has_context(self) -> bool:
        return bool(self._ctx)

    def ensure_context(self) -> bool:
        if self._ctx or not self.generates:
            return False
        self._weights.ensure()
        self._open_context()
        return True

    def release_context(self) -> int:
        if not self._ctx and self._pooled is None:
            return 0
        resident = psutil.Process().memory_info().rss
        known = self.kv_bytes
        self._close_pooled()
        self._free_context()
        trim_heap()
        # the KV may be on a GPU, compute buffers are only seen here
        return max(known, resident - psutil.Process().memory_info().rss)

    @property
    def weights_loaded(self) -> bool:
        return self._weights.model is not None

    @property
    def weights_bytes(self) -> int:
        return self._weights.n_bytes if self.weights_loaded else 0

    @property
    def weights_private_bytes(self) -> int:
        if not (self.weights_mapped or self.on_gpu):
            return self.weights_bytes
        return min(self._weights.private_bytes, self.weights_bytes)

    def unload(self) -> int:
        if not self.weights_loaded:
            return 0
        assert not self._ctx, "a context needs its weights"
        resident = psutil.Process().memory_info().rss
        self._close_pooled()
        self._weights.unload()
        return max(0, resident - psutil.Process().memory_info().rss)

    def _close_pooled(self) -> None:
        if self._pooled is not None:
            self._pooled.close()
            self._pooled = None

    def close(self) -> None:
        self._close_pooled()
        self._free_context()
        self._weights.close()
