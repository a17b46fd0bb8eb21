"""Chain keys: content addresses of token prefixes. Pure.

    h_0 = sha256(format version || namespace || salt)
    h_i = sha256(h_{i-1} || tokens of block i as little-endian u32)

Every field of h_0 is preceded by its length as little-endian u64, so that no two different triples hash the same bytes. A key names
*all* tokens up to the end of its block, hence equal keys mean equal prefixes wherever they were computed. Keys are lower-case hex (64
characters). Python's `hash()` is never used: it differs between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NewType

import numpy as np
from numpy.typing import NDArray

ChainKey = NewType("ChainKey", str)

Tokens = Sequence[int] | NDArray[np.uint32]

FORMAT_VERSION = 1


def root_key(namespace: str, salt: str = "") -> ChainKey:
    """h_0: the parent of every first block in `namespace` (what decides KV bytes) and `salt` (tenant)."""
    digest = hashlib.sha256()
    for part in (str(FORMAT_VERSION).encode(), namespace.encode(), salt.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return ChainKey(digest.hexdigest())


def _extend(parent: ChainKey, tokens: np.ndarray) -> ChainKey:
    return ChainKey(hashlib.sha256(bytes.fromhex(parent) + tokens.tobytes()).hexdigest())


def chain_keys(root: ChainKey, tokens: Tokens, block_tokens: int) -> list[ChainKey]:
    """Keys of the full blocks of `tokens`, in order. Tokens after the last full block are not covered."""
    ids = np.asarray(tokens, dtype="<u4")
    keys: list[ChainKey] = []
    parent = root
    for start in range(0, len(ids) - block_tokens + 1, block_tokens):
        parent = _extend(parent, ids[start : start + block_tokens])
        keys.append(parent)
    return keys


def tail_key(root: ChainKey, tokens: Tokens, block_tokens: int) -> ChainKey:
    """The key of the whole of `tokens`: its full blocks, then the shorter tail as a block of its own if there is one."""
    keys = chain_keys(root, tokens, block_tokens)
    parent = keys[-1] if keys else root
    tail = np.asarray(tokens[len(keys) * block_tokens :], dtype="<u4")
    return _extend(parent, tail) if len(tail) else parent


def length_of_key(root: ChainKey, tokens: Tokens, block_tokens: int, key: str) -> int:
    """The n for which `tail_key(root, tokens[:n], block_tokens)` is `key`; 0 when there is none."""
    ids = np.asarray(tokens, dtype="<u4")
    boundaries = [root, *chain_keys(root, tokens, block_tokens)]
    for i in range(len(boundaries) - 1, -1, -1):  # from the end: what is looked for is most of the tokens as a rule
        block = ids[i * block_tokens : (i + 1) * block_tokens]
        for n in range(len(block), 0, -1):
            if _extend(boundaries[i], block[:n]) == key:
                return i * block_tokens + n
    return 0
