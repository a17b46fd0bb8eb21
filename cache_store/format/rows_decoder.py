"""Decodes a ROWS object so that its rows end up in memory that somebody else lends: straight out of
the file where the tier can do that, else by a copy, or by decompressing into it.

The digest is taken of the bytes where they then are, piece by piece as they come, so what was
proven is what is used. Memory that was lent holds anything until `block` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import xxhash

from cache_store.errors import CorruptBlock, Damage
from cache_store.format.block import Block, BlockId
from cache_store.format.file import (
    block_of,
    check_length,
    prove_rest,
    proven_head,
    proven_parts,
    tokens_of,
    unpack_into,
)
from cache_store.format.header import Header, Seal

# by columns and bytes of their rows: writable memory for each column; None: there is none
Lend = Callable[[Sequence[str], Sequence[int]], Sequence[memoryview] | None]


class _Placed(NamedTuple):
    header: Header
    seal: Seal
    body_at: int


class RowsDecoder:
    """Of one object. A tier may use it as `Placer` while it reads; then `block` gets what is left. One
    thread.
    """

    def __init__(self, expect: BlockId, lend: Lend) -> None:
        self._expect = expect
        self._lend = lend
        self._placed: _Placed | None = None
        self._digest = xxhash.xxh3_128()
        self.seen: Callable[[memoryview], object] = self._digest.update  # see `Placer`
        self.memory: Sequence[memoryview] = ()

    def place(self, head: memoryview, n_bytes: int) -> int | None:
        """See `Placer`. What is wrong with the head is left to `block`, which says so."""
        try:
            header, seal, body_at = proven_head(head.toreadonly(), self._expect)
        except CorruptBlock:
            return None
        start = body_at + header.payload_at
        is_plain = header.compression is None and n_bytes == seal.file_bytes
        if not is_plain or start > len(head) or start + header.stored_bytes > n_bytes or not self._borrow(header):
            return None
        self._placed = _Placed(header, seal, body_at)
        return start

    def block(self, data: memoryview) -> Block:
        """The object, proven. With `memory` its rows are there and not in the result. Raises like
        `decode`.
        """
        if self._placed is not None:
            return self._rest_of(data.toreadonly(), *self._placed)
        header, tokens, stored = proven_parts(data, self._expect)
        if not self._borrow(header):
            return block_of(header, self._expect, tokens, stored)
        if header.compression is None:
            at = 0
            for piece in self.memory:
                piece[:] = stored[at : at + len(piece)]
                at += len(piece)
        else:
            unpack_into(stored, header, self.memory)
        return Block(self._expect, tokens, reason=header.reason, created_s=header.created_s, build=header.build)

    def _rest_of(self, data: memoryview, header: Header, seal: Seal, body_at: int) -> Block:
        check_length(len(data) + header.stored_bytes, seal.file_bytes)
        tokens = tokens_of(data[body_at:], header)
        if self._digest.hexdigest() != header.payload_xxh3:
            raise CorruptBlock(Damage.DIGEST, "the payload does not hash to what the file says")
        prove_rest(data[body_at + header.payload_at :], header, seal)
        return Block(self._expect, tokens, reason=header.reason, created_s=header.created_s, build=header.build)

    def _borrow(self, header: Header) -> bool:
        memory = self._lend(header.parts, header.row_bytes)
        if memory is not None:
            assert sum(map(len, memory)) == header.payload_bytes, "the memory has another size than the rows"
            self.memory = memory
        return bool(self.memory)
