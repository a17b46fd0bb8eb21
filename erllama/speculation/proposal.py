"""Tokens that may come next, and why that is believed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where a proposal comes from: text that the reply repeats, or what its grammar forces."""

    LOOKUP = "lookup"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Proposal:
    """`tokens` may follow. The `n_matched` tokens before them stand before the text that they were
    read from, too: the more, the likelier.
    """

    tokens: tuple[int, ...] = ()
    n_matched: int = 0
    source: Source = Source.LOOKUP

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def first(self, n: int) -> Proposal:
        """The first `n` tokens of it."""
        return Proposal(self.tokens[:n], self.n_matched, self.source)

    def n_common(self, tokens: list[int]) -> int:
        """How many of them `tokens`, which came, begin with."""
        n = 0
        for proposed, came in zip(self.tokens, tokens, strict=False):
            if proposed != came:
                break
            n += 1
        return n


NOTHING = Proposal()
