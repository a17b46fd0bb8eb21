"""The bytes of a llama.cpp sequence state: what they are made of, and readers that refuse, by name,
what they do not know.

What `llama_state_seq_get_data` writes (llama-context.cpp, llama-kv-cache.cpp,
llama-memory-recurrent.cpp; little endian):

    state    u32 magic, i32 sequence, then its parts: a cache, a cell, or a cache and a tail (a
             second cache, or a cell)
    cache    u32 n_stream, then n_stream times a stream
    stream   u32 n_cells and, where that is not 0: n_cells times (i32 position, u32 n_seq = 1, i32
             sequence), u32 v_trans, u32 n_layer, then per layer (i32 type, u64 row bytes, n_cells
             rows) for K, and the same again for V
    cell     u32 n_cells = 1, i32 position, u32 n_seq = 0, u32 transposed, u32 n_layer, then (i32
             type, u64 row bytes, row) per R, and the same again per S

Every sequence has a stream of its own, so all others of a state are empty. Cells come in the order
of their index, not of their position. Nothing in the bytes tells where the buffers of V end and the
next part begins: shapes are learned from a state whose parts are known.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from erllama.errors import ErllamaError
from erllama.kv.layout import Rows

MAGIC = 0xAF143CD8
HEAD = struct.Struct("<Ii")
FIELD = struct.Struct("<iQ")
U32 = struct.Struct("<I")
CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("seq", "<i4")])
EXTENDED_CELL = np.dtype([("pos", "<i4"), ("n_seq", "<u4"), ("ext", "<i4", 3), ("seq", "<i4")])
BLOCK_BYTES = {0: 4, 1: 2, 2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 30: 2}  # ggml type: f32 f16 q4_0 q4_1 q5_0 q5_1 q8_0 bf16
STATE_BLOCK_BYTES = {0: 4}
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS


class KvUnreadable(ErllamaError):
    """A state cannot be read out as rows: the caller goes on without saving it."""

    code = "kv_unreadable"


class UnknownLayout(KvUnreadable):
    """The bytes are not what this file describes. The message begins with a name for the reason."""


@dataclass(frozen=True, slots=True)
class Field:
    """One buffer with a row per cell: its ggml type and the bytes of a row."""

    type: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The buffers of an attention cache as the bytes order them: K of every layer, then V of every
    layer (or no V: MLA keeps only K).
    """

    n_layer: int
    fields: tuple[Field, ...]

    def offsets(self, n_cells: int) -> list[int]:
        """Where the rows of each field begin, counted from the beginning of the stream."""
        first = U32.size + n_cells * CELL.itemsize + 2 * U32.size + FIELD.size
        return list(accumulate((n_cells * f.row_bytes + FIELD.size for f in self.fields[:-1]), initial=first))

    def size(self, n_cells: int) -> int:
        return self.offsets(n_cells)[-1] + n_cells * self.fields[-1].row_bytes

    def write_headers(self, stream: Rows, n_cells: int) -> None:
        """Everything but the rows, for cells at positions 0 .. n_cells - 1 of sequence 0."""
        U32.pack_into(stream.data, 0, n_cells)
        end = U32.size + n_cells * CELL.itemsize
        cells = stream[U32.size : end].view(CELL)
        cells["pos"], cells["n_seq"], cells["seq"] = np.arange(n_cells), 1, 0
        struct.pack_into("<II", stream.data, end, 0, self.n_layer)
        for field, offset in zip(self.fields, self.offsets(n_cells), strict=True):
            FIELD.pack_into(stream.data, offset - FIELD.size, field.type, field.row_bytes)


@dataclass(frozen=True, slots=True)
class StateShape:
    """The buffers of a recurrent state: R (convolution) of every recurrent layer, then S."""

    n_layer: int
    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        return 5 * U32.size + sum(FIELD.size + field.row_bytes for field in self.fields)


@dataclass(frozen=True, slots=True)
class Stream:
    """The one stream of a cache that holds cells: its place in the data, the position of each cell,
    its shape.
    """

    start: int
    stop: int
    positions: NDArray[np.int32]
    shape: CacheShape


