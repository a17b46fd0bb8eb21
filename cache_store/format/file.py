"""One stored object as bytes: an Arrow IPC file that plain `pyarrow.ipc.open_file` reads, sealed so that Arrow never sees a damaged one.

The table, always one record batch (no field is nullable but END's two):

    ROWS    token uint32, then one fixed_size_binary(row_bytes) column per KV buffer, named as `Block.columns`; a row is a token
    REPLAY  token uint32
    END     logits list<float32>, checkpoint large_binary; one row, either value may be null

The header is JSON text, padded with spaces, in the schema metadata under "erllama.block":

    format          "erllama-block"
    version         1
    kind            "rows" | "end" | "replay"
    root parent key start n_tokens      as in `BlockId`: three keys in hex, two counts of tokens
    rows            rows of the table
    reason build    which save made it, which llama.cpp build computed it
    created_s       unix seconds
    compression     null | "zstd" | "lz4": of the buffers, as Arrow defines it
    payload_bytes   KV, logits and checkpoint, uncompressed
    body_at body_bytes file_bytes       where the record batch's body lies, and the length of the file
    payload_xxh3    xxh3_128 in hex of the body as it lies in the file (tokens first, then the columns in order)

The bytes; integers are little-endian:

    0               "ARROW1" 00 00
    8               schema message: FF FF FF FF, int32 length, flatbuffer (holds the header)
    batch_at        record batch message: FF FF FF FF, int32 length, flatbuffer (holds the seal)
    body_at         body: token ids, then the other columns, each begins at a multiple of 8
    + body_bytes    end of stream FF FF FF FF 00 00 00 00, then the footer (holds the header again), its int32 length, "ARROW1"

The seal is text in the custom metadata of the record batch under "erllama.seal", with lower-case hex numbers of fixed width:

    erllama-block/1 head_bytes=8 header_at=8 header_bytes=8 tail_xxh3=32 head_xxh3=32

    head_bytes      the head: bytes 0 .. head_bytes - 1, which is everything up to and with the token ids (and a little of what follows)
    header_at header_bytes      the header inside the schema message
    tail_xxh3       xxh3_128 of everything behind the body
    head_xxh3       xxh3_128 of the head without these last 32 characters

So head_xxh3 covers all that comes before the body, payload_xxh3 (which it covers) the body, and tail_xxh3 (which it covers) the rest: no
byte of a file is outside, and the first kilobytes alone prove the token ids. The digests find accidents, not forgeries: who can write into
a tier can write what it likes there.

All of it is checked before an array leaves `decode`, whatever a `BlockDecoder` has seen before: what it remembers is where Arrow found the
columns in a file with the same metadata. Decoding may run on any thread; an encoder belongs to one thread.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from cache_store.errors import CorruptBlock, Damage
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.header import HEADER_NAME, LEAST_WIDTH, SEAL_NAME, Header, Seal, header_width
from cache_store.format.table import Frame, Layout, RowsShape, block_of, contradiction, frame_over, small_batch

PEEK_BYTES = 1 << 16  # a head with 48 columns has 8 kB, with 160 columns 23 kB

Bytes = bytes | bytearray | memoryview
Compression = Literal["zstd", "lz4"] | None

_MAGIC = b"ARROW1\0\0"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_KEPT_FRAMES = 32  # full blocks repeat one shape; tails vary, and remaking a frame costs a tenth of a millisecond


class BlockEncoder:
    """Writes blocks into one buffer that grows and is used again. One encoder per thread.

    Rows are gathered once into scratch memory that Arrow then writes from; both stay warm. Fresh memory of a block's size would cost
    more than everything else here.
    """

    def __init__(self, compression: Compression = None) -> None:
        self._compression = compression
        # whoever encodes does so beside a busy decoder: it takes no more cores than its own
        self._options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        self._out = np.empty(0, np.uint8)
        self._scratch = np.empty(0, np.uint8)
        self._frames: OrderedDict[Layout, Frame] = OrderedDict()

    def encode(self, block: Block) -> memoryview:
        """The file of `block`, read-only, valid until the next call. Raises ValueError for a block that contradicts itself."""
        if problem := contradiction(block):
            raise ValueError(f"block {block.id.name}: {problem}")
        batch = self._rows_batch(block) if block.id.kind is Kind.ROWS else small_batch(block)
        file = self._write(batch, header_width(block))
        return _seal(file, Header.of(block, rows=batch.num_rows, compression=self._compression))

    def _rows_batch(self, block: Block) -> Any:
        layout = Layout.of(block)
        frame = self._frames.pop(layout, None) or self._new_frame(layout)
        self._frames[layout] = frame
        frame.fill(block)
        return frame.batch

    def _new_frame(self, layout: Layout) -> Frame:
        if layout.bytes_needed > len(self._scratch):
            self._frames.clear()  # they lie in the scratch memory that goes
            self._scratch = _room(layout.bytes_needed)
        while len(self._frames) >= _KEPT_FRAMES:
            self._frames.popitem(last=False)
        return frame_over(self._scratch, layout)

    def _write(self, batch: Any, width: int) -> NDArray[np.uint8]:
        """The file with blanks for header and seal."""
        schema = batch.schema.with_metadata({HEADER_NAME: b" " * width})
        # incompressible buffers grow by less than 1/64 and a kilobyte; schema (twice) and batch message take some 200 bytes per column
        names = sum(len(name.encode()) for name in schema.names)
        needed = batch.nbytes + batch.nbytes // 64 + 2 * (width + names) + 2048 * (len(schema) + 2)
        if needed > len(self._out):
            self._out = _room(needed)
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(self._out))
        with pa.ipc.new_file(sink, schema, options=self._options) as writer:
            writer.write_batch(batch, custom_metadata={SEAL_NAME: Seal().text})
        return self._out[: sink.tell()]


def _room(needed: int) -> NDArray[np.uint8]:
    return np.empty(needed + needed // 4, np.uint8)


def _seal(file: NDArray[np.uint8], header: Header) -> memoryview:
    """Puts header and seal into the blanks of `file`."""
    view = file.data
    batch_at, body_at = _messages(view)
    tail_at = _tail_at(view)
    body = view[body_at:tail_at]
    places = _blank(view, 0, batch_at), _blank(view, tail_at, len(view))
    width = places[0].stop - places[0].start
    header = replace(header, body_at=body_at, body_bytes=len(body), file_bytes=len(view), payload_xxh3=xxhash.xxh3_128_hexdigest(body))
    text = header.text(width)
    for place in places:
        view[place] = text
    blank, _, end = Seal.find(view[batch_at:body_at])
    end += batch_at
    seal = replace(
        blank,
        head_bytes=_head_bytes(header),
        header_at=places[0].start,
        header_bytes=width,
        tail_xxh3=xxhash.xxh3_128_hexdigest(view[tail_at:]),
    )
    view[end - len(seal.text) : end] = seal.text.encode()
    view[end - 32 : end] = _head_xxh3(view[: seal.head_bytes], end).encode()
    return view.toreadonly()


def _tail_at(view: memoryview) -> int:
    (footer_bytes,) = struct.unpack_from("<i", view, len(view) - 10)
    tail_at = len(view) - 10 - int(footer_bytes) - len(_END_OF_STREAM)
    assert view[tail_at : tail_at + len(_END_OF_STREAM)] == _END_OF_STREAM, "pyarrow lays files out in another way"
    return tail_at


def _blank(view: memoryview, begin: int, end: int) -> slice:
    found = re.compile(rb" {%d,}" % LEAST_WIDTH).search(view[begin:end])
    assert found, "pyarrow keeps metadata in another way"
    return slice(begin + found.start(), begin + found.end())


def _messages(view: memoryview) -> tuple[int, int]:
    """Where the record batch message and its body begin. Raises CorruptBlock."""
    if view[: len(_MAGIC)] != _MAGIC[: len(view)]:
        raise CorruptBlock(Damage.NOT_ARROW, "the first bytes are not ARROW1")
    ends, at = [], len(_MAGIC)
    for name in ("schema", "record batch"):
        if at + 8 > len(view):
            raise CorruptBlock(Damage.SHORT, f"{len(view)} bytes end before the {name}")
        mark, size = struct.unpack_from("<Ii", view, at)
        if mark != 0xFFFFFFFF or size <= 0:
            raise CorruptBlock(Damage.NOT_ARROW, f"no {name} message at {at}")
        at += 8 + size
        ends.append(at)
    if at > len(view):
        raise CorruptBlock(Damage.SHORT, f"{len(view)} bytes end inside the record batch message")
    return ends[0], ends[1]


def _head_bytes(header: Header) -> int:
    """The head ends behind the token ids; the allowance is for ids that a compressor makes longer."""
    if header.kind == Kind.END:
        return header.body_at
    return header.body_at + min(header.body_bytes, 4 * header.rows + header.rows // 8 + 256)


def _head_xxh3(head: memoryview, seal_end: int) -> str:
    digest = xxhash.xxh3_128(head[: seal_end - 32])
    digest.update(head[seal_end:])
    return str(digest.hexdigest())


class BlockDecoder:
    """Reads blocks. Any number of threads may share one: what one learns twice or forgets costs the other some time.

    The rows of an uncompressed file lie where they lay in an earlier one that equals it in all but header, seal and body. They are taken
    from there without Arrow, to whom the parse of 49 columns is as much work as reading 2 MB.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[int, int], RowsShape] = {}

    def decode(self, data: Bytes, expect: BlockId) -> Block:
        """The object in `data`, as views of it (of new memory if compressed). Raises CorruptBlock if it is not wholly and exactly `expect`.

        The only other error is a MemoryError while decompressing: lack of memory is no reason to drop a good object.
        """
        view = memoryview(data).cast("B")
        head = _proven_head(view)
        _check_rest(view, head)
        _check_label(head.header, expect)
        try:
            if head.header.compression is None and head.header.kind == Kind.ROWS:
                return self._rows(view, head, expect)
            return block_of(_read_batch(view), head.header, expect)
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            raise CorruptBlock(Damage.NOT_ARROW, str(error)) from error

    def _rows(self, view: memoryview, head: _Head, expect: BlockId) -> Block:
        frame = _frame_bytes(view, head)
        kin = len(view), head.header.body_at
        shape = self._shapes.get(kin)
        if shape is not None and shape.frame == frame:
            return shape.block(view, head.header, expect)
        block = block_of(_read_batch(view), head.header, expect)
        learned = RowsShape.of(block, view, frame) if frame is not None else None
        if learned is not None:
            if len(self._shapes) >= _KEPT_FRAMES:
                self._shapes.clear()
            self._shapes[kin] = learned
        return block


