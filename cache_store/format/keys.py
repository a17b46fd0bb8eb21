"""Chain keys: content addresses of token prefixes, and the chain of a prompt, which computes each
of them once. Pure.

    h_0 = sha256(format version || namespace || salt)
    h_i = sha256(h_{i-1} || tokens of block i as little-endian u32)

Every field of h_0 is preceded by its length as little-endian u64, so that no two different triples
hash the same bytes. A key names *all* tokens up to the end of its block, hence equal keys mean
equal prefixes wherever they were computed. A prefix that ends inside a block has a key, too: that
of its whole blocks, then the shorter rest hashed as a block of its own. Keys are lower-case hex (64
characters). Python's `hash()` is never used: it differs between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import NewType

import numpy as np
from numpy.typing import NDArray

ChainKey = NewType("ChainKey", str)

BLOCK_TOKENS = 256
_TOKEN_BYTES = 4

FORMAT_VERSION = 2  # of keys, names and files


def root_key(namespace: str, salt: str = "") -> ChainKey:
    """h_0: the parent of every first block in `namespace` (what decides KV bytes) and `salt`
    (tenant).
    """
    return ChainKey(digest_of(str(FORMAT_VERSION), namespace, salt))


def digest_of(*texts: str) -> str:
    """SHA-256 of texts, each preceded by its length: others give another one, however they are cut."""
    digest = hashlib.sha256()
    for part in (text.encode() for text in texts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def tenant_root(root: ChainKey, salt: str) -> ChainKey:
    """The root of one tenant's prefixes below `root`: nobody who has another salt finds them. "" is
    whoever has none, whose root is `root` itself.
    """
    return root_key(root, salt) if salt else root


def n_common(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    """How many leading ids `a` and `b` share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


class TokenChain:
    """The token ids of a prompt under a root, and the keys of its prefixes: made once per prompt
    and handed on.

    ids     (n,) uint32, read-only; a copy of what the chain was made from. `OverflowError` for an
            id that is no uint32.
    root    the key of the empty prefix

    A key is computed when it is first asked for and then kept; prefixes and extensions of a chain
    share what is known. Any thread: keys are functions of the ids, so two threads that compute one
    at the same moment keep the same value.
    """

    __slots__ = ("_block_tokens", "_keys", "ids", "root")

    def __init__(
        self, root: ChainKey, ids: Sequence[int] | NDArray[np.uint32], block_tokens: int = BLOCK_TOKENS
    ) -> None:
        self.root, self._block_tokens = root, block_tokens
        self.ids = np.array(ids, dtype=np.uint32)
        self.ids.flags.writeable = False
        # by length of the prefix; may hold lengths beyond ours, of the chain that this is a prefix of
        self._keys = {0: root}

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<TokenChain of {len(self)} tokens under {self.root[:8]}>"

    def key_at(self, n: int) -> ChainKey:
        """The key of ids[:n]; the root for 0. `IndexError` for a prefix that there is not."""
        if not 0 <= n <= len(self):
            raise IndexError(f"no prefix of {n} tokens in a chain of {len(self)}")
        known = n
        while known not in self._keys:
            known = (known - 1) // self._block_tokens * self._block_tokens
        if known < n:
            digest, data, width = bytes.fromhex(self._keys[known]), self._bytes(known, n), self._block_tokens
            for end in range(known + width, n + width, width):
                block = data[(end - width - known) * _TOKEN_BYTES : (end - known) * _TOKEN_BYTES]
                digest = hashlib.sha256(digest + block).digest()
                self._keys[min(end, n)] = ChainKey(digest.hex())
        return self._keys[n]

    def block_keys(self, start: int = 0, stop: int | None = None) -> list[ChainKey]:
        """The keys of the whole blocks that end after token `start` and not after token `stop`
        (None: the end), in order.
        """
        size = self._block_tokens
        stop = len(self) if stop is None else min(stop, len(self))
        self.key_at(stop // size * size)  # all of them in one pass
        return [self._keys[end] for end in range((start // size + 1) * size, stop + 1, size)]

    def length_of(self, key: str) -> int:
        """The n for which `key_at(n)` is `key`; 0 when there is none, and for the root."""
        size = self._block_tokens
        # from the end: what is looked for is most of the tokens as a rule
        for begin in range((len(self) - 1) // size * size, -1, -size):
            digest, block = hashlib.sha256(bytes.fromhex(self.key_at(begin))), self._bytes(begin, begin + size)
            for at in range(0, len(block), _TOKEN_BYTES):
                digest.update(block[at : at + _TOKEN_BYTES])
                if digest.hexdigest() == key:
                    return begin + at // _TOKEN_BYTES + 1
        return 0

    def prefix(self, n: int) -> TokenChain:
        """The chain of ids[:n], or this one where it is no longer."""
        if n >= len(self):
            return self
        shorter = copy(self)
        shorter.ids = self.ids[: max(0, n)]
        return shorter

    def extended(self, ids: Sequence[int] | NDArray[np.uint32]) -> TokenChain:
        """The chain of these ids and then `ids`."""
        longer = TokenChain(self.root, np.concatenate([self.ids, np.array(ids, dtype=np.uint32)]), self._block_tokens)
        longer._keys.update((n, key) for n, key in self._keys.copy().items() if n <= len(self))
        return longer

    def _bytes(self, start: int, stop: int) -> bytes:
        return self.ids[start:stop].astype("<u4", copy=False).tobytes()
