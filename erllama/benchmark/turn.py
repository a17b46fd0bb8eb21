"""One streamed reply as a client sees it. Pure.

Times are seconds of one clock that only goes forward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

TEXTS = ("content", "reasoning_content", "reasoning")
"""Fields of a delta that have text; reasoning has two names among servers."""


def event_data(line: str) -> str:
    """What a line of a stream of server-sent events carries; "" for one without data, and for `[DONE]`."""
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    return "" if data == "[DONE]" else data


@dataclass(frozen=True, slots=True)
class Turn:
    """`number` counts from 1 within its conversation. `arrived_s` are the events that had text, `text`
    is the answer without reasoning. What the server does not tell is None. `prefill_tok_s` and
    `decode_tok_s` are what llama.cpp's `timings` say, where a server has them.
    """

    number: int
    sent_s: float
    arrived_s: tuple[float, ...]
    text: str
    finish_reason: str | None = None
    n_prompt: int | None = None
    n_cached: int | None = None
    n_reply: int | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Until the first text: network, queue and prefill together."""
        return self.arrived_s[0] - self.sent_s if self.arrived_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Between events; one may have several tokens."""
        return [later - earlier for earlier, later in pairwise(self.arrived_s)]

    @property
    def n_computed(self) -> int | None:
        """Tokens of the prompt that were not cached."""
        return None if self.n_prompt is None or self.n_cached is None else self.n_prompt - self.n_cached

    @property
    def seen_prefill_tok_s(self) -> float | None:
        """By the time to the first text, so too low by network and queue. None for a prompt that was mostly
        cached: its time is that of something else.
        """
        ttft_s, n_computed = self.ttft_s, self.n_computed
        if not ttft_s or not n_computed or 2 * n_computed < (self.n_prompt or 0):
            return None
        return n_computed / ttft_s

    @property
    def seen_decode_tok_s(self) -> float | None:
        """Behind the first event. Tokens are those of the usage, spread evenly over the events."""
        if len(self.arrived_s) < 2 or not self.n_reply:
            return None
        took_s = self.arrived_s[-1] - self.arrived_s[0]
        behind = self.n_reply * (1 - 1 / len(self.arrived_s))
        return behind / took_s if took_s > 0 else None


def read_turn(number: int, sent_s: float, events: Iterable[tuple[float, str]]) -> Turn:
    """A turn from the data of its events and when each came. What is no JSON is an error of the turn."""
    arrived, answer, told = list[float](), list[str](), dict[str, Any]()
    finish_reason, error = None, None
    for at_s, data in events:
        try:
            chunk = json.loads(data)
        except ValueError:
            error = f"an event is no JSON: {data[:80]}"
            continue
        if chunk.get("error"):
            error = _reason(chunk["error"])
        told |= {name: chunk[name] for name in ("usage", "timings") if chunk.get(name)}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            finish_reason = choice.get("finish_reason") or finish_reason
            answer.append(delta.get("content") or "")
            if any(delta.get(name) for name in TEXTS):
                arrived.append(at_s)
    if not arrived and error is None:
        error = "the reply has no text"
    counts = _counts(told.get("usage") or {}, told.get("timings") or {})
    return Turn(number, sent_s, tuple(arrived), "".join(answer), finish_reason, error=error, **counts)


def _reason(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)


def _counts(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's usage; cached tokens stand in `timings` where llama.cpp's server does not count them there."""
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return {
        "n_prompt": usage.get("prompt_tokens"),
        "n_cached": timings.get("cache_n") if cached is None else cached,
        "n_reply": usage.get("completion_tokens"),
        "prefill_tok_s": timings.get("prompt_per_second"),
        "decode_tok_s": timings.get("predicted_per_second"),
    }
