"""Log probabilities as OpenAI's API writes them around a choice, in the chat's shape and the legacy
one; `generation/logprobs` has which tokens a text covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from deployments.generation.logprobs import Placed, finite, token_logprobs
from erllama.events import TokenLogprob


def chat_logprobs(placed: Iterable[Placed]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    return {"content": token_logprobs(placed), "refusal": None}


def legacy_logprobs(placed: Sequence[Placed], echoed: int) -> dict[str, list[Any]]:
    """The `logprobs` of a completion's choice as four parallel lists. `text_offset` counts
    characters from the start of the choice's text, of which the first `echoed` are the prompt's.
    """
    return {
        "tokens": [_legacy_text(entry.piece) for _, entry in placed],
        "token_logprobs": [finite(entry.logprob) for _, entry in placed],
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
        found[next(name for name in names if name not in found)] = finite(logprob)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _legacy_text(piece: bytes) -> str:
    """As OpenAI writes a token that is no text by itself: `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return _as_bytes(piece)


def _as_bytes(piece: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
