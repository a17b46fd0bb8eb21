"""A block as one Arrow record batch, and back. `block_file` documents the columns.

Nothing here copies rows except `Frame.fill`, into the encoder's scratch memory. Pure otherwise, on any thread.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.header import Header


class Layout(NamedTuple):
    """What decides the shape of a record batch of ROWS."""

    columns: tuple[str, ...]
    row_bytes: tuple[int, ...]
    n_tokens: int

    @classmethod
    def of(cls, block: Block) -> Self:
        return cls(block.columns, tuple(rows.shape[1] for rows in block.rows), len(block.tokens))

    @property
    def bytes_needed(self) -> int:
        """Of scratch memory: every column begins at a multiple of 64."""
        return sum(_to_64(row_bytes * self.n_tokens) for row_bytes in (4, *self.row_bytes))


class Frame(NamedTuple):
    """A record batch over the encoder's scratch memory, and where to put rows so that they are in it."""

    batch: Any  # pa.RecordBatch
    tokens: NDArray[np.uint32]
    rows: list[NDArray[np.uint8]]

    def fill(self, block: Block) -> None:
        self.tokens[:] = block.tokens
        for ours, theirs in zip(self.rows, block.rows, strict=True):
            np.copyto(ours, theirs)


def _to_64(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64


def contradiction(block: Block) -> str | None:
    """What keeps `block` from being stored: it is not what `Block` says it is."""
    kind = block.id.kind
    if block.tokens.dtype != np.uint32 or block.tokens.ndim != 1:
        return "token ids are not a list of uint32"
    if not math.isfinite(block.created_s):
        return f"created_s is {block.created_s}"
    if kind is Kind.ROWS:
        return _rows_problem(block)
    if block.columns or block.rows:
        return "rows in an object without rows"
    return _end_problem(block) if kind is Kind.END else _extras_problem(block)


def _extras_problem(block: Block) -> str | None:
    return "logits or a checkpoint outside an END" if block.logits is not None or block.checkpoint is not None else None


def _rows_problem(block: Block) -> str | None:
    n = block.id.n_tokens
    if len(block.tokens) != n:
        return f"{len(block.tokens)} token ids, {n} in the name"
    if len(block.columns) != len(block.rows):
        return f"{len(block.columns)} column names, {len(block.rows)} columns"
    if len({"token", *block.columns}) != len(block.columns) + 1:
        return "column names repeat"
    for name, rows in zip(block.columns, block.rows, strict=True):
        if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != n or rows.shape[1] < 1:
            return f"column {name} is {rows.dtype}{rows.shape}, not {n} rows of bytes"
    return _extras_problem(block)


def _end_problem(block: Block) -> str | None:
    if len(block.tokens):
        return f"an END with {len(block.tokens)} token ids"
    if block.logits is not None and (block.logits.dtype != np.float32 or block.logits.ndim != 1):
        return "logits are not a list of float32"
    if block.checkpoint is not None and (block.checkpoint.dtype != np.uint8 or block.checkpoint.ndim != 1):
        return "the checkpoint is not a list of bytes"
    return None


def frame_over(scratch: NDArray[np.uint8], layout: Layout) -> Frame:
    types = [pa.uint32(), *(pa.binary(row_bytes) for row_bytes in layout.row_bytes)]
    places, at = [], 0
    for row_bytes in (4, *layout.row_bytes):
        places.append(scratch[at : at + row_bytes * layout.n_tokens].reshape(layout.n_tokens, row_bytes))
        at += _to_64(row_bytes * layout.n_tokens)
    arrays = [
        pa.Array.from_buffers(type_, layout.n_tokens, [None, pa.py_buffer(place)]) for type_, place in zip(types, places, strict=True)
    ]
    names = ("token", *layout.columns)
    schema = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in zip(names, types, strict=True)])
    tokens = places[0].view(np.uint32).reshape(layout.n_tokens)
    return Frame(pa.RecordBatch.from_arrays(arrays, schema=schema), tokens, places[1:])


def small_batch(block: Block) -> Any:
    """REPLAY or END, over the block's own memory."""
    if block.id.kind is Kind.REPLAY:
        ids = pa.array(np.ascontiguousarray(block.tokens))
        return pa.RecordBatch.from_arrays([ids], schema=pa.schema([pa.field("token", pa.uint32(), nullable=False)]))
    logits, checkpoint = pa.nulls(1, pa.list_(pa.float32())), pa.nulls(1, pa.large_binary())
    if block.logits is not None:
        values = pa.array(np.ascontiguousarray(block.logits))
        logits = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    if block.checkpoint is not None:
        ends = pa.py_buffer(np.array([0, len(block.checkpoint)], np.int64))
        data = pa.py_buffer(np.ascontiguousarray(block.checkpoint))
        checkpoint = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return pa.RecordBatch.from_arrays([logits, checkpoint], names=["logits", "checkpoint"])


