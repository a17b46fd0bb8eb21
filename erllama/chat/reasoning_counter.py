"""How many tokens of a reply were spent on reasoning: counted as they are generated.

The text of a reply does not tell: it arrives in pieces of many tokens, and what it tokenises into
again are other ids. So the tokens go one by one through a splitter of their own, the same that cuts
the reply, which is asked where the reasoning begins and ends:

    <think> | Let |  me |  see | </think> | \\n\\n | It |  rains
    counted   counted                      not counted
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from erllama.chat.tool_formats.base import ReplySplitter

PieceOf = Callable[[int], bytes]
"""The bytes of a token as the text of a reply shows it; b"" for one that it does not show."""


class ReasoningCounter:
    """Counts for one reply. `splitter` is a fresh one of the reply's, None for a model that does
    not think; `piece_of` gives the bytes of the reply's tokens.
    """

    def __init__(self, splitter: ReplySplitter | None, piece_of: PieceOf) -> None:
        self._splitter = splitter  # None once no reasoning can come any more
        self._piece_of = piece_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_waiting: int | None = 0  # tokens that may yet be the opening; None behind the first text
        self.n_tokens = 0
        """The tokens so far that belong to the reasoning, those of its marks included."""

    def push(self, ids: Sequence[int]) -> None:
        """The next token ids of the reply, in any portions."""
        for token in ids:
            if self._splitter is None:
                return
            self._push_one(self._splitter, self._decoder.decode(self._piece_of(token)))

    def _push_one(self, splitter: ReplySplitter, text: str) -> None:
        was_thinking = splitter.thinks
        parts = splitter.push(text)
        if was_thinking or splitter.thinks:
            self.n_tokens += 1 + (self._n_waiting or 0)
            self._n_waiting = None
        elif parts:
            self._n_waiting = None
        elif self._n_waiting is not None:
            self._n_waiting += 1
        if splitter.thinks is None:
            self._splitter = None
