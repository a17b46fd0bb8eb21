"""Where a prompt leaves what was known, and whether both sides go on alike. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache_store import TokenChain
from erllama.diagnosis.record import NO_IDS, Ids, StoreAnswer

COMPARED_TOKENS = 1024  # of each side: enough to know a conversation by
_SHINGLE = 8  # longer than what templates write between messages, as a rule
_MIN_SHINGLES = 8
_SIMILAR = 0.5

RECENT = "recent"
STORE = "store"


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """`position`: the first token of the prompt that differs, its length where none does. `stored` are
    the ids from there on in what was known, up to `COMPARED_TOKENS`; none where that ends. `known_in` is
    `RECENT` or `STORE`, "" for nothing. `n_branch` is the length of all that is known of that.
    """

    position: int
    stored: Ids
    known_in: str
    n_branch: int


def find_divergence(chain: TokenChain, seen: tuple[int, Ids], answer: StoreAnswer | None) -> Divergence:
    """Of the longest common prefix with recent prompts (`PromptHistory.nearest`) or with the store. Where
    both share as much, what is recent counts: all of its ids are known.
    """
    n_seen, ids = seen
    n_stored = 0 if answer is None else answer.n_known
    if n_seen == n_stored == 0:
        return Divergence(0, NO_IDS, "", 0)
    if answer is not None and n_stored > n_seen:
        return Divergence(n_stored, answer.branch[:COMPARED_TOKENS], STORE, n_stored + len(answer.branch))
    return Divergence(n_seen, ids[n_seen : n_seen + COMPARED_TOKENS], RECENT, len(ids))


def is_similar(a: Ids, b: Ids) -> bool:
    """Whether most of the shorter of two sides occurs in the other, whatever differs in between: runs of
    a few tokens are compared, wherever they stand. A side of a few tokens is similar to none.
    """
    first, second = _shingles(a), _shingles(b)
    fewer = min(len(first), len(second))
    return fewer >= _MIN_SHINGLES and len(first & second) >= _SIMILAR * fewer


def _shingles(ids: Ids) -> set[bytes]:
    data = np.ascontiguousarray(ids[:COMPARED_TOKENS], dtype=np.uint32).tobytes()
    width = _SHINGLE * 4
    return {data[at : at + width] for at in range(0, len(data) - width + 1, 4)}