class Cursor:
    """Reads forward through bytes that may end anywhere."""

    def __init__(self, data: Rows, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def n_left(self) -> int:
        return len(self.data) - self.at

    def take(self, n_bytes: int) -> Rows:
        if n_bytes > self.n_left:
            raise UnknownLayout(f"truncated: {n_bytes} bytes wanted at {self.at} of {len(self.data)}")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def unpack(self, codes: str) -> tuple[int, ...]:
        return struct.unpack(f"<{codes}", self.take(struct.calcsize(f"<{codes}")).data)

    def field(self) -> Field:
        return Field(*FIELD.unpack(self.take(FIELD.size).data))

    def check_end(self) -> None:
        if self.n_left:
            raise UnknownLayout(f"trailing_bytes: {self.n_left} bytes after the end")


def read_head(cursor: Cursor, seq_id: int) -> None:
    magic, found = HEAD.unpack(cursor.take(HEAD.size).data)
    if magic != MAGIC:
        raise UnknownLayout(f"magic: {magic:#x}, expected {MAGIC:#x}")
    if found != seq_id:
        raise UnknownLayout(f"sequence: the state of {found}, expected that of {seq_id}")


def read_cache(cursor: Cursor, n_stream: int, seq_id: int, wanted: CacheShape | None = None) -> Stream:
    """Without a wanted shape the cache must be the rest of the data."""
    (found,) = cursor.unpack("I")
    if found != n_stream:
        raise UnknownLayout(f"stream_count: {found} streams, expected {n_stream}")
    stream: Stream | None = None
    for index in range(n_stream):
        (n_cells,) = cursor.unpack("I")
        if n_cells == 0:
            continue
        if stream is not None:
            raise UnknownLayout("several_streams: more than one stream holds cells")
        cursor.at -= U32.size
        stream = read_stream(cursor, seq_id, wanted, n_after=U32.size * (n_stream - 1 - index))
    if stream is None:
        raise UnknownLayout("empty: no stream holds cells")
    return stream


def read_stream(cursor: Cursor, seq_id: int, wanted: CacheShape | None = None, *, n_after: int = 0) -> Stream:
    """A stream from its count on. Without a wanted shape it must reach to `n_after` bytes before
    the end of the data.
    """
    start = cursor.at
    (n_cells,) = cursor.unpack("I")
    if n_cells == 0:
        raise UnknownLayout("empty: a stream without cells")
    positions = _read_cells(cursor, n_cells, seq_id)
    v_trans, n_layer = cursor.unpack("II")
    if v_trans:
        raise UnknownLayout("transposed_v: V is stored by dimension, not by token (flash attention is off)")
    _check_layers(n_layer, None if wanted is None else wanted.n_layer)
    if wanted is not None:
        fields = _read_fields(cursor, n_cells, wanted=wanted.fields)
    else:
        fields = _read_fields(cursor, n_cells, n_layer)
        fields += _read_fields(cursor, n_cells, n_layer if cursor.n_left > n_after else 0)
    return Stream(start, cursor.at, positions, CacheShape(n_layer, fields))


def _read_cells(cursor: Cursor, n_cells: int, seq_id: int) -> NDArray[np.int32]:
    """The positions of the cells, each of which must belong to this sequence alone."""
    at = cursor.at
    cells = cursor.take(n_cells * CELL.itemsize).view(CELL)
    if _owned(cells, seq_id):
        return np.ascontiguousarray(cells["pos"])
    extended = cursor.data[at : at + n_cells * EXTENDED_CELL.itemsize]
    if len(extended) == n_cells * EXTENDED_CELL.itemsize and _owned(extended.view(EXTENDED_CELL), seq_id):
        raise UnknownLayout("extended_cells: cells carry more than a position and a sequence (M-RoPE)")
    raise UnknownLayout(f"shared_cells: not every cell belongs to sequence {seq_id} alone")


def _owned(cells: NDArray[np.void], seq_id: int) -> bool:
    return bool((cells["n_seq"] == 1).all() and (cells["seq"] == seq_id).all())


def _read_fields(
    cursor: Cursor,
    n_cells: int,
    n_fields: int | None = None,
    *,
    wanted: tuple[Field, ...] | None = None,
    block_bytes: Mapping[int, int] = BLOCK_BYTES,
) -> tuple[Field, ...]:
    """The buffers from here on, each with its rows: those wanted, `n_fields`, or all to the end."""
    fields: list[Field] = []
    n_fields = n_fields if wanted is None else len(wanted)
    while cursor.n_left if n_fields is None else len(fields) < n_fields:
        field, number = cursor.field(), len(fields)
        block = block_bytes.get(field.type)
        if block is None or field.row_bytes % block or (wanted is not None and field != wanted[number]):
            raise UnknownLayout(f"buffer: number {number} has type {field.type} and rows of {field.row_bytes} bytes")
        cursor.take(n_cells * field.row_bytes)
        fields.append(field)
    return tuple(fields)


def read_cell(cursor: Cursor, wanted: StateShape | None = None) -> tuple[int, StateShape]:
    """The position and the shape of a recurrent state. Without a wanted shape it must be the rest
    of the data.
    """
    n_cells, position, n_seq, transposed, n_layer = cursor.unpack("IiIII")
    if n_cells != 1 or n_seq != 0 or position < 0:  # llama.cpp asserts on the first
        raise UnknownLayout(f"recurrent_cell: {n_cells} cells, the first at position {position} with {n_seq} sequences")
    if transposed:
        raise UnknownLayout("transposed_s: the recurrent state is stored by dimension")
    _check_layers(n_layer, None if wanted is None else wanted.n_layer)
    fields = _read_fields(cursor, 1, wanted=None if wanted is None else wanted.fields, block_bytes=STATE_BLOCK_BYTES)
    if not 0 < len(fields) <= 2 * n_layer:
        raise UnknownLayout(f"layer_count: {len(fields)} recurrent buffers for {n_layer} layers")
    return position, StateShape(n_layer, fields)


def _check_layers(n_layer: int, wanted: int | None) -> None:
    if not 0 < n_layer <= MAX_LAYERS or wanted not in (None, n_layer):
        raise UnknownLayout(f"layer_count: {n_layer} layers" + (f", expected {wanted}" if wanted else ""))
