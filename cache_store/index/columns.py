"""Many objects of one tier, column by column: what goes into a snapshot and comes out of it. Pure.

An object is 120 bytes here, and nothing is done for each that is not done for all at once: a
million are read, checked and put into an index in seconds (`bulk.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey
from cache_store.index.hot_tokens import TOKEN_BYTES, UNKNOWN, fingerprint
from cache_store.index.nodes import KEY_BYTES, key_of
from cache_store.index.radix import END, KINDS, MAX_BYTES, REPLAY, ROWS, fits_graph

MAX_HITS = 1 << 53

Digests = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Which tiers hold an object, fastest first, and its size in the first of them."""

    id: BlockId
    tier_indices: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What a snapshot keeps of an object in one tier. `tokens`: big-endian uint32, None where not
    known. `first` is their fingerprint (`hot_tokens.py`), which may be known where they are not.

    `hits` does not count the creation. `last_used_s` (unix) is the moment at which creation and
    hits at once would score what they do: of an object without hits the time of its creation, of
    others never later than the last hit.
    """

    id: BlockId
    n_bytes: int
    tokens: bytes | None
    hits: int
    last_used_s: float
    first: int = field(default=UNKNOWN, compare=False)


def is_plausible(id: BlockId, n_bytes: int, tokens: bytes | None) -> bool:
    """Whether a save of ours makes such an object: only what can be deleted again is believed."""
    if tokens is not None and (id.kind is not Kind.ROWS or len(tokens) != id.n_tokens * TOKEN_BYTES):
        return False
    return n_bytes <= MAX_BYTES and (fits_graph(id) or (id.kind is Kind.REPLAY and id.n_tokens == 0))


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """`root`, `parent` and `key` are (n, 32) bytes; `kind` indexes `KINDS`; `tokens` has those that are
    known, by row. The rest is as in `IndexRow`.
    """

    root: Digests
    kind: NDArray[np.uint8]
    parent: Digests
    key: Digests
    start: NDArray[np.uint32]
    n_tokens: NDArray[np.uint16]
    n_bytes: NDArray[np.uint64]
    first: NDArray[np.uint32]
    hits: NDArray[np.uint64]
    last_used_s: NDArray[np.float64]
    tokens: Mapping[int, bytes]

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def of(cls, rows: Sequence[IndexRow]) -> Columns:
        ids = [row.id for row in rows]
        return cls(
            _digests([id.root for id in ids]),
            np.array([KINDS.index(id.kind) for id in ids], np.uint8),
            _digests([id.parent for id in ids]),
            _digests([id.key for id in ids]),
            np.array([id.start for id in ids], np.uint32),
            np.array([id.n_tokens for id in ids], np.uint16),
            np.array([row.n_bytes for row in rows], np.uint64),
            np.array([row.first or fingerprint(row.tokens or b"") for row in rows], np.uint32),
            np.array([min(row.hits, MAX_HITS) for row in rows], np.uint64),
            np.array([row.last_used_s for row in rows], np.float64),
            {i: row.tokens for i, row in enumerate(rows) if row.tokens is not None},
        )

    def rows(self) -> Iterator[IndexRow]:
        """One by one: for tests, and for a few."""
        for i in range(len(self)):
            root, parent, key = (key_of(digests[i].tobytes()) for digests in (self.root, self.parent, self.key))
            id = BlockId(root, KINDS[self.kind[i]], parent, key, int(self.start[i]), int(self.n_tokens[i]))
            used_s, first = float(self.last_used_s[i]), int(self.first[i])
            yield IndexRow(id, int(self.n_bytes[i]), self.tokens.get(i), int(self.hits[i]), used_s, first)

    def taken(self, at: NDArray[np.int64]) -> Columns:
        """The rows of these numbers, ascending."""
        columns = {field.name: getattr(self, field.name)[at] for field in fields(self) if field.name != "tokens"}
        new = {int(old): i for i, old in enumerate(at.tolist())} if self.tokens else {}
        return Columns(**columns, tokens={new[i]: tokens for i, tokens in self.tokens.items() if i in new})

    def plausible(self) -> Columns:
        """Those rows that do not contradict themselves (`is_plausible`, and numbers that are some)."""
        is_replay = (self.kind == REPLAY) & (self.n_tokens == 0)
        good = (self.on_path() | is_replay) & (self.n_bytes <= MAX_BYTES) & (self.hits <= MAX_HITS)
        good &= np.isfinite(self.last_used_s)
        for i, tokens in self.tokens.items():
            good[i] &= self.kind[i] == ROWS and len(tokens) == int(self.n_tokens[i]) * TOKEN_BYTES
        return self if good.all() else self.taken(np.flatnonzero(good))

    def on_path(self) -> NDArray[np.bool_]:
        """`fits_graph` of each."""
        start, n_tokens = self.start.astype(np.int64), self.n_tokens.astype(np.int64)
        is_edge = (self.kind == ROWS) & (n_tokens > 0) & (start % BLOCK_TOKENS + n_tokens <= BLOCK_TOKENS)
        is_end = (self.kind == END) & (n_tokens == 0) & (self.parent == self.key).all(axis=1)
        fits: NDArray[np.bool_] = (is_edge | is_end) & (start + n_tokens < 1 << 32)
        return fits


def _digests(keys: Sequence[ChainKey]) -> Digests:
    return np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, KEY_BYTES)


def packed(id: BlockId, tokens: NDArray[np.uint32]) -> bytes:
    """The tokens of an object as the index keeps them. `ValueError` where they are not as many as its own."""
    if id.n_tokens and len(tokens) != id.n_tokens:
        raise ValueError(f"{len(tokens)} tokens for an object of {id.n_tokens}")
    return np.asarray(tokens, dtype=">u4").tobytes()
