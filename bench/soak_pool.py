"""The requests of the soak and what their replies must be: questions with one right answer, long
streams, chats; greedy and sampled.

The expected replies come from the server itself, before anything is killed: the same request with
the same seed must give the same text ever after, whatever happened to the replica in the middle of
it. Models with a q8_0 KV cache and quantised weights are exact.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream_client import Connection, Raw, Reply, encode_request, parse_reply, parse_stream

from demo_model.samples import Sample, draw_samples
from erllama.model import Model

_GREEDY: Mapping[str, Any] = {"temperature": 0}
SYSTEM = "You are a helpful assistant. " + " ".join(
    f"The river number {i} is called Rio {i * 7 % 90}." for i in range(40)
)
TOPICS = ("a red stone", "seven rivers", "the sea", "bread", "a town", "rain", "two friends", "a garden")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the pool. `sample` knows the right answer of a question; None where there is
    none.
    """

    path: str
    body: Mapping[str, Any]
    sample: Sample | None = None

    def encode(self, *, stream: bool) -> bytes:
        more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return encode_request("POST", self.path, {**self.body, **more})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the text and the number of its tokens. `gap_ms` is the longest pause inside a
    stream.
    """

    text: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float = 0.0
    gap_ms: float = 0.0


def make_pool(model_id: str, seed: int, *, n_questions: int, n_streams: int, n_chats: int) -> list[Ask]:
    """Questions of 512 and 1024 tokens, streams of 400 to 1600 tokens, chats that share a long
    system prompt.
    """
    rng = random.Random(seed)
    with Model(path="demo", n_ctx=2048, n_parallel=1) as model:
        samples = [
            sample
            for bucket, n in (("recall_512", n_questions - n_questions // 4), ("recall_1024", n_questions // 4))
            for sample in draw_samples(
                bucket, seed=seed, n_samples=n, count=lambda text: len(model.tokenize(text, add_special=False))
            )
        ]
        prompts = [model.tokenize(sample.prompt, add_special=False) for sample in samples]
    asks = [
        Ask(
            "/v1/completions",
            {"model": model_id, "prompt": prompt, "max_tokens": 24, **_sampling(rng, greedy=True)},
            sample,
        )
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    for i in range(n_streams):
        body = {
            "model": model_id,
            "prompt": f"Number {i}. Tell me about {rng.choice(TOPICS)}.",
            "max_tokens": rng.randint(400, 1600),
        }
        asks.append(Ask("/v1/completions", {**body, "ignore_eos": True, **_sampling(rng, greedy=i % 2 == 0)}))
    for i in range(n_chats):
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Tell me about {rng.choice(TOPICS)}, {i} words."},
        ]
        body = {"model": model_id, "messages": messages, "max_tokens": 64}
        asks.append(Ask("/v1/chat/completions", {**body, **_sampling(rng, greedy=i % 2 == 0)}))
    return asks


def _sampling(rng: random.Random, *, greedy: bool) -> Mapping[str, Any]:
    return (
        _GREEDY
        if greedy
        else {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": rng.randrange(1 << 30)}
    )


async def send(port: int, ask: Ask, *, stream: bool, abort_after: int | None = None) -> Answer | None:
    """The reply; None after an abort at the `abort_after`-th read. Raises `Truncated`, `OSError`,
    or `ValueError` for anything wrong.
    """
    connection = await Connection.open(port)
    left = abort_after if abort_after is not None else -1

    def on_read(_: Raw) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            connection.abort()

    try:
        return _answer(parse_reply(await connection.request(ask.encode(stream=stream), on_read)), stream=stream)
    except ConnectionError:
        if abort_after is not None and left <= 0:
            return None
        raise
    finally:
        connection.abort()


def _answer(reply: Reply, *, stream: bool) -> Answer:
    if stream:
        parsed = parse_stream(reply)
        gap = max(parsed.gaps_ms, default=0.0)
        return Answer(
            parsed.text,
            parsed.completion_tokens,
            parsed.prompt_tokens,
            parsed.cached_tokens,
            ttft_ms=parsed.ttft_s * 1e3,
            gap_ms=gap,
        )
    if reply.status != 200:
        raise ValueError(f"HTTP {reply.status}: {reply.body[:300]!r}")
    body = json.loads(reply.body)
    usage, choice = body["usage"], body["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Answer(text or "", usage["completion_tokens"], usage["prompt_tokens"], cached)
