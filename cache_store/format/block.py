"""What the store keeps: immutable objects, named by content. Pure.

A *prefix key* names a token prefix (`TokenChain.key_at`): a function of root and tokens alone.
Objects hang between or on prefix keys:

    ROWS    the KV of tokens start .. start + n_tokens - 1: an edge from the key of tokens[:start]
            to that of tokens[:start + n_tokens]. It never crosses a multiple of BLOCK_TOKENS; it is
            shorter than a block where a save began or ended inside one. So a conversation is stored
            once, whatever its turns: the next save begins exactly where the last one ended.
    END     what belongs to the point after a prefix: next-token logits, and the checkpoint of
            layers whose state cannot be cut by token. parent == key, start is the length of the
            prefix, n_tokens == 0.
    REPLAY  the ids that a reply was sampled as, found by what the client sends back (`key` is a
            digest of that). parent is the prefix key of the prompt that was answered. start ==
            n_tokens == 0 in the name; the ids are the object's tokens.

The name of an object starts with its parent, so one listing by prefix finds everything that
continues from a prefix. The name carries the version of the format, so that readers of another
version take the object for a foreign file.

The words of the store:

    object      what a tier keeps under one name: a ROWS, an END or a REPLAY
    block       BLOCK_TOKENS tokens that begin at a multiple of it; a `Block` is an object in memory
    rows        the KV bytes of tokens: one row per token in each KV buffer, which are the columns
    END         the object that belongs to the point after a prefix, not to tokens
    root        the key of the empty prefix: of namespace (what decides KV bytes) and salt (tenant)
    key         the content address of a token prefix (`keys`)
    tail        the tokens of a prefix behind its last full block
    edge        a ROWS object in the index: it leads from one prefix to a longer one
    hop         an edge on a prompt's way, with how many of its tokens the prompt shares
    piece       a ROWS object that a save has still to write
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import FORMAT_VERSION, ChainKey, TokenChain

_NAME = re.compile(
    r"([0-9a-f]{64})/([0-9a-f]{2})/(\2[0-9a-f]{62})-([0-9a-f]{64})-([0-9a-f]{1,8})-([0-9a-f]{1,3})"
    r"(?:\.v([1-9][0-9]{0,3}))?\.(rows|end|replay)\.arrow\Z"
)


class Kind(StrEnum):
    ROWS = "rows"
    END = "end"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class BlockId:
    """The identity of an object: everything in its name. `root` is `root_key(namespace, salt)`;
    `start` and `n_tokens` count tokens.
    """

    root: ChainKey
    kind: Kind
    parent: ChainKey
    key: ChainKey
    start: int = 0
    n_tokens: int = 0

    @property
    def name(self) -> str:
        """Path below a tier's directory."""
        span = f"{self.parent}-{self.key}-{self.start:x}-{self.n_tokens:x}"
        return f"{self.root}/{self.parent[:2]}/{span}.v{FORMAT_VERSION}.{self.kind}.arrow"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The id that `name` stands for; None for a foreign file (left alone and not counted)."""
        match = _NAME.match(name)
        if match is None:
            return None
        root, _, parent, key, start, n_tokens, _, kind = match.groups()
        found = cls(ChainKey(root), Kind(kind), ChainKey(parent), ChainKey(key), int(start, 16), int(n_tokens, 16))
        return found if found.name == name else None

    @classmethod
    def of_rows(cls, chain: TokenChain, start: int, stop: int) -> Self:
        """The ROWS object that holds the tokens start .. stop - 1 of a prompt."""
        return cls(chain.root, Kind.ROWS, chain.key_at(start), chain.key_at(stop), start, stop - start)

    @classmethod
    def of_end(cls, chain: TokenChain) -> Self:
        """The END object of a prompt."""
        key = chain.key_at(len(chain))
        return cls(chain.root, Kind.END, key, key, len(chain))

    @staticmethod
    def is_outdated(name: str) -> bool:
        """Whether `name` is of an object of an older version, which this and later ones never read.

        Version 1 did not write its number.
        """
        match = _NAME.match(name)
        return match is not None and int(match[7] or 1) < FORMAT_VERSION

    @staticmethod
    def children_prefix(root: ChainKey, parent: ChainKey) -> str:
        """The beginning of the names of everything that hangs on `parent`."""
        return f"{root}/{parent[:2]}/{parent}-"


@dataclass(frozen=True, slots=True)
class Block:
    """One object with its content. Arrays may be views of a buffer that its owner will reuse: copy
    what you keep.

    tokens      (n,) uint32: the ids of ROWS (n == id.n_tokens) or REPLAY; empty for END
    columns     ROWS: one name per KV buffer, e.g. "k0", "v0", "k1", ...; () for models without rows
    rows        ROWS: per column (n_tokens, row_bytes) uint8, C-contiguous in its last axis
    logits      END: (n_vocab,) float32, or None
    checkpoint  END: opaque bytes (uint8, 1-D), or None
    reason      which save made it: cold, continued, finish, idle, evict, shutdown
    created_s   unix seconds; build: the llama.cpp build that computed it. Both tell, neither
                decides.
    """

    id: BlockId
    tokens: NDArray[np.uint32]
    columns: tuple[str, ...] = ()
    rows: tuple[NDArray[np.uint8], ...] = ()
    logits: NDArray[np.float32] | None = None
    checkpoint: NDArray[np.uint8] | None = None
    reason: str = ""
    created_s: float = 0.0
    build: str = ""

    @property
    def payload(self) -> list[NDArray[Any]]:
        """KV, logits and checkpoint, as far as there are any."""
        return [part for part in (*self.rows, self.logits, self.checkpoint) if part is not None]

    @property
    def payload_bytes(self) -> int:
        return sum(part.nbytes for part in self.payload)

    def with_arrays(self, copy: Callable[[NDArray[Any]], NDArray[Any]]) -> Self:
        """The block with what `copy` makes of each of its arrays."""
        return replace(
            self,
            tokens=copy(self.tokens),
            rows=tuple(copy(rows) for rows in self.rows),
            logits=None if self.logits is None else copy(self.logits),
            checkpoint=None if self.checkpoint is None else copy(self.checkpoint),
        )

    @property
    def contradiction(self) -> str | None:
        """Where the arrays are not what `Block` says, so that they cannot be stored, or None."""
        n = self.id.n_tokens
        if not _is_list(self.tokens, np.uint32):
            return "token ids are not a list of uint32"
        if self.id.kind is not Kind.END and (self.logits is not None or self.checkpoint is not None):
            return "logits or a checkpoint outside an END"
        if self.id.kind is not Kind.ROWS and (self.columns or self.rows):
            return "rows in an object without rows"
        if len(self.columns) != len(self.rows):
            return f"{len(self.columns)} column names, {len(self.rows)} columns"
        for name, rows in zip(self.columns, self.rows, strict=True):
            if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != n or rows.shape[1] < 1:
                return f"column {name} is {rows.dtype}{rows.shape}, not {n} rows of bytes"
        if not _is_list(self.logits, np.float32):
            return "logits are not a list of float32"
        return None if _is_list(self.checkpoint, np.uint8) else "the checkpoint is not a list of bytes"


def _is_list(values: NDArray[Any] | None, dtype: type[np.generic]) -> bool:
    return values is None or (values.dtype == dtype and values.ndim == 1)
