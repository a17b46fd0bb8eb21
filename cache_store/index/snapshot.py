"""A snapshot of the index of one tier: a Parquet file behind a digest. Pure: bytes to bytes,
whoever stores them is the caller.

    0   8 bytes   MAGIC
    8   16 bytes  xxh3-128 (big-endian) of everything that follows
    24  ...       a Parquet file; `data[24:]` is what any reader of Parquet opens

One row per object: `root`, `parent`, `key` (32 bytes each), `kind`, `start`, `n_tokens` (its name),
`n_bytes` (in this tier), `tokens` (big-endian uint32; null but of those that were used lately),
`first` (their fingerprint: `hot_tokens.py`), `hits` and `last_used_s` (see `columns.IndexRow`). A
snapshot of the first version, which has tokens of all and no fingerprints, is read, too.

A snapshot is a hint that saves time: what it lists may be gone, which readers find out, and what it
does not list is found by a listing. So a file with a wrong byte is no snapshot at all
(`BadSnapshot`, before Parquet's decoder sees it: it trusts lengths and may allocate anything), and
a row that contradicts itself is left out. The digest finds accidents, not forgers: who may write a
tier is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cache_store.errors import StoreError
from cache_store.index.columns import Columns, Digests
from cache_store.index.hot_tokens import fingerprint
from cache_store.index.nodes import KEY_BYTES
from cache_store.index.radix import KINDS

MAGIC = b"KVINDEX2"
_FIRST_MAGIC = b"KVINDEX1"
_HEAD = len(MAGIC) + 16
_BATCH_ROWS = 65_536  # what a save or a load holds twice: 8 MB

_SCHEMA = pa.schema(
    [
        pa.field("root", pa.binary(KEY_BYTES), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("parent", pa.binary(KEY_BYTES), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("start", pa.uint32(), nullable=False),
        pa.field("n_tokens", pa.uint16(), nullable=False),
        pa.field("n_bytes", pa.uint64(), nullable=False),
        pa.field("tokens", pa.binary()),
        pa.field("first", pa.uint32(), nullable=False),
        pa.field("hits", pa.uint64(), nullable=False),
        pa.field("last_used_s", pa.float64(), nullable=False),
    ]
)
_FIRST_SCHEMA = pa.schema([column for column in _SCHEMA if column.name != "first"])
_COMPRESSION = {field.name: "zstd" for field in _SCHEMA if field.name not in ("parent", "key")}  # digests do not shrink


class BadSnapshot(StoreError):
    """Not a snapshot that this version can use: go without one."""


def _kind_names() -> pa.Array:
    """Not made on import: pyarrow looks for pandas then, which takes a second where it is installed."""
    return pa.array([kind.value for kind in KINDS])


def encode(columns: Iterable[Columns]) -> bytes:
    """The snapshot that holds what `Index.columns` gave."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, _SCHEMA, compression=_COMPRESSION, use_dictionary=["root", "kind"], write_statistics=False
    ) as writer:
        for some in columns:
            writer.write_batch(_to_batch(some))
    file = sink.getvalue()
    return b"".join((MAGIC, xxhash.xxh3_128_digest(file), file))


def decode(data: bytes | memoryview) -> Iterator[Columns]:
    """The rows of a snapshot that do not contradict themselves. Digest and schema are checked here,
    before the first is asked for.
    """
    view = memoryview(data)
    magic = bytes(view[: len(MAGIC)])
    if magic not in (MAGIC, _FIRST_MAGIC):
        raise BadSnapshot("not a snapshot of an index")
    if xxhash.xxh3_128_digest(view[_HEAD:]) != view[len(MAGIC) : _HEAD]:
        raise BadSnapshot("the digest does not match: truncated or damaged")
    try:
        file = pq.ParquetFile(pa.py_buffer(view[_HEAD:]))
    except (pa.ArrowException, OSError) as error:
        raise BadSnapshot(f"no Parquet file: {error}") from error
    if not file.schema_arrow.equals(_SCHEMA if magic == MAGIC else _FIRST_SCHEMA):
        raise BadSnapshot("other columns than this version's")
    return _columns_of(file)


def _columns_of(file: Any) -> Iterator[Columns]:
    try:
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            yield _from_batch(batch).plausible()
    except (pa.ArrowException, OSError) as error:
        raise BadSnapshot(f"no Parquet file: {error}") from error


def _to_batch(some: Columns) -> Any:
    tokens = [some.tokens.get(i) for i in range(len(some))] if some.tokens else pa.nulls(len(some), pa.binary())
    arrays = [
        _packed(some.root),
        _kind_names().take(pa.array(some.kind)),
        _packed(some.parent),
        _packed(some.key),
        some.start,
        some.n_tokens,
        some.n_bytes,
        tokens,
        some.first,
        some.hits,
        some.last_used_s,
    ]
    return pa.record_batch([pa.array(a, field.type) for a, field in zip(arrays, _SCHEMA, strict=True)], schema=_SCHEMA)


def _from_batch(batch: Any) -> Columns:
    columns = {name: batch.column(name) for name in batch.schema.names}
    kind = pc.index_in(columns["kind"], _kind_names())
    known = np.flatnonzero(columns["tokens"].is_valid().to_numpy(zero_copy_only=False)).tolist()
    tokens = dict(zip(known, columns["tokens"].take(pa.array(known, pa.int64())).to_pylist(), strict=True))
    if "first" in columns:
        first: NDArray[np.uint32] = columns["first"].to_numpy()
    else:
        first = np.zeros(len(batch), np.uint32)
        first[known] = [fingerprint(part) for part in tokens.values()]
    return Columns(
        _unpacked(columns["root"]),
        pc.fill_null(kind, len(KINDS)).to_numpy().astype(np.uint8),
        _unpacked(columns["parent"]),
        _unpacked(columns["key"]),
        columns["start"].to_numpy(),
        columns["n_tokens"].to_numpy(),
        columns["n_bytes"].to_numpy(),
        first,
        columns["hits"].to_numpy(),
        columns["last_used_s"].to_numpy(),
        tokens,
    )


def _packed(digests: Digests) -> Any:
    data = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(digests), [None, data])


def _unpacked(column: Any) -> Digests:
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8).reshape(-1, KEY_BYTES)
    return data[column.offset : column.offset + len(column)]
