"""Header and seal of a block file: their text, and reading it back. `block_file` documents the fields and says where they lie. Pure.

Both are text of a width known before the file is written, so that they can be put into a finished file in place.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any, Self

from cache_store.errors import CorruptBlock, Damage
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.keys import ChainKey

FILE_VERSION = 1
HEADER_NAME = "erllama.block"
SEAL_NAME = "erllama.seal"
LEAST_WIDTH = 768  # the header's text with all numbers at their widest, without reason and build

_FORMAT = "erllama-block"
_SEAL = "erllama-block/{:d} head_bytes={:08x} header_at={:08x} header_bytes={:08x} tail_xxh3={} head_xxh3={}"
_ANY_SEAL = re.compile(rb"erllama-block/([0-9]{1,4}) ")
_OUR_SEAL = re.compile(
    rb"erllama-block/([0-9]{1,4}) head_bytes=([0-9a-f]{8}) header_at=([0-9a-f]{8}) header_bytes=([0-9a-f]{8})"
    rb" tail_xxh3=([0-9a-f]{32}) head_xxh3=([0-9a-f]{32})"
)
_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "str | None": (str, type(None))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header's fields; the last four follow from the written file."""

    kind: str
    root: str
    parent: str
    key: str
    start: int
    n_tokens: int
    rows: int
    reason: str
    build: str
    created_s: float
    compression: str | None
    payload_bytes: int
    body_at: int = 0
    body_bytes: int = 0
    file_bytes: int = 0
    payload_xxh3: str = ""

    @classmethod
    def of(cls, block: Block, *, rows: int, compression: str | None) -> Self:
        return cls(
            kind=block.id.kind.value,
            root=block.id.root,
            parent=block.id.parent,
            key=block.id.key,
            start=int(block.id.start),
            n_tokens=int(block.id.n_tokens),
            rows=rows,
            reason=block.reason,
            build=block.build,
            created_s=float(block.created_s),
            compression=compression,
            payload_bytes=block.payload_bytes,
        )

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Raises CorruptBlock for anything but our header."""
        try:
            found = json.loads(text.decode().rstrip())  # bytes, and blanks behind, cost it as much as the rest
            if not isinstance(found, dict) or (found.pop("format", None), found.pop("version", None)) != (_FORMAT, FILE_VERSION):
                raise ValueError("the header is not ours")
            header = cls(**found)
            header._check()
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptBlock(Damage.NOT_ARROW, f"header: {error}") from error
        return header

    def _check(self) -> None:
        for name, due in _DUE:
            value = getattr(self, name)
            if not isinstance(value, due) or value is True or value is False or (due is int and value < 0):
                raise TypeError(f"{name} is {value!r}")
        rows = {Kind.ROWS: self.n_tokens, Kind.END: 1}.get(Kind(self.kind), self.rows)
        if self.rows != rows:
            raise ValueError(f"{self.rows} rows instead of {rows}")

    @property
    def id(self) -> BlockId:
        return BlockId(ChainKey(self.root), Kind(self.kind), ChainKey(self.parent), ChainKey(self.key), self.start, self.n_tokens)

    def text(self, width: int) -> bytes:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        text = json.dumps({"format": _FORMAT, "version": FILE_VERSION, **values}, separators=(",", ":")).encode()
        assert len(text) <= width, "a header outgrew its place"
        return text.ljust(width)


_DUE = tuple((field.name, _TYPES[str(field.type)]) for field in fields(Header))


def header_width(block: Block) -> int:
    """How wide the header of `block` is; in steps, so that files of one shape have one layout."""
    return -(-(LEAST_WIDTH + len(json.dumps([block.reason, block.build]))) // 256) * 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """The seal's fields. The digests are 32 hex digits."""

    head_bytes: int = 0
    header_at: int = 0
    header_bytes: int = 0
    tail_xxh3: str = "0" * 32
    head_xxh3: str = "0" * 32

    @property
    def text(self) -> str:
        return _SEAL.format(FILE_VERSION, self.head_bytes, self.header_at, self.header_bytes, self.tail_xxh3, self.head_xxh3)

    @classmethod
    def find(cls, message: memoryview) -> tuple[Self, int, int]:
        """The seal in a record batch message, and where it begins and ends there. Raises CorruptBlock."""
        found = _OUR_SEAL.search(message)
        version = found or _ANY_SEAL.search(message)
        if version is None:
            raise CorruptBlock(Damage.NOT_ARROW, "no seal")
        if int(version[1]) != FILE_VERSION:
            raise CorruptBlock(Damage.VERSION, f"format version {int(version[1])}, this code reads {FILE_VERSION}")
        if found is None:
            raise CorruptBlock(Damage.DIGEST, "the seal is illegible")
        head_bytes, header_at, header_bytes = (int(number, 16) for number in found.groups()[1:4])
        tail, head = (digest.decode() for digest in found.groups()[4:])
        seal = cls(head_bytes=head_bytes, header_at=header_at, header_bytes=header_bytes, tail_xxh3=tail, head_xxh3=head)
        return seal, found.start(), found.end()
