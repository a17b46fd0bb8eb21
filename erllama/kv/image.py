"""A sequence state under assembly: rows go straight to where llama.cpp will read them, so a column
of a block costs one copy.

An image has one owner at a time. The pool may be used by any thread. Lengths are in tokens unless
they say bytes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import numpy as np

from erllama.kv.codec import KvCodec
from erllama.kv.layout import Rows
from erllama.kv.state_bytes import HEAD, MAGIC, U32, CacheShape, UnknownLayout


class BufferPool:
    """Buffers for whole states. Fresh memory costs 2 ms per MB at its first touch, more than the
    copies into it: one is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: Rows | None = None

    def take(self, n_bytes: int) -> Rows:
        with self._lock:
            buffer, self._free = self._free, None
        return buffer if buffer is not None and len(buffer) >= n_bytes else np.empty(n_bytes, dtype=np.uint8)

    def give(self, buffer: Rows) -> None:
        with self._lock:
            if self._free is None or len(buffer) > len(self._free):
                self._free = buffer

    def clear(self) -> None:
        with self._lock:
            self._free = None


class StateImage:
    """A `KvImage`: a buffer laid out as llama.cpp's own state."""

    def __init__(self, codec: KvCodec, n_tokens: int, pool: BufferPool, reserve: int = 0) -> None:
        """Room for `n_tokens`. A new buffer is made large enough for `reserve` tokens, to be of use
        again: untouched memory is free.
        """
        codec.check_readable()
        assert n_tokens > 0
        self.codec = codec
        self._n_tokens = n_tokens
        self._pool = pool
        self._buffer: Rows | None = pool.take(codec.state_bytes(max(n_tokens, reserve)))
        self._filled = np.zeros(n_tokens, dtype=np.bool_)
        self._checkpoint_bytes = 0
        self._checkpoint_tokens = 0
        self._columns: list[memoryview] | None = None

    def put(self, start: int, columns: tuple[str, ...], rows: tuple[Rows, ...]) -> None:
        positions = self.codec.layout.positions_of(start, columns, rows, self._n_tokens)
        for target, source in zip(self.codec.columns(self._stream(), self._n_tokens), rows, strict=True):
            target[positions] = source
        self._filled[positions] = True

    def memory(
        self, start: int, n_tokens: int, columns: Sequence[str], row_bytes: Sequence[int]
    ) -> Sequence[memoryview] | None:
        layout = self.codec.layout
        fits = start >= 0 and n_tokens > 0 and start + n_tokens <= self._n_tokens
        if not fits or tuple(columns) != layout.columns or tuple(row_bytes) != layout.row_bytes:
            return None
        lent = zip(self._lent(), row_bytes, strict=True)
        return [column[start * size : (start + n_tokens) * size] for column, size in lent]

    def received(self, start: int, n_tokens: int) -> None:
        self._filled[start : start + n_tokens] = True

    def abandon(self) -> None:
        """Copies what the state takes: what is not received yet is written again or never used. The old
        memory is nobody's from here on, also where there is none for the copy.
        """
        old = self._whole()
        self._buffer = self._columns = None
        moved = np.empty_like(old)
        n_bytes = self.codec.state_bytes(self._n_tokens)
        moved[:n_bytes] = old[:n_bytes]
        self._buffer = moved

    def put_checkpoint(self, data: Rows) -> None:
        try:
            n_tokens = self.codec.checkpoint_tokens(data)
        except UnknownLayout as unknown:
            raise ValueError(f"not a checkpoint of this model: {unknown.message}") from unknown
        if n_tokens > self._n_tokens:
            raise ValueError(f"a checkpoint after {n_tokens} tokens does not fit into {self._n_tokens}")
        at = self.codec.checkpoint_at(self._n_tokens)
        self._whole()[at : at + len(data)] = data
        self._checkpoint_bytes, self._checkpoint_tokens = len(data), n_tokens

    def view(self, n_tokens: int) -> Rows:
        """The state of the first `n_tokens`, for sequence 0. Raises `ValueError` where rows or the
        checkpoint are missing.

        A shorter state than there is room for is moved together in place; the image holds no more
        than that from then on.
        """
        if not 0 < n_tokens <= self._n_tokens:
            raise ValueError(f"{n_tokens} tokens of an image of {self._n_tokens}")
        if self.codec.cache is not None and not self._filled[:n_tokens].all():
            raise ValueError(f"rows are missing from position {int(np.argmin(self._filled[:n_tokens]))}")
        if self.codec.tail is not None and self._checkpoint_tokens != n_tokens:
            raise ValueError(f"the checkpoint is from after {self._checkpoint_tokens} tokens, expected {n_tokens}")
        if n_tokens < self._n_tokens:
            self._shrink(n_tokens)
        return self._finish()

    def close(self) -> None:
        buffer, self._buffer, self._columns = self._buffer, None, None
        if buffer is not None:
            self._pool.give(buffer)

    def _whole(self) -> Rows:
        assert self._buffer is not None, "a closed image"
        return self._buffer

    def _stream(self) -> Rows:
        return self._whole()[HEAD.size + U32.size :]

    def _lent(self) -> list[memoryview]:
        """All of each column, in the order of the layout; made once, which two threads may both do."""
        columns = self._columns
        if columns is None:
            of_rows = self.codec.columns(self._stream(), self._n_tokens)
            columns = self._columns = [column.reshape(-1).data for column in of_rows]
        return columns

    def _shrink(self, n_tokens: int) -> None:
        """Every target lies at or before its source and ends before the next source: ascending
        moves overwrite nothing unread.
        """
        codec, stream = self.codec, self._stream()
        if codec.cache is not None:
            offsets = zip(
                codec.cache.fields, codec.cache.offsets(n_tokens), codec.cache.offsets(self._n_tokens), strict=True
            )
            for field, target, source in offsets:
                ctypes.memmove(stream.ctypes.data + target, stream.ctypes.data + source, n_tokens * field.row_bytes)
        base = self._whole().ctypes.data
        target, source = codec.checkpoint_at(n_tokens), codec.checkpoint_at(self._n_tokens)
        ctypes.memmove(base + target, base + source, self._checkpoint_bytes)
        self._n_tokens, self._columns = n_tokens, None

    def _finish(self) -> Rows:
        """Write everything around rows and checkpoint."""
        codec, buffer = self.codec, self._whole()
        n_stream, empty = codec.traits.n_stream, codec.empty_streams_bytes
        HEAD.pack_into(buffer.data, 0, MAGIC, 0)
        if codec.cache is not None:
            U32.pack_into(buffer.data, HEAD.size, n_stream)
            codec.cache.write_headers(self._stream(), self._n_tokens)
            end = HEAD.size + U32.size + codec.cache.size(self._n_tokens)
            buffer[end : end + empty] = 0
        at = codec.checkpoint_at(self._n_tokens)
        end = at + self._checkpoint_bytes
        if isinstance(codec.tail, CacheShape):
            U32.pack_into(buffer.data, at - U32.size, n_stream)
            buffer[end : end + empty] = 0
            end += empty
        return buffer[:end]
