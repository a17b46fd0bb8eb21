"""Header and seal of a block file, and the sizes that follow from them. Pure.

`file` documents the fields and says where they lie.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

from cache_store.errors import CorruptBlock, Damage
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.keys import FORMAT_VERSION, ChainKey

HEADER_NAME = b"erllama.block"
SEAL_BYTES = 56
SEAL_PROVEN = 40  # of them, by the digest that follows
MAX_PAYLOAD_BYTES = (1 << 31) - 1  # what a fixed_size_binary can hold
END_PARTS = {"logits": 4, "checkpoint": 1}  # name: bytes of an item

_FORMAT = "erllama-block"
_SEAL_MAGIC = b"erllama"
_SEAL_START = struct.Struct("<7sBQII16s")
_TOKEN_BYTES = 4
# What one stored byte stands for at most: a zstd block of 4 bytes is 128 KiB of one value, and
# every further byte of an lz4 length adds 255.
_MOST_PER_BYTE = {None: 1, "zstd": 1 << 15, "lz4": 255}
_MOST_EXTRA = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header's fields; sizes in bytes. What `of` or `parse` made does not contradict itself."""

    kind: str
    root: str
    parent: str
    key: str
    start: int
    n_tokens: int
    n_ids: int
    parts: list[str]
    row_bytes: list[int]
    reason: str
    build: str
    created_s: float
    compression: str | None
    stored_bytes: int
    tokens_xxh3: str
    payload_xxh3: str

    @classmethod
    def of(
        cls, block: Block, *, compression: str | None, stored_bytes: int, tokens_xxh3: str, payload_xxh3: str
    ) -> Self:
        """Raises ValueError for a block too large for a file, or that contradicts itself."""
        is_rows = block.id.kind is Kind.ROWS
        values = {"logits": block.logits, "checkpoint": block.checkpoint}
        header = cls(
            **asdict(block.id),
            n_ids=len(block.tokens),
            parts=[*block.columns, *(name for name, value in values.items() if value is not None)],
            row_bytes=[part.shape[1] if is_rows else part.nbytes for part in block.payload],
            reason=block.reason,
            build=block.build,
            created_s=float(block.created_s),
            compression=compression,
            stored_bytes=stored_bytes,
            tokens_xxh3=tokens_xxh3,
            payload_xxh3=payload_xxh3,
        )
        header._check()
        return header

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Raises CorruptBlock for anything but our header."""
        try:
            found = json.loads(text.decode())  # bytes cost it as much as the rest
            if not isinstance(found, dict) or (found.pop("format", None), found.pop("version", None)) != (
                _FORMAT,
                FORMAT_VERSION,
            ):
                raise ValueError("the header is not ours")
            header = cls(**found)
            header._check()
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptBlock(Damage.NOT_ARROW, f"header: {error}") from error
        return header

    @property
    def text(self) -> bytes:
        values = {name: getattr(self, name) for name, _ in _DUE}
        return json.dumps({"format": _FORMAT, "version": FORMAT_VERSION, **values}, separators=(",", ":")).encode()

    @property
    def id(self) -> BlockId:
        return BlockId(
            ChainKey(self.root), Kind(self.kind), ChainKey(self.parent), ChainKey(self.key), self.start, self.n_tokens
        )

    @property
    def n_rows(self) -> int:
        """Of each part."""
        return self.n_tokens if self.kind == Kind.ROWS else 1

    @property
    def payload_bytes(self) -> int:
        """Uncompressed."""
        return self.n_rows * sum(self.row_bytes)

    @property
    def tokens_end(self) -> int:
        """In the body, in which they begin behind the seal; so do those that follow."""
        return SEAL_BYTES + _TOKEN_BYTES * self.n_ids

    @property
    def payload_at(self) -> int:
        return _to_8(self.tokens_end)

    @property
    def payload_end(self) -> int:
        return self.payload_at + self.stored_bytes

    @property
    def body_bytes(self) -> int:
        return _to_8(self.payload_end)

    def _check(self) -> None:
        for name, due in _DUE:
            value = getattr(self, name)
            if not isinstance(value, due) or value is True or value is False or (due is int and value < 0):
                raise ValueError(f"{name} is {value!r}")
        if not math.isfinite(self.created_s):
            raise ValueError(f"created_s is {self.created_s}")
        if self.n_ids != {Kind.ROWS: self.n_tokens, Kind.END: 0}.get(Kind(self.kind), self.n_ids):
            raise ValueError(f"{self.n_ids} token ids, {self.n_tokens} in the name")
        self._check_parts()
        self._check_sizes()

    def _check_parts(self) -> None:
        if (
            {*map(type, self.parts)} - {str}
            or {*map(type, self.row_bytes)} - {int}
            or len(self.parts) != len(self.row_bytes)
        ):
            raise ValueError(f"parts {self.parts!r} with rows of {self.row_bytes!r} bytes")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"names repeat: {self.parts}")
        if not all((self.kind == Kind.ROWS) <= row_bytes <= MAX_PAYLOAD_BYTES for row_bytes in {*self.row_bytes}):
            raise ValueError(f"rows of {self.row_bytes} bytes")
        if self.kind != Kind.ROWS:
            self._check_end_parts()

    def _check_end_parts(self) -> None:
        if self.parts != [name for name in END_PARTS if name in self.parts and self.kind == Kind.END]:
            raise ValueError(f"{self.kind} with the parts {self.parts}")
        if any(n_bytes % END_PARTS[name] for name, n_bytes in zip(self.parts, self.row_bytes, strict=True)):
            raise ValueError(f"logits that are no float32: {self.row_bytes} bytes")

    def _check_sizes(self) -> None:
        """Before memory is taken for what the header claims."""
        if self.compression not in _MOST_PER_BYTE:
            raise ValueError(f"compression is {self.compression!r}")
        if max(self.payload_bytes, self.stored_bytes) > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"{self.payload_bytes} bytes of payload, {self.stored_bytes} stored; the limit is {MAX_PAYLOAD_BYTES}"
            )
        if self.compression is None and self.stored_bytes != self.payload_bytes:
            raise ValueError(f"{self.stored_bytes} bytes are stored of {self.payload_bytes}")
        if self.payload_bytes > _MOST_PER_BYTE[self.compression] * self.stored_bytes + _MOST_EXTRA:
            raise ValueError(f"{self.payload_bytes} bytes cannot be the {self.stored_bytes} bytes stored")


_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "str | None": (str, type(None))}
_DUE = tuple((field.name, _TYPES.get(str(field.type), list)) for field in fields(Header))


def _to_8(n_bytes: int) -> int:
    return -(-n_bytes // 8) * 8


class Seal(NamedTuple):
    """The seal's fields; the digests in hex."""

    file_bytes: int
    header_at: int
    header_bytes: int
    tail_xxh3: str
    head_xxh3: str

    @staticmethod
    def start(file_bytes: int, header_at: int, header_bytes: int, tail_xxh3: bytes) -> bytes:
        """The first SEAL_PROVEN bytes."""
        return _SEAL_START.pack(_SEAL_MAGIC, FORMAT_VERSION, file_bytes, header_at, header_bytes, tail_xxh3)

    @classmethod
    def parse(cls, found: memoryview) -> Self:
        """Raises CorruptBlock for SEAL_BYTES that are not a seal of this version."""
        magic, version, file_bytes, header_at, header_bytes, tail_xxh3 = _SEAL_START.unpack_from(found)
        if magic != _SEAL_MAGIC:
            raise CorruptBlock(Damage.NOT_ARROW, "no seal")
        if version != FORMAT_VERSION:
            raise CorruptBlock(Damage.VERSION, f"format version {version}, this code reads {FORMAT_VERSION}")
        return cls(file_bytes, header_at, header_bytes, tail_xxh3.hex(), found[SEAL_PROVEN:].hex())
