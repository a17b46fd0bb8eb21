"""Prompts and replies that were seen lately, as token ids: what a new prompt is compared with. Not
thread-safe; times are unix seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from cache_store import BLOCK_TOKENS, ChainKey, TokenChain, n_common
from erllama.diagnosis.record import NO_IDS, Ids

MAX_BYTES = 8 << 20  # of ids: a hundred conversations of 20,000 tokens
MAX_ENTRIES = 512
_MAX_TURNS = 64  # of one conversation, of which is known when they were seen
_ID_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A sequence, and when how many of its tokens had been seen."""

    chain: TokenChain
    turns: tuple[tuple[float, int], ...]

    def n_before(self, time_s: float) -> int:
        return max((n for at_s, n in self.turns if at_s < time_s), default=0)


class PromptHistory:
    """Sequences of token ids by root, the latest last. One that continues another takes its place. The
    oldest go when there are more than `max_entries`, or more than `max_bytes` of ids.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._seen: OrderedDict[int, _Seen] = OrderedDict()
        self._n_added = 0
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, chain: TokenChain, time_s: float) -> None:
        """The latest. One that is the beginning of another is known already."""
        turns = [(time_s, len(chain))]
        for name, seen in list(self._seen.items()):
            other, n = seen.chain, min(len(seen.chain), len(chain))
            # the last token differs as a rule, and is looked at in no time
            if other.root != chain.root or other.ids[n - 1] != chain.ids[n - 1] or n_common(other.ids, chain.ids) < n:
                continue
            if len(other) >= len(chain):
                self._seen.move_to_end(name)
                return
            turns += seen.turns
            self._drop(name)
        self._seen[self._n_added] = _Seen(chain, tuple(sorted(turns)[-_MAX_TURNS:]))
        self._n_added += 1
        self.n_bytes += len(chain) * _ID_BYTES
        while len(self) > 1 and (len(self) > self._max_entries or self.n_bytes > self._max_bytes):
            self._drop(next(iter(self._seen)))

    def nearest(self, chain: TokenChain) -> tuple[int, Ids]:
        """How many tokens of `chain` were seen, and the ids of what shares them: of one that ends there,
        else of the latest. (0, no ids) where nothing does.
        """
        most, best = 0, NO_IDS
        for other in (seen.chain for seen in reversed(self._seen.values())):
            if other.root != chain.root or len(other) < most:
                continue
            if most and other.ids[most - 1] != chain.ids[most - 1]:  # then it shares less
                continue
            n = n_common(other.ids, chain.ids)
            if n > most or (n == most > 0 and len(other) == n):
                most, best = n, other.ids
        return most, best

    def n_seen(self, keys: Iterable[ChainKey], first_at: int, before_s: float) -> int:
        """The length of the longest prefix that was seen before a time, of those with `keys`: the first is
        `first_at` tokens long, each other a block more than the one before. 0 for none.
        """
        most = 0
        for i, key in enumerate(keys):
            n = first_at + i * BLOCK_TOKENS
            if not any(seen.n_before(before_s) >= n and seen.chain.key_at(n) == key for seen in self._seen.values()):
                break
            most = n
        return most

    def _drop(self, name: int) -> None:
        self.n_bytes -= len(self._seen.pop(name).chain) * _ID_BYTES
