"""Log probabilities as OpenAI's API writes them, in the chat's shape and the legacy one.

They cover the text that a client gets: those of a token wait until text of it has left, and what a
stop string cut off has none.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
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


def chat_logprobs(placed: Iterable[Placed]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = [
        _chat_token(entry.piece, entry.logprob)
        | {"top_logprobs": [_chat_token(piece, logprob) for _, piece, logprob in entry.top]}
        for _, entry in placed
    ]
    return {"content": content, "refusal": None}


def legacy_logprobs(placed: Sequence[Placed], echoed: int) -> dict[str, list[Any]]:
    """The `logprobs` of a completion's choice as four parallel lists. `text_offset` counts
    characters from the start of the choice's text, of which the first `echoed` are the prompt's.
    """
    return {
        "tokens": [_legacy_text(entry.piece) for _, entry in placed],
        "token_logprobs": [_finite(entry.logprob) for _, entry in placed],
        "top_logprobs": [_legacy_top(entry) for _, entry in placed],
        "text_offset": [echoed + offset for offset, _ in placed],
    }


def _legacy_top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the sampled one, by text. Tokens may share a text (byte tokens do):
    no later one takes the place of an earlier.
    """
    found: dict[str, float] = {}
    others = [one for one in entry.top if one[0] != entry.token]
    for token, piece, logprob in [(entry.token, entry.piece, entry.logprob), *others]:
        names = (_legacy_text(piece), _as_bytes(piece), f"token_id:{token}")
        found[next(name for name in names if name not in found)] = _finite(logprob)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _legacy_text(piece: bytes) -> str:
    """As OpenAI writes a token that is no text by itself: `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return _as_bytes(piece)


def _as_bytes(piece: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _chat_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB
