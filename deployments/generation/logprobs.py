"""Log probabilities as OpenAI's chats and responses write them.

They cover the text that a client gets: those of a token wait until text of it has left, and what a
stop string cut off has none.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable
from typing import Any

from erllama.events import Completion, RequestStats, TokenLogprob

MIN_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own floor

Placed = tuple[int, TokenLogprob]
"""A token, behind the number of characters of the reply that stand before it."""


class CoveredLogprobs:
    """The tokens of one choice, each as soon as the text that has left reaches beyond its
    beginning.

    Offsets follow the bytes of the tokens. A token that ends inside a character points at that
    character.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_chars = 0  # of the tokens
        self._n_left = 0  # of the text that has left
        self._waiting: deque[Placed] = deque()

    def push(self, logprobs: Iterable[TokenLogprob], text: str) -> list[Placed]:
        """What `text`, which came with `logprobs`, makes certain."""
        for entry in logprobs:
            self._waiting.append((self._n_chars, entry))
            self._n_chars += 0 if entry.hidden else len(self._decoder.decode(entry.piece))
        self._n_left += len(text)
        covered = []
        while self._waiting and self._waiting[0][0] < self._n_left:
            covered.append(self._waiting.popleft())
        return covered

    def finish(self, stats: RequestStats) -> list[Placed]:
        """The rest, at the end of the reply: none behind a stop string."""
        return [] if stats.stop_sequence is not None else list(self._waiting)


def covered(reply: Completion) -> list[Placed]:
    """The tokens of a whole reply that its text covers."""
    queue = CoveredLogprobs()
    return queue.push(reply.logprobs or (), reply.text) + queue.finish(reply.stats)


def token_logprobs(placed: Iterable[Placed]) -> list[dict[str, Any]]:
    """One object per token."""
    return [
        _chat_token(entry.piece, entry.logprob)
        | {"top_logprobs": [_chat_token(piece, logprob) for _, piece, logprob in entry.top]}
        for _, entry in placed
    ]


def _chat_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(piece)}


def finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB
