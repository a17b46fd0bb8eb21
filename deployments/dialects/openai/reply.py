"""What replies are written with: ids, usage, finish reasons; and the reply of `/v1/embeddings`,
which is no more.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from deployments.dialects.openai.extras import with_timings
from deployments.dialects.openai.wire import EmbeddingBody
from deployments.generation.timings import timings
from deployments.http.body import encode
from deployments.http.dialect import SSE
from deployments.http.openai_error import error_body
from erllama.errors import ErllamaError, NotSupported
from erllama.events import Completion, FinishReason, RequestStats

DONE = SSE.frame(b"[DONE]", "")


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every chunk of a reply repeats. `created` is unix seconds."""

    id: str
    model: str
    created: int

    def fields(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class UsageMeter:
    """Sums what the choices cost. A prompt counts once for its n choices, with the cached tokens
    that its first choice found. `counts_reasoning`: it tells how many tokens were reasoning, too.
    """

    def __init__(self, n: int, *, counts_reasoning: bool = False) -> None:
        self._n = n
        self._prompt = self._completion = self._cached = self._reasoning = self._drafted = self._accepted = 0
        self._counts_reasoning = counts_reasoning

    def add(self, index: int, stats: RequestStats, reasoning_tokens: int = 0) -> None:
        self._completion += stats.completion_tokens
        self._reasoning += reasoning_tokens
        self._drafted += stats.drafted_tokens
        self._accepted += stats.accepted_tokens
        if index % self._n == 0:
            self._prompt += stats.prompt_tokens
            self._cached += stats.cached_tokens

    def usage(self) -> dict[str, Any]:
        details = {"reasoning_tokens": self._reasoning} if self._counts_reasoning else {}
        if self._drafted:
            details["accepted_prediction_tokens"] = self._accepted
            details["rejected_prediction_tokens"] = self._drafted - self._accepted
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
            **({"completion_tokens_details": details} if details else {}),
        }


def finish_reason(stats: RequestStats) -> str:
    """`fan_out` has turned every other end into an exception."""
    return "length" if stats.finish_reason is FinishReason.LENGTH else "stop"


class StreamWriter:
    """What chat and completions write alike into a stream: usage, terminator, errors, keep-alives.

    `kind` is the `object` of a chunk. Every chunk begins with `_prefix`, up to its first choice;
    writers join the rest as text, so what does not change is encoded once.
    """

    kind: ClassVar[str]
    counts_reasoning: ClassVar[bool] = False

    def __init__(self, head: ReplyHead, n: int, *, include_usage: bool) -> None:
        self._head = head.fields(self.kind)
        usage = {"usage": None} if include_usage else {}  # what OpenAI has in each chunk but the last
        self._prefix = f"data: {encode(self._head | usage | {'choices': []})}".removesuffix("]}")
        self._meter = UsageMeter(n, counts_reasoning=self.counts_reasoning)
        self._include_usage = include_usage
        self._last: RequestStats | None = None

    def _ended(self, index: int, stats: RequestStats, n_choices: int, reasoning_tokens: int = 0) -> bool:
        """Note the end of a choice. Whether the chunk with the usage will tell its timings."""
        self._meter.add(index, stats, reasoning_tokens)
        self._last = stats if n_choices == 1 else None
        return self._include_usage and n_choices == 1

    def close(self) -> bytes:
        if not self._include_usage:
            return DONE
        timed = {} if self._last is None else {"timings": timings(self._last)}
        last = self._head | {"choices": [], "usage": self._meter.usage()} | timed
        return SSE.frame(encode(last).encode(), "") + DONE

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        """Clients look for `error` in an event, then for the terminator."""
        return SSE.frame(error_body(error), "") + DONE

    def keepalive(self) -> bytes:
        return SSE.keepalive


def whole_body(
    head: ReplyHead,
    kind: str,
    choices: Sequence[dict[str, Any]],
    replies: Sequence[Completion],
    n: int,
    reasoning_tokens: Sequence[int] | None = None,
) -> bytes:
    """The body of a reply that is not streamed: `replies` as `choices` say them, `n` per prompt.
    `reasoning_tokens` are those of each reply, None where reasoning is not told from text.
    """
    meter = UsageMeter(n, counts_reasoning=reasoning_tokens is not None)
    for index, reply in enumerate(replies):
        meter.add(index, reply.stats, reasoning_tokens[index] if reasoning_tokens is not None else 0)
    body = head.fields(kind) | {"choices": choices, "usage": meter.usage()}
    return encode(with_timings(body, replies)).encode()


def _vector(vector: Sequence[float], encoding_format: str | None) -> str:
    floats = np.asarray(vector, dtype="<f4")
    return encode(base64.b64encode(floats.tobytes()).decode() if encoding_format == "base64" else floats.tolist())


def embedding_body(body: EmbeddingBody, model: str, vectors: Sequence[Sequence[float]], prompt_tokens: int) -> bytes:
    """The whole reply: floats as JSON numbers, or as base64 of little-endian float32 (what the
    official client asks for).

    Encoding 1000 floats takes a millisecond: call it off the event loop for many vectors.
    Raises `NotSupported` when `dimensions` asks for another size than the model's own.
    """
    native = len(vectors[0])
    if body.dimensions is not None and body.dimensions != native:
        raise NotSupported(
            f"this model's embeddings have {native} dimensions; they cannot be cut to {body.dimensions}",
            param="dimensions",
        )
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{_vector(vector, body.encoding_format)}}}'
        for index, vector in enumerate(vectors)
    )
    usage = encode({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens})
    return f'{{"object":"list","data":[{data}],"model":{encode(model)},"usage":{usage}}}'.encode()
