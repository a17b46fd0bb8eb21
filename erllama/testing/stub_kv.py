"""The KV of `StubBackend` as rows: so much a function of tokens and adapters that a state put back
wrongly is an assertion failure.

A row is a token id (column "k0", 4 bytes) and a link (column "v0", 16 bytes): a digest of all
tokens up to here under the adapter set that computed them, and the name of that set. A checkpoint
is every row of the sequence. From either the tokens can be told and the digests checked, in another
stub as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from erllama.kv.layout import KvKind, KvLayout, Rows
from erllama.stats import AdapterSet

TOKEN_BYTES, NAME_BYTES = 4, 8
LINK_BYTES = 2 * NAME_BYTES
ROW_BYTES = TOKEN_BYTES + LINK_BYTES


def stub_layout(kind: KvKind) -> KvLayout:
    if kind is KvKind.OPAQUE:
        return KvLayout(kind, problem="the stub was told so")
    return KvLayout(kind) if kind is KvKind.RECURRENT else KvLayout(kind, ("k0", "v0"), (TOKEN_BYTES, LINK_BYTES))


def set_name(adapters: AdapterSet) -> bytes:
    text = "+".join(f"{use.sha256}*{use.scale}" for use in adapters)
    return hashlib.blake2b(text.encode(), digest_size=NAME_BYTES).digest()


@dataclass(slots=True)
class StubSequence:
    """`tokens` is the list that `StubBackend.kv` shows: it is changed in place, never replaced."""

    tokens: list[int] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)

    def extend(self, tokens: Iterable[int], name: bytes) -> None:
        assert all(link[NAME_BYTES:] == name for link in self.links[-1:]), "KV of one adapter set goes on under another"
        for token in tokens:
            digest = hashlib.blake2b(
                b"".join(self.links[-1:]) + token.to_bytes(TOKEN_BYTES, "little") + name, digest_size=NAME_BYTES
            )
            self.tokens.append(token)
            self.links.append(digest.digest() + name)

    def cut(self, n_tokens: int) -> None:
        del self.tokens[n_tokens:]
        del self.links[n_tokens:]

    def rows(self) -> Rows:
        data = b"".join(
            t.to_bytes(TOKEN_BYTES, "little") + link for t, link in zip(self.tokens, self.links, strict=True)
        )
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, ROW_BYTES).copy()

    def take_rows(self, rows: Rows) -> None:
        """Become what the rows say; an assertion fails unless they are the rows of some sequence of
        tokens, from its first on.
        """
        assert not self.tokens, f"a sequence that still holds {len(self.tokens)} tokens"
        for position, row in enumerate(rows):
            token, link = int.from_bytes(row[:TOKEN_BYTES].tobytes(), "little"), row[TOKEN_BYTES:].tobytes()
            self.extend([token], link[NAME_BYTES:])
            assert self.links[position] == link, (
                f"row {position} is not that of token {token} after the {position} before it"
            )


class StubImage:
    """A `KvImage`. `closed` for tests that count them."""

    def __init__(self, kind: KvKind, n_tokens: int) -> None:
        self.layout = stub_layout(kind)
        self.closed = False
        self._table = np.zeros((n_tokens, ROW_BYTES), dtype=np.uint8)
        self._filled = np.zeros(n_tokens, dtype=np.bool_)
        self._checkpoint: Rows | None = None

    def put(self, start: int, columns: tuple[str, ...], rows: tuple[Rows, ...]) -> None:
        assert not self.closed
        positions = self.layout.positions_of(start, columns, rows, len(self._table))
        if rows:
            self._table[positions] = np.concatenate(rows, axis=1)
            self._filled[positions] = True

    def memory(
        self, start: int, n_tokens: int, columns: Sequence[str], row_bytes: Sequence[int]
    ) -> Sequence[memoryview] | None:
        """None: a row of the table holds all columns."""
        return None

    def received(self, start: int, n_tokens: int) -> None:
        raise AssertionError("rows that were written nowhere")

    def abandon(self) -> None:
        """Nobody else ever writes into the table."""

    def put_checkpoint(self, data: Rows) -> None:
        assert not self.closed
        if not self.layout.kind.has_checkpoint or data.size % ROW_BYTES or not 0 < data.size <= self._table.size:
            raise ValueError(f"{data.size} bytes are not a checkpoint of a {self.layout.kind} model")
        self._checkpoint = data.reshape(-1, ROW_BYTES).copy()

    def table(self, n_tokens: int) -> Rows:
        """The rows of the first `n_tokens`. Raises `ValueError` where any, or the checkpoint, are
        missing.
        """
        assert not self.closed
        if not 0 < n_tokens <= len(self._table) or (self.layout.columns and not self._filled[:n_tokens].all()):
            raise ValueError(f"not all rows of {n_tokens} tokens are there")
        if not self.layout.kind.has_checkpoint:
            return self._table[:n_tokens]
        if self._checkpoint is None or len(self._checkpoint) != n_tokens:
            raise ValueError(f"no checkpoint after {n_tokens} tokens")
        assert not self.layout.columns or np.array_equal(self._checkpoint, self._table[:n_tokens]), (
            "rows and checkpoint of two sequences"
        )
        return self._checkpoint

    def close(self) -> None:
        self.closed = True
