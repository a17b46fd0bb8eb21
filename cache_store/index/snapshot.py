"""A snapshot of the index of one tier: a Parquet file behind a digest. Pure: bytes to bytes,
whoever stores them is the caller.

    0   8 bytes   MAGIC
    8   16 bytes  xxh3-128 (big-endian) of everything that follows
    24  ...       a Parquet file; `data[24:]` is what any reader of Parquet opens

One row per object: `root`, `parent`, `key` (32 bytes each), `kind`, `start`, `n_tokens` (its name),
`n_bytes` (in this tier), `tokens` (big-endian uint32; null where not known), `hits` and
`last_used_s` (see `index.IndexRow`).

A snapshot is a hint that saves time: what it lists may be gone, which readers find out, and what it
does not list is found by a listing. So a file with a wrong byte is no snapshot at all
(`BadSnapshot`, before Parquet's decoder sees it: it trusts lengths and may allocate anything), and
a row that contradicts itself is left out. The digest finds accidents, not forgers: who may write a
tier is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cache_store.errors import StoreError
from cache_store.format.block import BlockId, Kind
from cache_store.index.index import IndexRow, is_plausible
from cache_store.index.nodes import KEY_BYTES, key_of

MAGIC = b"KVINDEX1"
_HEAD = len(MAGIC) + 16
_BATCH_ROWS = 65_536  # what a save or a load holds twice: 64 MB of tokens
_MAX_HITS = 1 << 53

_KINDS = {kind.value: kind for kind in Kind}
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
        pa.field("hits", pa.uint64(), nullable=False),
        pa.field("last_used_s", pa.float64(), nullable=False),
    ]
)
_COMPRESSION = {field.name: "zstd" for field in _SCHEMA if field.name not in ("parent", "key")}  # digests do not shrink


class BadSnapshot(StoreError):
    """Not a snapshot that this version can use: go without one."""


def encode(rows: Iterator[IndexRow]) -> bytes:
    """The snapshot that holds `rows` (`Index.rows`)."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, _SCHEMA, compression=_COMPRESSION, use_dictionary=["root", "kind"], write_statistics=False
    ) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_batch(_to_batch(batch))
    file = sink.getvalue()
    return b"".join((MAGIC, xxhash.xxh3_128_digest(file), file))


def decode(data: bytes | memoryview) -> Iterator[IndexRow]:
    """The rows of a snapshot that do not contradict themselves. Digest and schema are checked here,
    before the first is asked for.
    """
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        raise BadSnapshot("not a snapshot of an index")
    if xxhash.xxh3_128_digest(view[_HEAD:]) != view[len(MAGIC) : _HEAD]:
        raise BadSnapshot("the digest does not match: truncated or damaged")
    try:
        file = pq.ParquetFile(pa.py_buffer(view[_HEAD:]))
    except (pa.ArrowException, OSError) as error:
        raise BadSnapshot(f"no Parquet file: {error}") from error
    if not file.schema_arrow.equals(_SCHEMA):
        raise BadSnapshot("other columns than this version's")
    return _rows_of(file)


def _rows_of(file: Any) -> Iterator[IndexRow]:
    try:
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            yield from _from_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise BadSnapshot(f"no Parquet file: {error}") from error


def _to_batch(rows: list[IndexRow]) -> Any:
    ids = [row.id for row in rows]
    columns = (
        [bytes.fromhex(id.root) for id in ids],
        [id.kind.value for id in ids],
        [bytes.fromhex(id.parent) for id in ids],
        [bytes.fromhex(id.key) for id in ids],
        [id.start for id in ids],
        [id.n_tokens for id in ids],
        [row.n_bytes for row in rows],
        [row.tokens for row in rows],
        [min(row.hits, _MAX_HITS) for row in rows],
        [row.last_used_s for row in rows],
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _from_batch(batch: Any) -> Iterator[IndexRow]:
    columns = (column.to_numpy(zero_copy_only=False).tolist() for column in batch.columns)
    for root, kind, parent, key, start, n_tokens, n_bytes, tokens, hits, last_used_s in zip(*columns, strict=True):
        if kind not in _KINDS or hits > _MAX_HITS or not math.isfinite(last_used_s):
            continue
        id = BlockId(key_of(root), _KINDS[kind], key_of(parent), key_of(key), start, n_tokens)
        if is_plausible(id, n_bytes, tokens):
            yield IndexRow(id, n_bytes, tokens, hits, last_used_s)