def decode(data: Bytes, expect: BlockId) -> Block:
    """`BlockDecoder.decode` of a file on its own."""
    return BlockDecoder().decode(data, expect)


def _frame_bytes(view: memoryview, head: _Head) -> tuple[bytes, ...] | None:
    """What Arrow would go by: all but body, seal and both copies of the header. None where the copies differ."""
    header, seal = head.header, head.seal
    tail = bytes(view[header.body_at + header.body_bytes :])
    text = bytes(view[seal.header_at : seal.header_at + seal.header_bytes])
    before, found, behind = tail.partition(text)
    if not found:
        return None
    parts = view[: seal.header_at], view[seal.header_at + seal.header_bytes : head.seal_at], view[head.seal_end : header.body_at]
    return *map(bytes, parts), before, behind


def peek_tokens(data: Bytes, expect: BlockId) -> NDArray[np.uint32]:
    """The token ids alone, from at least the head of a file: its first PEEK_BYTES nearly always hold it, otherwise the damage is SHORT.

    What lies behind the head is not looked at, so `decode` may still refuse the same file.
    """
    view = memoryview(data).cast("B")
    header, seal = _proven_head(view)[:2]
    _check_label(header, expect)
    if header.kind == Kind.END or header.rows == 0:
        return np.empty(0, np.uint32)
    stored = view[header.body_at : seal.head_bytes]
    try:
        ids = stored if header.compression is None else _unpacked(stored, header)
        return np.frombuffer(ids, np.uint32, header.rows)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise CorruptBlock(Damage.NOT_ARROW, str(error)) from error


