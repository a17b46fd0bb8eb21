"""One stored object as bytes: an Arrow IPC file that plain `pyarrow.ipc.open_file` reads, and of
which digests cover every byte.

The table is one record batch of one row and three columns, none nullable:

    seal        fixed_size_binary(56), see below
    tokens      fixed_size_list<uint32>(n_ids): token ids; none for an END
    payload     fixed_size_binary(stored_bytes): the parts one behind the other, compressed as a
                whole where the header says so

The parts of ROWS are the KV buffers in the order of `Block.columns`, which is layer by layer; each
is (n_tokens, row_bytes) uint8. The parts of an END are "logits" (float32) and "checkpoint" (bytes),
one row each; either may be missing. A REPLAY has none.

The header is JSON text in the schema metadata under "erllama.block":

    format          "erllama-block"
    version         2, as `keys.FORMAT_VERSION`
    kind            "rows" | "end" | "replay"
    root parent key start n_tokens      as in `BlockId`: three keys in hex, two counts of tokens
    n_ids           token ids in the file: n_tokens for ROWS, 0 for an END
    parts row_bytes the names of the parts in the order in which they lie, and the bytes of a row of each
    reason build    which save made it, which llama.cpp build computed it
    created_s       unix seconds
    compression     null | "zstd" | "lz4" (their frame formats): of the payload
    stored_bytes    length of the payload as it lies in the file
    tokens_xxh3 payload_xxh3            xxh3_128 in hex of both columns as they lie in the file

The bytes of the file; integers are little-endian:

    0               "ARROW1" 00 00
    8               schema message: FF FF FF FF, int32 length, flatbuffer (holds the header)
    ...             record batch message: FF FF FF FF, int32 length, flatbuffer
    body_at         seal
      + 56          tokens, 4 * n_ids bytes, then zeros up to a multiple of 8
      ...           payload, stored_bytes, then zeros up to a multiple of 8
    tail_at         end of stream FF FF FF FF 00 00 00 00, then the footer (holds the header again),
                    its int32 length, "ARROW1"

The bytes of the seal:

    0               "erllama"
    7               uint8 version
    8               uint64 length of the file
    16              uint32 where in the file the header's text begins (in the schema message)
    20              uint32 length of the header's text
    24              tail_xxh3: xxh3_128 (16 bytes, big-endian) of everything from tail_at on
    40              head_xxh3: xxh3_128 of everything before the body and the first 40 bytes of the
                    seal

head_xxh3 covers everything before the body, the header included, and the seal. tail_xxh3 covers
everything behind the body; tokens_xxh3 and payload_xxh3 cover the body, except for at most 4 + 7
bytes of padding, which must be zero. So no byte of a file is outside, and its first kilobytes prove
the token ids. The payload's digest is of what lies in the file: a damaged payload reaches no
decompressor. The digests find accidents, not forgeries: who may write into a tier is trusted. Even
so, what a header claims is bounded before memory is taken for it.

Arrow's flatbuffers follow from the header's text and the sizes of the columns, so an encoder lets
Arrow make them first and writes the file in one go, with all digests known. A decoder does not ask
Arrow (except to decompress): where everything lies follows from seal and header, once they are
proven. Decoding may run on any thread; an encoder belongs to one thread.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from cache_store.errors import CorruptBlock, Damage
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.header import HEADER_NAME, SEAL_BYTES, SEAL_PROVEN, Header, Seal

PEEK_BYTES = 1 << 14  # with 256 token ids and 48 KV buffers it takes 2.7 kB, with 160 3.7

Bytes = bytes | bytearray | memoryview
Compression = Literal["zstd", "lz4"] | None

_MAGIC = b"ARROW1\0\0"
_Raw = NDArray[np.uint8]


class BlockEncoder:
    """Writes blocks into one buffer that grows and is used again. One encoder per thread.

    Fresh memory of a block's size would cost more than everything else here.
    """

    def __init__(self, compression: Compression = None) -> None:
        self._compression = compression
        self._memory = memoryview(b"")

    def encode(self, block: Block) -> memoryview:
        """The file of `block`, read-only, valid until the next call. Raises ValueError for a block
        that contradicts itself.
        """
        if problem := block.contradiction:
            raise ValueError(f"block {block.id.name}: {problem}")
        tokens = _raw(block.tokens)
        stored = [_raw(part) for part in block.payload]
        if self._compression is not None:
            stored = [_packed(stored, self._compression)]
        header = Header.of(
            block,
            compression=self._compression,
            stored_bytes=sum(len(piece) for piece in stored),
            tokens_xxh3=_digest(tokens).hex(),
            payload_xxh3=_digest(*stored).hex(),
        )
        return self._written(header, tokens, stored)

    def _written(self, header: Header, tokens: memoryview, stored: Sequence[memoryview]) -> memoryview:
        text = header.text
        frame = _Frame(header, text, self._room(header.body_bytes))
        file_bytes = len(frame.head) + header.body_bytes + len(frame.tail)
        start = Seal.start(file_bytes, frame.head.index(text), len(text), _digest(frame.tail))
        pieces: list[Bytes] = [
            frame.head,
            start,
            _digest(frame.head, start),
            tokens,
            bytes(header.payload_at - header.tokens_end),
            *stored,
            bytes(header.body_bytes - header.payload_end),
            frame.tail,
        ]
        file = self._room(file_bytes)[:file_bytes]
        at = 0
        for piece in pieces:
            file[at : at + len(piece)] = piece
            at += len(piece)
        assert at == file_bytes
        return file.toreadonly()

    def _room(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self._memory):
            self._memory = np.empty(n_bytes + n_bytes // 4, np.uint8).data
        return self._memory


def _raw(values: NDArray[Any]) -> memoryview:
    """The bytes of an array in the order of its items, copied only if they do not lie so."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _packed(parts: Sequence[memoryview], compression: str) -> memoryview:
    return memoryview(pa.Codec(compression).compress(b"".join(parts))).cast("B")


