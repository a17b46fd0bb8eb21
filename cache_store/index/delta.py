"""What one process tells the others that share its store: what it wrote, removed and used since it
last told. Pure; pickles small.

A tier is known by its ids (`sharing/gossip.py`), not by its index or URL: processes may have
different tiers, and one directory may be mounted at two paths. An object is a record of 81 bytes,
and its tokens where they are known; roots, which thousands of objects share, come once:

    root    u16, which of `IndexDelta.roots` (32 bytes each)
    kind    u8: 0 ROWS, 1 END, 2 REPLAY; 128 is added where tokens follow
    parent  32 bytes
    key     32 bytes
    start   u32
    n_tokens    u16
    number  u64: the bytes of an object that was written, the hits of one that was used, 0 of one
            that was removed
    tokens  n_tokens big-endian uint32

All integers are big-endian. A delta is a hint: whoever applies it checks before use, and what it
leaves out is found by the next listing.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cache_store.format.block import BlockId
from cache_store.format.keys import ChainKey
from cache_store.index.hot_tokens import TOKEN_BYTES
from cache_store.index.nodes import KEY_BYTES, key_of
from cache_store.index.radix import KINDS

_RECORD = struct.Struct(">HB32s32sIHQ")
_WITH_TOKENS = 128
_MAX_ROOTS = 1 << 16


class BadDelta(ValueError):
    """Not a delta that this version understands."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a delta."""

    id: BlockId
    number: int = 0
    tokens: bytes | None = None


@dataclass(frozen=True, slots=True)
class TierDelta:
    """What changed in one tier. `ids` name it, if they are known; `label` and `url` tell people
    where it is.
    """

    label: str
    url: str
    local: bool
    ids: frozenset[str]
    max_bytes: int | None = None
    written: bytes = b""
    removed: bytes = b""


@dataclass(frozen=True, slots=True)
class IndexDelta:
    """`owner` is the store that tells, `tiers` all it has, fastest first. `incomplete`: older
    changes did not fit and are left out.
    """

    owner: str
    tiers: tuple[TierDelta, ...] = ()
    roots: bytes = b""
    used: bytes = b""
    incomplete: bool = False

    @property
    def is_empty(self) -> bool:
        """Nothing happened that others should know."""
        return not (self.used or self.incomplete or any(tier.written or tier.removed for tier in self.tiers))

    def unpacked(self, records: bytes) -> Iterator[Record]:
        """What `written`, `removed` or `used` say; `BadDelta` where they stop making sense."""
        at = 0
        while at < len(records):
            try:
                root, kind, parent, key, start, n_tokens, number = _RECORD.unpack_from(records, at)
                root_key = self.roots[root * KEY_BYTES : (root + 1) * KEY_BYTES]
                id = BlockId(
                    key_of(root_key), KINDS[kind & ~_WITH_TOKENS], key_of(parent), key_of(key), start, n_tokens
                )
            except (struct.error, IndexError, TypeError) as error:
                raise BadDelta(f"a record at {at} that is none: {error}") from error
            at += _RECORD.size
            tokens = records[at : at + n_tokens * TOKEN_BYTES] if kind & _WITH_TOKENS else None
            at += len(tokens or b"")
            if len(root_key) != KEY_BYTES or (tokens is not None and len(tokens) != n_tokens * TOKEN_BYTES):
                raise BadDelta("cut short")
            yield Record(id, number, tokens)


def pack(records: Iterable[Record], roots: dict[ChainKey, int]) -> bytes:
    """What `IndexDelta.unpacked` takes apart. `roots`, of all the delta, numbers each that is met;
    objects of more roots than there are numbers for are left out.
    """
    return b"".join(
        _packed(record, roots.setdefault(record.id.root, len(roots)))
        for record in records
        if record.id.root in roots or len(roots) < _MAX_ROOTS
    )


def _packed(record: Record, root: int) -> bytes:
    id = record.id
    kind = KINDS.index(id.kind) + (0 if record.tokens is None else _WITH_TOKENS)
    parent, key = bytes.fromhex(id.parent), bytes.fromhex(id.key)
    return _RECORD.pack(root, kind, parent, key, id.start, id.n_tokens, record.number) + (record.tokens or b"")


MAX_OBJECTS = 4096  # per tier, and of those that were used: 4 GB of chat blocks; with their tokens 4.5 MB of a delta


@dataclass(slots=True)
class Changes:
    """Per tier the objects that were written (their bytes) or removed (None), oldest first; the
    hits of what was used.
    """

    tiers: tuple[dict[BlockId, int | None], ...]
    used: dict[BlockId, int] = field(default_factory=dict)
    incomplete: bool = False


class DeltaLog:
    """What happened in this process since the last `take`. Any thread."""

    def __init__(self, n_tiers: int, max_objects: int = MAX_OBJECTS) -> None:
        self._n_tiers = n_tiers
        self._max_objects = max_objects
        self._lock = threading.Lock()
        self._changes = self._no_changes()

    def wrote(self, id: BlockId, tier_index: int, n_bytes: int) -> None:
        self._note(id, tier_index, n_bytes)

    def removed(self, id: BlockId, tier_index: int) -> None:
        self._note(id, tier_index, None)

    def used(self, ids: Iterable[BlockId]) -> None:
        """The oldest uses that do not fit are forgotten, and `incomplete` does not tell: they are
        opinions, not facts.
        """
        with self._lock:
            used = self._changes.used
            for id in ids:
                used[id] = used.pop(id, 0) + 1
                if len(used) > self._max_objects:
                    del used[next(iter(used))]

    def take(self) -> Changes:
        """Everything since the last `take`."""
        with self._lock:
            changes, self._changes = self._changes, self._no_changes()
        return changes

    def _note(self, id: BlockId, tier_index: int, n_bytes: int | None) -> None:
        with self._lock:
            changes = self._changes.tiers[tier_index]
            changes.pop(id, None)
            changes[id] = n_bytes
            if len(changes) > self._max_objects:
                del changes[next(iter(changes))]
                self._changes.incomplete = True

    def _no_changes(self) -> Changes:
        return Changes(tuple({} for _ in range(self._n_tiers)))
