"""llama.cpp as a `Backend`: one model, one context, many sequences.

Ownership: `LlamaBackend` owns the weights (`llama_weights`), the context and the batch and frees
them in `close`, in that reverse order. The context may go earlier and come back (`release_context`,
`ensure_context`), and after it the weights (`unload`). The engine thread makes every call but
`abort`; loading happens before it starts, loading again on it. ctypes releases the GIL for the
length of a decode. What is done with KV is in `llama_state`.

Each sequence has its own KV stream (`kv_unified` off): its numerics do not depend on what its
neighbours hold, and attention does not walk over their cells. Measured on the 0.5B shape with 8
sequences of 1500 tokens, streams prefill 1.6 and decode 1.2 times as fast as a unified cache; with
short sequences both are equal. The price: a batch is computed in one pass only over sequences whose
ids follow each other, in ascending order. The engine keeps ids dense (`Admission.close_gap`,
`swap`), and `BatchViews.fill` orders the rows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llama_cpp
import numpy as np
import psutil
from numpy.typing import NDArray

from erllama.backend.batch_plan import BatchPlan
from erllama.config import EngineConfig, padded_context
from erllama.errors import DecodeAborted, DecodeFailed, ModelLoadError
from erllama.gguf.check import GgufInfo, check_cache_types, inspect_gguf
from erllama.gguf.probe import ProbeKind, default_memory_path, probe_gguf
from erllama.grammar.matcher import GrammarCompiler
from erllama.kv.codec import StateReading
from erllama.kv.image import StateImage
from erllama.kv.layout import KvImage, KvKind, KvLayout, Rows
from erllama.llama.abort import AbortFlag
from erllama.llama.batch import BatchViews
from erllama.llama.embed import LlamaEmbedder
from erllama.llama.library import build_id, captured_errors, gpu_devices, initialise, trim_heap
from erllama.llama.state import LlamaState
from erllama.llama.vocab import LlamaVocab
from erllama.llama.weights import LlamaWeights, private_bytes
from erllama.sequence.adapter_set import AdapterSet
from erllama.sequence.sampling import Logits
from erllama.stats import GpuDevice

_ALL_LAYERS = -1
_ABORTED = 2  # what llama_decode answers then


def _threads(config: EngineConfig) -> int:
    return len(os.sched_getaffinity(0)) if config.n_threads == "auto" else config.n_threads


def _gpu_layers(config: EngineConfig) -> int:
    if config.n_gpu_layers != "auto":
        return config.n_gpu_layers
    return _ALL_LAYERS if gpu_devices() else 0


class LlamaBackend:
    """See `Backend` for the contract of the public methods."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the model and make the context. Raises `ModelLoadError` with the reason."""
        self._weights: LlamaWeights | None = None
        self._ctx: Any = None
        self._batch: Any = None
        self._embedder: LlamaEmbedder | None = None
        self._active: AdapterSet = ()
        self._state: LlamaState | None = None  # None: an encoder, which keeps no KV
        self._abort = AbortFlag()
        self.kv_bytes = 0
        self.info: GgufInfo = inspect_gguf(config.path)
        check_cache_types(self.info, config.type_k, config.type_v)
        initialise()
        probed = probe_gguf(config.path, ProbeKind.MODEL, build=build_id(), memory_path=default_memory_path())
        self.generates = probed.generates
        self.n_gpu_layers = _gpu_layers(config)
        self.on_gpu = self.n_gpu_layers != 0 and bool(gpu_devices())
        self.n_threads = _threads(config)
        self._config = config
        try:
            self._weights = LlamaWeights(config.path, self._model_params(), self.info)
            self.vocab: LlamaVocab = self._weights.vocab
            self.grammars = GrammarCompiler(self.vocab.token_table)
            self.n_ctx = self._context_size()
            if self.generates:
                self._state = LlamaState(self.n_ctx, config.n_parallel)
                self._open_first_context()
                self._batch = llama_cpp.llama_batch_init(config.n_batch, 0, 1)
                self._views = BatchViews(self._batch, config.n_batch)
        except BaseException:
            self.close()
            raise

    # --- what never changes -----------------------------------------------------------------------

    @property
    def n_vocab(self) -> int:
        return self.vocab.n_vocab

    @property
    def eog_tokens(self) -> frozenset[int]:
        return self.vocab.eog_tokens

    def gpu_devices(self) -> tuple[GpuDevice, ...]:
        return gpu_devices()

    @property
    def embeds(self) -> bool:
        return True

    def piece(self, token: int) -> bytes:
        return self.vocab.piece(token)

    # --- decode -----------------------------------------------------------------------------------

    @property
    def max_logits(self) -> int:
        """One row a sequence: a row of 152 k floats for each token of a batch would be 300 MB."""
        return self._config.n_parallel

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        assert self._ctx, "decode without a context"
        n_logits = sum(row.n_logits for row in plan.rows)
        if n_logits > self.max_logits:  # llama.cpp would end the process
            raise DecodeFailed(f"a decode wants {n_logits} rows of logits, at most {self.max_logits}")
        self._use_adapters(plan.adapters)
        ends = self._views.fill(plan)
        self._abort.clear()
        status = llama_cpp.llama_decode(self._ctx, self._batch)
        if status == _ABORTED:
            raise DecodeAborted(f"a decode of {plan.n_tokens} tokens of {len(plan.rows)} sequences was aborted")
        if status != 0:
            raise DecodeFailed(
                f"llama_decode answered {status} for {plan.n_tokens} tokens of {len(plan.rows)} sequences"
            )
        return [
            tuple(map(self._logits, range(end - row.n_logits, end))) for row, end in zip(plan.rows, ends, strict=True)
        ]

    def abort(self) -> None:
        self._abort.set()

    def _logits(self, index: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        if self._embedder is None:
            self._loaded.ensure()
            self._embedder = LlamaEmbedder(
                self._model, n_ctx=self.n_ctx, n_threads=self.n_threads, causal=self.generates
            )
        return self._embedder.embed(inputs)

    # --- KV ---------------------------------------------------------------------------------------

    @property
    def _kv(self) -> LlamaState:
        assert self._state is not None, "an encoder has no KV"
        return self._state

    @property
    def kv_layout(self) -> KvLayout:
        return self._state.layout if self._state else KvLayout(KvKind.OPAQUE, problem="an encoder keeps no KV")

    @property
    def state_version(self) -> str:
        return f"llama-cpp-python {llama_cpp.__version__}, state {llama_cpp.LLAMA_STATE_SEQ_VERSION}"

    def drop(self, seq_id: int) -> None:
        self._kv.drop(seq_id)

    def read_kv(self, seq_id: int, n_tokens: int) -> StateReading:
        return self._kv.read_kv(seq_id, n_tokens)

    def read_checkpoint(self, seq_id: int) -> Rows | None:
        return self._kv.read_checkpoint(seq_id)

    def new_image(self, n_tokens: int) -> StateImage:
        return self._kv.new_image(n_tokens)

    def prefault(self, max_bytes: int) -> None:
        self._kv.prefault(max_bytes)

    def restore(self, seq_id: int, image: KvImage, n_tokens: int) -> None:
        assert isinstance(image, StateImage), "an image of another backend"
        self._kv.restore(seq_id, image, n_tokens)

    def cut(self, seq_id: int, n_tokens: int) -> bool:
        return self._kv.cut(seq_id, n_tokens)

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> bool:
        return self._kv.copy_prefix(source, target, n_tokens)

    def swap(self, a: int, b: int) -> None:
        self._kv.swap(a, b)

    # --- adapters ---------------------------------------------------------------------------------

    def load_adapter(self, handle: str, path: str) -> None:
        self._loaded.load_adapter(handle, path)

    def free_adapter(self, handle: str) -> None:
        if any(use.handle == handle for use in self._active):
            self._use_adapters(())
        self._loaded.free_adapter(handle)

    def _use_adapters(self, adapters: AdapterSet) -> None:
        if adapters == self._active:
            return
        n = len(adapters)
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*(self._loaded.adapter(use.handle) for use in adapters))
        scales = (ctypes.c_float * n)(*(use.scale for use in adapters))
        if llama_cpp.llama_set_adapters_lora(self._ctx, pointers, n, scales) != 0:
            raise DecodeFailed(f"llama.cpp refused the adapters {[use.handle for use in adapters]}")
        self._active = adapters

    # --- loading and freeing ----------------------------------------------------------------------

    @property
    def _loaded(self) -> LlamaWeights:
        assert self._weights is not None, "used after close"
        return self._weights

    @property
    def _model(self) -> Any:
        return self._loaded.model

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
        trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
        if not self.generates:
            return trained  # absolute positions: an encoder cannot go beyond what it was trained with
        return padded_context(self._config.n_ctx or trained)

    def _make_context(self) -> Any:
        config = self._config
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx * config.n_parallel
        params.n_seq_max = config.n_parallel
        params.n_batch = config.n_batch
        params.n_ubatch = min(512, config.n_batch)
        params.n_outputs_max = self.max_logits
        params.n_threads = params.n_threads_batch = self.n_threads
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if config.flash_attn else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = _ggml_type(config.type_k)
        params.type_v = _ggml_type(config.type_v)
        params.rope_freq_base = config.rope_freq_base
        params.rope_freq_scale = config.rope_freq_scale
        params.kv_unified = False
        params.no_perf = True
        with captured_errors() as errors:
            ctx = llama_cpp.llama_init_from_model(self._model, params)
        if not ctx:
            reason = "; ".join(errors) or "llama.cpp gives no reason; is there enough memory?"
            wanted = f"{config.n_parallel} x {self.n_ctx} tokens"
            raise ModelLoadError(f"cannot make a context of {wanted} for {config.path}: {reason}", param="n_ctx")
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

    def _open_context(self) -> None:
        private = private_bytes()
        self._ctx = self._make_context()
        try:
            self._kv.attach(self._ctx)
            self.kv_bytes = self._kv.kv_bytes or max(0, private_bytes() - private)  # an opaque layout does not tell
        except BaseException:
            self._free_context()
            raise

    def _free_context(self) -> None:
        if self._state is not None:
            self._state.detach()
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
            self._ctx = None
        self.kv_bytes = 0
        self._active = ()  # or an adapter that is freed later would be taken out of a context that is gone

    @property
    def has_context(self) -> bool:
        return bool(self._ctx)

    def ensure_context(self) -> bool:
        if self._ctx or not self.generates:
            return False
        self._loaded.ensure()
        self._open_context()
        return True

    def release_context(self) -> int:
        if not self._ctx and self._embedder is None:
            return 0
        resident = psutil.Process().memory_info().rss
        known = self.kv_bytes
        self._close_embedder()
        self._free_context()
        trim_heap()
        # the KV may be on a GPU, compute buffers are only seen here
        return max(known, resident - psutil.Process().memory_info().rss)

    @property
    def weights_loaded(self) -> bool:
        weights = self._weights
        return weights is not None and weights.model is not None

    @property
    def weights_bytes(self) -> int:
        weights = self._weights
        return weights.n_bytes if weights is not None and weights.model else 0

    @property
    def weights_private_bytes(self) -> int:
        weights = self._weights
        if weights is None or not (self.weights_mapped or self.on_gpu):
            return self.weights_bytes
        return min(weights.private_bytes, self.weights_bytes)

    @property
    def weights_mapped(self) -> bool:
        return self._config.use_mmap and not self._config.use_mlock

    def unload(self) -> int:
        if not self._model:
            return 0
        assert not self._ctx, "a context needs its weights"
        resident = psutil.Process().memory_info().rss
        self._close_embedder()
        self._loaded.unload()
        return max(0, resident - psutil.Process().memory_info().rss)

    def _close_embedder(self) -> None:
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    def close(self) -> None:
        self._close_embedder()
        self._free_context()
        if self._batch is not None:
            self._views.restore()
            llama_cpp.llama_batch_free(self._batch)
            self._batch = None
        if self._weights is not None:
            self._weights.close()
            self._weights = None


def _ggml_type(name: str) -> int:
    return int(getattr(llama_cpp, f"GGML_TYPE_{name.upper()}"))