def _digest(*pieces: Bytes) -> bytes:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return bytes(digest.digest())


class _Frame(io.RawIOBase):
    """What Arrow writes before and behind a body: a file that keeps all but the body. `memory` lends
    its size to columns whose content does not matter.
    """

    def __init__(self, header: Header, text: bytes, memory: memoryview) -> None:
        self.head, self.tail = bytearray(), bytearray()
        self._n_left = header.body_bytes
        batch = _batch(header, text, memory)
        with pa.ipc.new_file(self, batch.schema) as writer:
            writer.write_batch(batch)
        assert self._n_left == 0, "pyarrow lays files out in another way"

    def write(self, data: Any) -> int:
        if _body_at(memoryview(self.head)) != len(self.head):
            self.head += data
        elif self._n_left > 0:
            self._n_left -= len(data)
        else:
            self.tail += data
        return len(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0


def _batch(header: Header, text: bytes, memory: memoryview) -> Any:
    def column(type_: Any, n_bytes: int) -> Any:
        return pa.Array.from_buffers(type_, 1, [None, pa.py_buffer(memory[:n_bytes])])

    ids = pa.Array.from_buffers(pa.uint32(), header.n_ids, [None, pa.py_buffer(memory[: 4 * header.n_ids])])
    list_type = pa.list_(pa.field("item", pa.uint32(), nullable=False), header.n_ids)
    columns = {
        "seal": column(pa.binary(SEAL_BYTES), SEAL_BYTES),
        "tokens": pa.Array.from_buffers(list_type, 1, [None], children=[ids]),
        "payload": column(pa.binary(header.stored_bytes), header.stored_bytes),
    }
    schema = pa.schema(
        [pa.field(name, array.type, nullable=False) for name, array in columns.items()], {HEADER_NAME: text}
    )
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def _body_at(view: memoryview) -> int | None:
    """Where the body begins: behind two messages. None if `view` ends before it can be told. Raises
    CorruptBlock.
    """
    if view[: len(_MAGIC)] != _MAGIC[: len(view)]:
        raise CorruptBlock(Damage.NOT_ARROW, "the first bytes are not ARROW1")
    at = len(_MAGIC)
    for name in ("schema", "record batch"):
        if at + 8 > len(view):
            return None
        mark, size = struct.unpack_from("<Ii", view, at)
        if mark != 0xFFFFFFFF or size <= 0:
            raise CorruptBlock(Damage.NOT_ARROW, f"no {name} message at {at}")
        at += 8 + size
    return at


def decode(data: Bytes, expect: BlockId) -> Block:
    """The object in `data`, as read-only views of it; a compressed payload comes in new memory.

    Raises CorruptBlock if `data` is not wholly and exactly `expect`. The only other error is a
    MemoryError while decompressing: lack of memory is no reason to drop a good object.
    """
    header, tokens, stored = proven_parts(data, expect)
    return block_of(header, expect, tokens, stored)


def proven_parts(data: Bytes, expect: BlockId) -> tuple[Header, NDArray[np.uint32], memoryview]:
    """Header, token ids and payload as it is stored, everything proven. Raises CorruptBlock."""
    view = memoryview(data).cast("B").toreadonly()
    header, seal, body_at = proven_head(view, expect)
    check_length(len(view), seal.file_bytes)
    tail_at = body_at + header.body_bytes
    if tail_at > len(view):
        raise CorruptBlock(Damage.NOT_ARROW, f"a body of {header.body_bytes} bytes in a file of {len(view)}")
    body = view[body_at:tail_at]
    tokens = tokens_of(body, header)
    stored = body[header.payload_at : header.payload_end]
    prove(stored, header.payload_xxh3, "payload")
    prove_rest(view[body_at + header.payload_end :], header, seal)
    return header, tokens, stored


def check_length(n_bytes: int, file_bytes: int) -> None:
    if n_bytes != file_bytes:
        damage = Damage.SHORT if n_bytes < file_bytes else Damage.NOT_ARROW
        raise CorruptBlock(damage, f"{n_bytes} bytes instead of {file_bytes}")


def prove_rest(rest: memoryview, header: Header, seal: Seal) -> None:
    """What follows the payload: padding, and the tail."""
    n_padding = header.body_bytes - header.payload_end
    if any(rest[:n_padding]):
        raise CorruptBlock(Damage.DIGEST, "the padding is not zero")
    prove(rest[n_padding:], seal.tail_xxh3, "tail")


def peek_tokens(data: Bytes, expect: BlockId) -> NDArray[np.uint32]:
    """The token ids alone, from the beginning of a file: PEEK_BYTES nearly always hold them.

    Raises CorruptBlock, with Damage.SHORT where more of the file is needed. What lies behind the
    token ids is not looked at, so `decode` may still refuse the same file.
    """
    view = memoryview(data).cast("B").toreadonly()
    header, _, body_at = proven_head(view, expect)
    return tokens_of(view[body_at:], header)


def proven_head(view: memoryview, expect: BlockId) -> tuple[Header, Seal, int]:
    """What the first bytes of a file say, once they are proven, and where in it the body begins."""
    body_at = _body_at(view)
    if body_at is None or body_at + SEAL_BYTES > len(view):
        raise CorruptBlock(Damage.SHORT, f"{len(view)} bytes end before the seal does")
    seal = Seal.parse(view[body_at : body_at + SEAL_BYTES])
    prove(view[: body_at + SEAL_PROVEN], seal.head_xxh3, "head")
    header = Header.parse(bytes(view[seal.header_at : seal.header_at + seal.header_bytes]))
    if header.id != expect:
        raise CorruptBlock(Damage.MISLABELLED, f"it is {header.id.name}, not {expect.name}")
    return header, seal, body_at


def prove(view: memoryview, xxh3: str, name: str) -> None:
    if xxhash.xxh3_128_hexdigest(view) != xxh3:
        raise CorruptBlock(Damage.DIGEST, f"the {name} does not hash to what the file says")


def tokens_of(body: memoryview, header: Header) -> NDArray[np.uint32]:
    if header.payload_at > len(body):
        raise CorruptBlock(Damage.SHORT, f"{len(body)} bytes of the body end before the token ids do")
    ids = body[SEAL_BYTES : header.tokens_end]
    prove(ids, header.tokens_xxh3, "list of token ids")
    if any(body[header.tokens_end : header.payload_at]):
        raise CorruptBlock(Damage.DIGEST, "the padding is not zero")
    return np.frombuffer(ids, np.uint32)


def _unpacked(stored: memoryview, header: Header) -> memoryview:
    payload = np.empty(header.payload_bytes, np.uint8)
    unpack_into(stored, header, [payload.data])
    return payload.data.toreadonly()


def unpack_into(stored: memoryview, header: Header, memory: Sequence[memoryview]) -> None:
    """Decompress a payload into `memory`, one piece behind the other. Raises CorruptBlock.

    A stream notices an lz4 frame that holds too little; Arrow's one-call way does not.
    """
    try:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(stored)), header.compression) as stream:
            is_all = all(stream.readinto(piece) == len(piece) for piece in memory) and not stream.read(1)
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptBlock(Damage.NOT_ARROW, f"{header.compression}: {error}") from error
    if not is_all:
        raise CorruptBlock(
            Damage.NOT_ARROW, f"the payload does not have the {header.payload_bytes} bytes that the header says"
        )


def block_of(header: Header, expect: BlockId, tokens: NDArray[np.uint32], stored: memoryview) -> Block:
    payload = stored if header.compression is None else _unpacked(stored, header)
    parts = tuple(_parts(header, np.frombuffer(payload, np.uint8)))
    about: dict[str, Any] = {"reason": header.reason, "created_s": header.created_s, "build": header.build}
    if header.kind == Kind.ROWS:
        return Block(expect, tokens, tuple(header.parts), parts, **about)
    found = {name: part.reshape(-1) for name, part in zip(header.parts, parts, strict=True)}
    logits = found["logits"].view(np.float32) if "logits" in found else None
    return Block(expect, tokens, logits=logits, checkpoint=found.get("checkpoint"), **about)


def _parts(header: Header, payload: _Raw) -> Iterator[_Raw]:
    """Each part as (rows, bytes of a row), those of one width cut out together, which is faster."""
    at = 0
    for row_bytes, alike in groupby(header.row_bytes):
        shape = len(list(alike)), header.n_rows, row_bytes
        n_bytes = shape[0] * shape[1] * shape[2]
        yield from payload[at : at + n_bytes].reshape(shape)
        at += n_bytes
