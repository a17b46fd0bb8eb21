"""The KV of the sequences of a llama.cpp context: read out, put back, cut, copied. Engine thread
only.

Whatever needs more than `llama_memory_seq_rm` of a whole sequence goes through the state of that
sequence as bytes: with one KV stream per sequence `llama_memory_seq_cp` of a range ends the
process, and a sliding window answers True to a rollback that leaves it unusable.

`LlamaBackend` makes the context and frees it. The codec is learned once and outlives contexts, so
that images can be made and filled while there is none.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from erllama.errors import DecodeFailed, ModelLoadError
from erllama.kv.codec import KvCodec, ModelTraits
from erllama.kv.image import BufferPool, StateImage
from erllama.kv.layout import KvImage, KvKind, KvLayout, KvReading, Rows
from erllama.kv.state_bytes import CacheShape, KvUnreadable

_WHOLE, _PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_NONE, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_PROBE_TOKENS = 2  # one could not tell a cell from its position
_SEVERAL_POSITIONS = (
    llama_cpp.LLAMA_ROPE_TYPE_MROPE,
    llama_cpp.LLAMA_ROPE_TYPE_IMROPE,
    llama_cpp.LLAMA_ROPE_TYPE_VISION,
)
_POINTER = ctypes.POINTER(ctypes.c_uint8)
_WINDOW_PAD = 256  # llama.cpp pads the cells of a sliding window to a multiple of this


_NO_KV = KvCodec.opaque(ModelTraits(n_stream=1), "an encoder keeps no KV")


class LlamaState:
    """The half of a backend that has to do with KV; see `Backend` for the contract of the public
    methods.
    """

    n_ctx: int

    def __init__(self, n_parallel: int) -> None:
        self.codec = _NO_KV  # until the first context
        self._n_parallel = n_parallel
        self._ctx: Any = None
        self._memory: Any = None
        self._scratch = np.empty(0, dtype=np.uint8)
        self._pool = BufferPool()

    # --- the context ------------------------------------------------------------------------------

    def _attach(self, ctx: Any) -> None:
        """Warm the context up and learn, or check, its layout. Raises `ModelLoadError` when it
        cannot compute two tokens.
        """
        self._ctx, self._memory = ctx, llama_cpp.llama_get_memory(ctx)
        codec = self._probe()
        assert self.codec in (_NO_KV, codec), "the same model and settings gave another layout"
        self.codec = codec

    def _detach(self) -> None:
        """Forget the context, and give back all memory but the images that are in use.
        Idempotent.
        """
        self._ctx = self._memory = None
        self._scratch = np.empty(0, dtype=np.uint8)
        self._pool.clear()

    def prefault(self, max_bytes: int) -> None:
        if self.kv_layout.kind is KvKind.OPAQUE:
            return
        size = self.codec.state_bytes(self.n_ctx)
        buffers = [np.empty(size, dtype=np.uint8), np.empty(size, dtype=np.uint8)]
        for buffer in buffers:
            # outside the interpreter's lock, which numpy would hold
            ctypes.memset(buffer.ctypes.data, 0, min(size, max_bytes))
        self._pool.give(buffers[0])
        self._scratch = buffers[1]  # whoever reads into the old one now keeps that

    def _probe(self) -> KvCodec:
        model = llama_cpp.llama_get_model(self._ctx)
        traits = ModelTraits(
            n_stream=self._n_parallel,
            recurrent=bool(llama_cpp.llama_model_is_recurrent(model)),
            hybrid=bool(llama_cpp.llama_model_is_hybrid(model)),
            window=int(llama_cpp.llama_model_n_swa(model)),
            several_positions=llama_cpp.llama_model_rope_type(model) in _SEVERAL_POSITIONS,
        )
        if not self._memory or llama_cpp.llama_model_has_encoder(model):
            return KvCodec.opaque(traits, "memory: an encoder or a diffusion model keeps no KV of its own")
        tokens = (llama_cpp.llama_token * _PROBE_TOKENS)()
        status = llama_cpp.llama_decode(self._ctx, llama_cpp.llama_batch_get_one(tokens, _PROBE_TOKENS))
        if status != 0:
            raise ModelLoadError(
                f"llama_decode answered {status} for the first two tokens of a new context", param="path"
            )
        partial = self._read(0, _PARTIAL).copy()
        codec = KvCodec.learn(self._read(0), partial, traits, _PROBE_TOKENS)
        llama_cpp.llama_memory_clear(self._memory, True)  # the rows, too: free cells are read and masked
        return codec

    @property
    def kv_layout(self) -> KvLayout:
        return self.codec.layout

    def _known_kv_bytes(self) -> int:
        """What the context holds for KV, as far as the layout tells; 0 for an opaque one."""
        codec = self.codec
        bytes_per_sequence = self.n_ctx * codec.layout.bytes_per_token
        if isinstance(codec.tail, CacheShape):
            n_cells = codec.traits.window + int(llama_cpp.llama_n_ubatch(self._ctx))
            n_cells = min(self.n_ctx, -(-n_cells // _WINDOW_PAD) * _WINDOW_PAD)
            bytes_per_sequence += n_cells * sum(field.row_bytes for field in codec.tail.fields)
        elif codec.tail is not None:
            bytes_per_sequence += codec.tail.size
        return self._n_parallel * bytes_per_sequence

    # --- one sequence -----------------------------------------------------------------------------

    def length(self, seq_id: int) -> int:
        """Tokens that the sequence holds."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, seq_id)) + 1 if self._memory else 0

    def drop(self, seq_id: int) -> None:
        if self._memory:
            llama_cpp.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def read_kv(self, seq_id: int, n_tokens: int) -> KvReading:
        self.codec.check_readable()
        return self.codec.parse(self._read(seq_id), seq_id, n_tokens)

    def read_checkpoint(self, seq_id: int) -> Rows | None:
        codec = self.codec
        codec.check_readable()
        if codec.tail is None:
            return None
        return codec.parse_checkpoint(self._read(seq_id, _PARTIAL), seq_id, self.length(seq_id))

    def new_image(self, n_tokens: int) -> StateImage:
        return StateImage(self.codec, n_tokens, self._pool, reserve=self.n_ctx)

    def restore(self, seq_id: int, image: KvImage, n_tokens: int) -> None:
        assert self.length(seq_id) == 0, f"sequence {seq_id} still holds {self.length(seq_id)} tokens"
        assert isinstance(image, StateImage), "an image of another backend"
        assert image.codec == self.codec, "an image of another model"
        if n_tokens > self.n_ctx:
            raise DecodeFailed(f"a state of {n_tokens} tokens does not fit into a context of {self.n_ctx}")
        try:
            state = image.view(n_tokens)
        except ValueError as error:
            raise DecodeFailed(f"cannot restore {n_tokens} tokens: {error}") from error
        self._write(seq_id, state, n_tokens)

    def cut(self, seq_id: int, n_tokens: int) -> bool:
        length = self.length(seq_id)
        assert 0 <= n_tokens <= length, (seq_id, n_tokens, length)
        if n_tokens == length:
            return True
        if n_tokens == 0:
            self.drop(seq_id)
            return True
        if not self.kv_layout.kind.cuttable:
            return False
        done = bool(llama_cpp.llama_memory_seq_rm(self._memory, seq_id, n_tokens, -1))
        assert not done or self.length(seq_id) == n_tokens, (seq_id, n_tokens, self.length(seq_id))
        return done

    # --- two sequences ----------------------------------------------------------------------------

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> bool:
        """The whole state is copied and then cut: what is cut off costs its copy, and its cells are
        free like any other.
        """
        length = self.length(source)
        assert self.length(target) == 0, f"sequence {target} still holds {self.length(target)} tokens"
        assert 0 <= n_tokens <= length, (source, n_tokens, length)
        if n_tokens == 0:
            return True
        if n_tokens < length and not self.kv_layout.kind.cuttable:
            return False
        try:
            state = self._read(source)
        except KvUnreadable as error:
            raise DecodeFailed(error.message) from error
        self._write(target, state, length)
        if self.cut(target, n_tokens):
            return True
        self.drop(target)
        return False

    def swap(self, a: int, b: int) -> None:
        assert a != b, "a sequence with itself"
        n_a, n_b = self.length(a), self.length(b)
        spare: Rows | None = None
        try:
            spare = self._pool.take(self._state_size(b)) if n_a and n_b else None
            of_a = self._read(a) if n_a else None
            of_b = self._read(b, buffer=spare) if n_b else None
            self.drop(a)
            self.drop(b)
            if of_a is not None:
                self._write(b, of_a, n_a)
            if of_b is not None:
                self._write(a, of_b, n_b)
        except (DecodeFailed, KvUnreadable, MemoryError) as error:
            self.drop(a)
            self.drop(b)
            raise DecodeFailed(f"llama.cpp could not exchange the sequences {a} and {b}: {error}") from error
        finally:
            if spare is not None:
                self._pool.give(spare)

    # --- llama.cpp's bytes ------------------------------------------------------------------------

    def _state_size(self, seq_id: int, flags: int = _WHOLE) -> int:
        return int(llama_cpp.llama_state_seq_get_size_ext(self._ctx, seq_id, flags))

    def _read(self, seq_id: int, flags: int = _WHOLE, buffer: Rows | None = None) -> Rows:
        """The state of a sequence, in `buffer` or in the scratch: valid until the next call. Raises
        `KvUnreadable`.
        """
        n_bytes = self._state_size(seq_id, flags)
        if buffer is None:
            buffer = self._scratch_of(n_bytes)
        n_read = int(
            llama_cpp.llama_state_seq_get_data_ext(self._ctx, buffer.ctypes.data_as(_POINTER), n_bytes, seq_id, flags)
        )
        if n_read == 0 or n_read != n_bytes:
            raise KvUnreadable(f"llama.cpp gave {n_read} of {n_bytes} bytes for the state of sequence {seq_id}")
        return buffer[:n_bytes]

    def _scratch_of(self, n_bytes: int) -> Rows:
        """Kept, and made for the longest sequence: untouched memory is free, the first touch of it
        costs more than the copy.
        """
        scratch = self._scratch
        if len(scratch) < n_bytes:
            opaque = self.kv_layout.kind is KvKind.OPAQUE
            most = n_bytes + n_bytes // 2 if opaque else self.codec.state_bytes(self.n_ctx)
            scratch = self._scratch = np.empty(max(n_bytes, most), dtype=np.uint8)
        return scratch

    def _write(self, seq_id: int, state: Rows, n_tokens: int) -> None:
        """Put a state into an empty sequence. Raises `DecodeFailed` and leaves it empty when it
        does not end up with `n_tokens`.
        """
        n_read = int(
            llama_cpp.llama_state_seq_set_data_ext(
                self._ctx, state.ctypes.data_as(_POINTER), len(state), seq_id, _WHOLE
            )
        )
        if n_read != len(state) or self.length(seq_id) != n_tokens:
            found = self.length(seq_id)
            self.drop(seq_id)
            raise DecodeFailed(
                f"llama.cpp took {n_read} of {len(state)} bytes for sequence {seq_id} and has {found} of "
                f"{n_tokens} tokens"
            )