def _unpacked(stored: memoryview, header: Header) -> Bytes:
    """Arrow puts an int64 before a compressed buffer: its size, or -1 if it lies there as it was."""
    (size,) = struct.unpack_from("<q", stored)
    if size == -1:
        return stored[8:]
    if size != 4 * header.rows:
        raise ValueError(f"{size} bytes of token ids for {header.rows} rows")
    # a stream, because the compressed size is known only to Arrow's metadata: it reads no further than it needs
    with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(stored[8:])), header.compression) as stream:
        return bytes(stream.read(size))


class _Head(NamedTuple):
    """What the head of a file says, once it is proven, and where in the file its seal is."""

    header: Header
    seal: Seal
    seal_at: int
    seal_end: int


def _proven_head(view: memoryview) -> _Head:
    batch_at, body_at = _messages(view)
    seal, begin, end = Seal.find(view[batch_at:body_at])
    if seal.head_bytes > len(view):
        raise CorruptBlock(Damage.SHORT, f"{len(view)} bytes, {seal.head_bytes} are the head")
    if seal.head_bytes < body_at or _head_xxh3(view[: seal.head_bytes], batch_at + end) != seal.head_xxh3:
        raise CorruptBlock(Damage.DIGEST, "the head does not hash to what the seal says")
    header = Header.parse(bytes(view[seal.header_at : seal.header_at + seal.header_bytes]))
    if header.body_at != body_at:
        raise CorruptBlock(Damage.NOT_ARROW, f"the body is at {body_at}, not at {header.body_at}")
    return _Head(header, seal, batch_at + begin, batch_at + end)


def _check_rest(view: memoryview, head: _Head) -> None:
    header = head.header
    if len(view) != header.file_bytes:
        damage = Damage.SHORT if len(view) < header.file_bytes else Damage.NOT_ARROW
        raise CorruptBlock(damage, f"{len(view)} bytes instead of {header.file_bytes}")
    tail_at = header.body_at + header.body_bytes
    if xxhash.xxh3_128_hexdigest(view[header.body_at : tail_at]) != header.payload_xxh3:
        raise CorruptBlock(Damage.DIGEST, "the body does not hash to what the header says")
    if xxhash.xxh3_128_hexdigest(view[tail_at:]) != head.seal.tail_xxh3:
        raise CorruptBlock(Damage.DIGEST, "the tail does not hash to what the seal says")


def _check_label(header: Header, expect: BlockId) -> None:
    if header.id != expect:
        raise CorruptBlock(Damage.MISLABELLED, f"it is {header.id.name}, not {expect.name}")


def _read_batch(view: memoryview) -> Any:
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.ipc.open_file(pa.py_buffer(view), options=options) as reader:
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    return batch