def block_of(batch: Any, header: Header, expect: BlockId) -> Block:
    """Raises ValueError or what Arrow raises for a table that is not what the header says."""
    if batch.num_rows != header.rows:
        raise ValueError(f"{batch.num_rows} rows instead of {header.rows}")
    about: dict[str, Any] = {"reason": header.reason, "created_s": header.created_s, "build": header.build}
    if header.kind == Kind.END:
        block = Block(expect, np.empty(0, np.uint32), **_end_values(batch), **about)
    else:
        block = Block(expect, **_token_rows(batch), **about)
    if block.payload_bytes != header.payload_bytes:
        raise ValueError(f"{block.payload_bytes} bytes of payload instead of {header.payload_bytes}")
    return block


class _Run(NamedTuple):
    """Columns of one width that lie at equal distances: one array, taken apart by its first axis, is all of them."""

    at: int
    shape: tuple[int, int, int]  # columns, tokens, bytes of a row
    distance: int


class RowsShape(NamedTuple):
    """Where the columns of an uncompressed ROWS file lie. `frame`: its bytes other than body, seal and header, which decide that."""

    frame: tuple[bytes, ...]
    columns: tuple[str, ...]
    n_tokens: int
    payload_bytes: int
    tokens_at: int
    runs: tuple[_Run, ...]

    @classmethod
    def of(cls, block: Block, file: memoryview, frame: tuple[bytes, ...]) -> Self | None:
        """None unless `block` is a view of `file` throughout."""
        begin = np.frombuffer(file, np.uint8).ctypes.data
        parts: tuple[NDArray[Any], ...] = (block.tokens, *block.rows)
        tokens_at, *rows_at = (part.ctypes.data - begin for part in parts)
        if any(not 0 <= at <= at + part.nbytes <= len(file) for at, part in zip((tokens_at, *rows_at), parts, strict=True)):
            return None
        return cls(frame, block.columns, len(block.tokens), block.payload_bytes, tokens_at, _runs(rows_at, block.rows))

    def block(self, file: memoryview, header: Header, expect: BlockId) -> Block:
        """Like `block_of`, for a file with the same frame."""
        if (header.rows, header.payload_bytes) != (self.n_tokens, self.payload_bytes):
            raise ValueError(f"{header.rows} rows with {header.payload_bytes} bytes, not {self.n_tokens} with {self.payload_bytes}")
        file = file.toreadonly()
        rows: list[NDArray[np.uint8]] = []
        for at, shape, distance in self.runs:
            rows.extend(np.ndarray(shape, np.uint8, file, at, (distance, shape[2], 1)))
        return Block(
            expect,
            np.ndarray(self.n_tokens, np.uint32, file, self.tokens_at),
            self.columns,
            tuple(rows),
            reason=header.reason,
            created_s=header.created_s,
            build=header.build,
        )


def _runs(rows_at: list[int], rows: tuple[NDArray[np.uint8], ...]) -> tuple[_Run, ...]:
    runs: list[_Run] = []
    for at, (n_tokens, row_bytes) in zip(rows_at, (column.shape for column in rows), strict=True):
        last = runs[-1] if runs else _Run(0, (0, 0, 0), 0)
        (n_columns, *same), distance = last.shape, at - last.at
        if same == [n_tokens, row_bytes] and (n_columns == 1 or distance == n_columns * last.distance):
            runs[-1] = _Run(last.at, (n_columns + 1, n_tokens, row_bytes), distance // n_columns)
        else:
            runs.append(_Run(at, (1, n_tokens, row_bytes), n_tokens * row_bytes))
    return tuple(runs)


def _token_rows(batch: Any) -> dict[str, Any]:
    n, names, types = batch.num_rows, batch.schema.names, batch.schema.types
    if names[:1] != ["token"] or types[0] != pa.uint32() or len(set(names)) != len(names):
        raise ValueError(f"the columns are {names}")
    if not all(map(pa.types.is_fixed_size_binary, types[1:])):
        raise ValueError(f"the types are {types}")
    tokens, *columns = batch.columns
    if any(column.null_count for column in (tokens, *columns)):
        raise ValueError("rows with null values")
    return {
        "tokens": tokens.to_numpy(zero_copy_only=True),
        "columns": tuple(names[1:]),
        "rows": tuple(_row_bytes(column, n) for column in columns),
    }


def _row_bytes(column: Any, n: int) -> NDArray[np.uint8]:
    row_bytes = column.type.byte_width
    return np.frombuffer(column.buffers()[1], np.uint8, n * row_bytes).reshape(n, row_bytes)


def _end_values(batch: Any) -> dict[str, Any]:
    if batch.schema.names != ["logits", "checkpoint"] or batch.schema.types != [pa.list_(pa.float32()), pa.large_binary()]:
        raise ValueError(f"the columns of an END are {batch.schema.types}")
    logits, checkpoint = batch.columns
    return {
        # zero_copy_only refuses null values
        "logits": None if logits.null_count else logits.flatten().to_numpy(zero_copy_only=True),
        "checkpoint": None if checkpoint.null_count else _binary_value(checkpoint),
    }


def _binary_value(array: Any) -> NDArray[np.uint8]:
    """The one value of `array`; asking Arrow for it would copy it."""
    _, offsets, data = array.buffers()
    begin, end = np.frombuffer(offsets, np.int64, 2)
    return np.frombuffer(data if data is not None else b"", np.uint8)[begin:end]
