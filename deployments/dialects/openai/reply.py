"""Parts that chat and completions share when a reply is written: ids, usage, finish reasons, encoded text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.dialects.openai.errors import error_body
from deployments.http.dialect import SSE
from erllama.errors import ErllamaError
from erllama.events import Done, Event, FinishReason, RequestStats, TokenLogprob, Tokens

DONE = SSE.frame(b"[DONE]", "")
MIN_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own floor

# `json.dumps` with an option builds an encoder per call (2 us); for a str this bound method is one call into C.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every chunk of a reply repeats. `created` is unix seconds."""

    id: str
    model: str
    created: int


class UsageMeter:
    """Sums what the choices cost. A prompt counts once for its n choices, with the cached tokens that its first choice found."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._prompt = self._completion = self._cached = 0

    def add(self, index: int, stats: RequestStats) -> None:
        self._completion += stats.completion_tokens
        if index % self._n == 0:
            self._prompt += stats.prompt_tokens
            self._cached += stats.cached_tokens

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


def finish_reason(stats: RequestStats) -> str:
    """`fan_out` has turned every other end into an exception."""
    return "length" if stats.finish_reason is FinishReason.LENGTH else "stop"


def finite(logprob: float) -> float:
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB


def _chat_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(piece)}


def chat_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Entries of `logprobs.content`."""
    return [
        _chat_token(entry.piece, entry.logprob) | {"top_logprobs": [_chat_token(piece, logprob) for _, piece, logprob in entry.top]}
        for entry in logprobs
    ]


class StreamWriter:
    """What chat and completions write alike into a stream: usage, terminator, errors, keep-alives. `kind` is the `object` of a chunk."""

    def __init__(self, head: ReplyHead, n: int, kind: str, *, include_usage: bool) -> None:
        self._head = head
        self._kind = kind
        self._meter = UsageMeter(n)
        self._include_usage = include_usage

    def _chunk_prefix(self) -> str:
        """The beginning of every chunk, up to the first choice. Writers join the rest as text: what does not change is encoded once."""
        head = self._head
        return f'data: {{"id":{encode(head.id)},"object":"{self._kind}","created":{head.created},"model":{encode(head.model)},"choices":['

    def close(self) -> bytes:
        return (self._usage_chunk() if self._include_usage else b"") + DONE

    def _usage_chunk(self) -> bytes:
        head = self._head
        chunk = {"id": head.id, "object": self._kind, "created": head.created, "model": head.model, "choices": []}
        return SSE.frame(encode(chunk | {"usage": self._meter.usage()}).encode(), "")

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        """Clients look for `error` in an event, then for the terminator."""
        return SSE.frame(error_body(error), "") + DONE

    def keepalive(self) -> bytes:
        return SSE.keepalive


class WholeChoices:
    """Gathers the events of all choices of a reply that is not streamed. `prefixes` are what each text begins with (an echoed prompt)."""

    def __init__(self, head: ReplyHead, n: int, prefixes: Sequence[str], *, logprobs: bool) -> None:
        self._head = head
        self._meter = UsageMeter(n)
        self._texts = [[prefix] for prefix in prefixes]
        self._logprobs: list[list[TokenLogprob] | None] = [[] if logprobs else None for _ in prefixes]
        self._reasons = [""] * len(prefixes)

    def feed(self, index: int, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self._texts[index].append(event.text)
                if event.logprobs is not None and (logprobs := self._logprobs[index]) is not None:
                    logprobs += event.logprobs
            elif isinstance(event, Done):
                self._meter.add(index, event.stats)
                self._reasons[index] = finish_reason(event.stats)
