"""What one process tells the others that share its store: what it wrote, removed and used since it last told. Pure; pickles small.

A place is known by its marks (see `place`), not by its level or URL: processes may have different tiers, and one directory may be mounted
at two paths. An object is a record of 81 bytes, and its tokens where they are known; roots, which thousands of objects share, come once:

    root    u16, a place in `News.roots` (32 bytes each)
    kind    u8: 0 ROWS, 1 END, 2 REPLAY; 128 is added where tokens follow
    parent  32 bytes
    key     32 bytes
    start   u32
    n_tokens    u16
    number  u64: the bytes of an object that was written, the hits of one that was used, 0 of one that was removed
    tokens  n_tokens big-endian uint32

All integers are big-endian. News are hints: whoever hears them checks before use, and what they leave out is found by the next listing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cache_store.block import BlockId, Kind
from cache_store.index_graph import KEY_BYTES, TOKEN_BYTES
from cache_store.keys import ChainKey

_RECORD = struct.Struct(">HB32s32sIHQ")
_KINDS = (Kind.ROWS, Kind.END, Kind.REPLAY)
_WITH_TOKENS = 128
_MAX_ROOTS = 1 << 16


class BadNews(ValueError):
    """Not news that this version understands."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a piece of news."""

    id: BlockId
    number: int = 0
    tokens: bytes | None = None


@dataclass(frozen=True, slots=True)
class PlaceNews:
    """What changed in one tier. `marks` name the place; none while they are not known. `label` and `url` tell people where it is."""

    label: str
    url: str
    local: bool
    marks: frozenset[str]
    max_bytes: int | None = None
    written: bytes = b""
    removed: bytes = b""

    def is_at(self, marks: frozenset[str]) -> bool:
        """Whether this is the place that has `marks`."""
        return not self.marks.isdisjoint(marks)


@dataclass(frozen=True, slots=True)
class News:
    """`owner` is the store that tells, `places` all its tiers, fastest first. `incomplete`: older changes did not fit and are left out."""

    owner: str
    places: tuple[PlaceNews, ...] = ()
    roots: bytes = b""
    used: bytes = b""
    incomplete: bool = False

    @property
    def is_empty(self) -> bool:
        """Nothing happened that others should hear of."""
        return not (self.used or self.incomplete or any(place.written or place.removed for place in self.places))

    def items(self, records: bytes) -> Iterator[Item]:
        """What `written`, `removed` or `used` say. Raises `BadNews` where they stop making sense."""
        at = 0
        while at < len(records):
            try:
                root, kind, parent, key, start, n_tokens, number = _RECORD.unpack_from(records, at)
                root_key = self.roots[root * KEY_BYTES : (root + 1) * KEY_BYTES]
                id = BlockId(_text(root_key), _KINDS[kind & ~_WITH_TOKENS], _text(parent), _text(key), start, n_tokens)
            except (struct.error, IndexError, TypeError) as error:
                raise BadNews(f"a record at {at} that is none: {error}") from error
            at += _RECORD.size
            tokens = records[at : at + n_tokens * TOKEN_BYTES] if kind & _WITH_TOKENS else None
            at += len(tokens or b"")
            if len(root_key) != KEY_BYTES or (tokens is not None and len(tokens) != n_tokens * TOKEN_BYTES):
                raise BadNews("cut short")
            yield Item(id, number, tokens)


class Packer:
    """Packs the objects of one piece of news; `roots` has those of all that were packed."""

    def __init__(self) -> None:
        self._roots: dict[ChainKey, int] = {}

    @property
    def roots(self) -> bytes:
        return bytes.fromhex("".join(self._roots))

    def pack(self, items: Iterable[Item]) -> bytes:
        """Objects of more roots than there are numbers for are left out."""
        return b"".join(self._record(item) for item in items if item.id.root in self._roots or len(self._roots) < _MAX_ROOTS)

    def _record(self, item: Item) -> bytes:
        id = item.id
        root = self._roots.setdefault(id.root, len(self._roots))
        kind = _KINDS.index(id.kind) + (0 if item.tokens is None else _WITH_TOKENS)
        parent, key = bytes.fromhex(id.parent), bytes.fromhex(id.key)
        return _RECORD.pack(root, kind, parent, key, id.start, id.n_tokens, item.number) + (item.tokens or b"")


def _text(digest: bytes) -> ChainKey:
    return ChainKey(digest.hex())
