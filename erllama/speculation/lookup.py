"""Prompt lookup: a reply that repeats what stands before it goes on as that did.

The longest end of the text that has stood somewhere before is looked for, the newest such place
first, and what followed there is proposed. While the reply goes on as proposed, the place stays the
longest one, so only a mismatch costs a search: one comparison with the whole text in numpy, 20 us
for 50,000 tokens. The idea is Saxena's "prompt lookup decoding" (2023); llama.cpp has it as
`ngram-simple`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from erllama.speculation.proposal import NOTHING, Proposal

MIN_MATCHED = 2
"""A single token says nothing about the next one."""
MAX_MATCHED = 32  # a longer match is no better known, and costs a step of the search per token
PREDICTED = 8  # what a reply that was announced counts as, until it has shown whether it comes
_GAP = -1  # between texts: no token


class PromptLookup:
    """The text of one sequence with what else its reply may repeat. `earlier` texts are older than
    the sequence's own; the last of them, if `predicted`, is what the reply may be, from its
    beginning on. Not thread-safe.
    """

    def __init__(
        self,
        tokens: Sequence[int] | NDArray[np.integer],
        n_most: int,
        *,
        earlier: Iterable[Sequence[int]] = (),
        predicted: bool = False,
    ) -> None:
        """`n_most` tokens is how long the sequence may become."""
        texts = [np.asarray(text, dtype=np.int32) for text in earlier if len(text)]
        self._first = sum(len(text) + 1 for text in texts)  # where the sequence's own text begins
        self._ids = np.full(self._first + n_most, _GAP, dtype=np.int32)
        at = 0
        for text in texts:
            self._ids[at : at + len(text)] = text
            at += len(text) + 1
        self._n = self._first
        self._next = 0  # where the token that is proposed next stands, if `_n_matched`
        self._n_matched = 0
        self._append(tokens)
        if predicted and texts:
            self._next, self._n_matched = self._first - 1 - len(texts[-1]), PREDICTED
        else:
            self._search()

    @property
    def n_tokens(self) -> int:
        """Length of the sequence as far as it is known here."""
        return self._n - self._first

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence has gone on."""
        for token in tokens:
            goes_on = self._n_matched and self._ids[self._next] == token
            self._append((token,))
            self._next += 1
            if goes_on and self._ids[self._next] != _GAP:
                self._n_matched = min(self._n_matched + 1, MAX_MATCHED)
            else:
                self._n_matched = 0
        if not self._n_matched:
            self._search()

    def propose(self, n_most: int) -> Proposal:
        """Up to `n_most` tokens; a text that runs into its own end is taken to go round."""
        if not self._n_matched or n_most < 1:
            return NOTHING
        found = self._ids[self._next : min(self._next + n_most, self._n)]
        gaps = np.flatnonzero(found == _GAP)
        if gaps.size:
            found = found[: gaps[0]]
        elif found.size and found.size < n_most:
            found = np.resize(found, n_most)
        return Proposal(tuple(found.tolist()), self._n_matched)

    def _append(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        end = self._n + len(tokens)
        self._ids[self._n : end] = tokens
        self._n = end

    def _search(self) -> None:
        """Find the newest of the longest matches."""
        ids, n = self._ids, self._n
        if self.n_tokens == 0:
            return
        places = np.flatnonzero(ids[: n - 1] == ids[n - 1])
        if self._first:
            places = places[ids[places + 1] != _GAP]
        n_matched = 1 if places.size else 0
        longest = places
        while places.size and n_matched < min(MAX_MATCHED, self.n_tokens):
            places = places[places >= n_matched]
            places = places[ids[places - n_matched] == ids[n - 1 - n_matched]]
            if places.size:
                longest = places
                n_matched += 1
        self._n_matched = n_matched if n_matched >= MIN_MATCHED else 0
        self._next = int(longest[-1]) + 1 if self._n_matched else 0
