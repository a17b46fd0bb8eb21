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

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from cache_store.errors import StoreError
from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey
from cache_store.index.index import IndexRow
from cache_store.index.radix import KEY_BYTES, MAX_FIELD, TOKEN_BYTES

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
    roots: dict[str, ChainKey] = {}
    try:
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            yield from _from_batch(batch, roots)
    except (pa.ArrowException, OSError) as error:
        raise BadSnapshot(f"no Parquet file: {error}") from error


def _to_batch(rows: list[IndexRow]) -> Any:
    ids = [row.id for row in rows]
    columns = {
        "root": _digests([id.root for id in ids]),
        "kind": [id.kind.value for id in ids],
        "parent": _digests([id.parent for id in ids]),
        "key": _digests([id.key for id in ids]),
        "start": [id.start for id in ids],
        "n_tokens": [id.n_tokens for id in ids],
        "n_bytes": [row.n_bytes for row in rows],
        "tokens": [row.tokens for row in rows],
        "hits": [min(row.hits, _MAX_HITS) for row in rows],
        "last_used_s": [row.last_used_s for row in rows],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA)


def _digests(keys: list[ChainKey]) -> Any:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(bytes.fromhex("".join(keys)))]
    )


def _from_batch(batch: Any, roots: dict[str, ChainKey]) -> Iterator[IndexRow]:
    rows = batch.filter(pa.array(_plausible(batch)))
    columns = (
        rows[name].to_numpy(zero_copy_only=False).tolist()
        for name in ("kind", "start", "n_tokens", "n_bytes", "hits", "last_used_s")
    )
    names = (_texts(rows["root"]), _texts(rows["parent"]), _texts(rows["key"]))
    for root, parent, key, tokens, kind, start, n_tokens, n_bytes, hits, last_used_s in zip(
        *names, _payloads(rows["tokens"]), *columns, strict=True
    ):
        shared_root = roots.setdefault(root, root)  # thousands of rows share one string
        yield IndexRow(
            BlockId(shared_root, _KINDS[kind], parent, key, start, n_tokens), n_bytes, tokens, hits, last_used_s
        )


def _texts(column: Any) -> list[ChainKey]:
    """The keys of a column of digests. One conversion for all: a Python object per value and column
    would double the time of a load.
    """
    first = column.offset * KEY_BYTES
    text = column.buffers()[1][first : first + len(column) * KEY_BYTES].to_pybytes().hex() if len(column) else ""
    return [ChainKey(text[at : at + 2 * KEY_BYTES]) for at in range(0, len(text), 2 * KEY_BYTES)]


def _payloads(column: Any) -> Iterator[bytes | None]:
    values = memoryview(column.buffers()[2] or b"")
    offsets = np.frombuffer(column.buffers()[1] or b"", np.int32)[column.offset :].tolist()
    known = column.is_valid().to_numpy(zero_copy_only=False).tolist()
    for i, is_known in enumerate(known):
        yield bytes(values[offsets[i] : offsets[i + 1]]) if is_known else None


def _plausible(batch: Any) -> NDArray[np.bool_]:
    """Which rows the index can take."""
    tokens = batch["tokens"]
    n_tokens = batch["n_tokens"].to_numpy().astype(np.int64)
    is_rows = pc.equal(batch["kind"], Kind.ROWS.value).to_numpy(zero_copy_only=False)
    n_known = pc.fill_null(pc.binary_length(tokens), -1).to_numpy()
    good: NDArray[np.bool_] = pc.is_in(batch["kind"], pa.array([kind.value for kind in Kind])).to_numpy(
        zero_copy_only=False
    )
    good &= ~is_rows | (n_tokens > 0) & (batch["start"].to_numpy() % BLOCK_TOKENS + n_tokens <= BLOCK_TOKENS)
    good &= (n_known < 0) | is_rows & (n_known == n_tokens * TOKEN_BYTES)
    good &= batch["n_bytes"].to_numpy() <= MAX_FIELD
    good &= batch["hits"].to_numpy() <= _MAX_HITS
    good &= np.isfinite(batch["last_used_s"].to_numpy())
    return good
