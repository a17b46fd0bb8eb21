"""What the store keeps: immutable objects, named by content. Pure.

A *prefix key* names a token prefix: `tail_key(root, tokens[:n])`, a function of the tokens alone. Objects hang between or on prefix keys:

    ROWS    the KV of tokens start .. start + n_tokens - 1: an edge from the key of tokens[:start] to that of tokens[:start + n_tokens].
            It never crosses a multiple of BLOCK_TOKENS; it is shorter than a block where a save began or ended inside one. So a
            conversation is stored once, whatever its turns: the next save begins exactly where the last one ended.
    END     what belongs to the point after a prefix: next-token logits, and the checkpoint of layers whose state cannot be cut by token.
            parent == key, start is the length of the prefix, n_tokens == 0.
    REPLAY  the ids that a reply was sampled as, found by what the client sends back (`key` is a digest of that). parent is the prefix
            key of the prompt that was answered. start == n_tokens == 0 in the name; the ids are the object's tokens.

The name of an object starts with its parent, so one listing by prefix finds everything that continues from a prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache_store.format.keys import ChainKey, TokenChain

_NAME = re.compile(
    r"([0-9a-f]{64})/([0-9a-f]{2})/([0-9a-f]{64})-([0-9a-f]{64})-([0-9a-f]{1,8})-([0-9a-f]{1,3})\.(rows|end|replay)\.arrow\Z"
)


class Kind(StrEnum):
    ROWS = "rows"
    END = "end"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class BlockId:
    """The identity of an object: everything in its name. `root` is `root_key(namespace, salt)`; `start` and `n_tokens` count tokens."""

    root: ChainKey
    kind: Kind
    parent: ChainKey
    key: ChainKey
    start: int = 0
    n_tokens: int = 0

    @property
    def name(self) -> str:
        """Path below a tier's directory."""
        return f"{self.root}/{self.parent[:2]}/{self.parent}-{self.key}-{self.start:x}-{self.n_tokens:x}.{self.kind}.arrow"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The id that `name` stands for; None for a foreign file (left alone and not counted)."""
        match = _NAME.match(name)
        if match is None or match[2] != match[3][:2]:
            return None
        root, _, parent, key, start, n_tokens, kind = match.groups()
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
    def children_prefix(root: ChainKey, parent: ChainKey) -> str:
        """The beginning of the names of everything that hangs on `parent`."""
        return f"{root}/{parent[:2]}/{parent}-"


@dataclass(frozen=True, slots=True)
class Block:
    """One object with its content. Arrays may be views of a buffer that its owner will reuse: copy what you keep.

    tokens      (n,) uint32: the ids of ROWS (n == id.n_tokens) or REPLAY; empty for END
    columns     ROWS: one name per KV buffer, e.g. "k0", "v0", "k1", ...; () for models without rows
    rows        ROWS: per column (n_tokens, row_bytes) uint8, C-contiguous in its last axis
    logits      END: (n_vocab,) float32, or None
    checkpoint  END: opaque bytes (uint8, 1-D), or None
    reason      which save made it: cold, continued, finish, evict, shutdown
    created_s   unix seconds; build: the llama.cpp build that computed it. Both tell, neither decides.
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
    def payload_bytes(self) -> int:
        """Bytes of KV, logits and checkpoint."""
        parts = [*self.rows, self.logits, self.checkpoint]
        return sum(part.nbytes for part in parts if part is not None)
