"""`overhead.py --mode dialects`: what each dialect costs the ingress, in one process without Ray.

The real HTTP application with the real vocabulary and template of the demo model, and a model that
has its tokens at hand, one per list of events, as they come from a paced engine. The application is
called as a server calls it, without a socket. Every dialect gets the same message and says the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import Figures, say

from deployments.http.ports import ServedModel
from deployments.ingress.http_app import make_http_app
from deployments.ingress.prompts import PromptSource
from erllama.cache.setup import transcript_root
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import ErllamaError
from erllama.events import CacheHitKind, Done, Event, FinishReason, RequestStats, Tokens
from erllama.request import GenerationRequest
from erllama.stats import ModelInfo

BASE = "chat"
PIECES = (" the", " sea", " is", " wide", ",", " and", " ships", "\n", " sail", " north.")
SHORT, LONG = 8, 1032  # tokens of the two streams whose difference is the cost of a token
_MESSAGE = "Tell me of the sea and of the ships that sail north. " * 4
_CHAT = {"model": "demo", "messages": [{"role": "user", "content": _MESSAGE}]}


@dataclass(frozen=True, slots=True)
class Case:
    """How a dialect asks. `limit` is where in the body the number of tokens stands."""

    path: str
    body: Mapping[str, Any]
    limit: tuple[str, ...] = ("max_tokens",)
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def request(self, n_tokens: int, *, stream: bool) -> bytes:
        body: dict[str, Any] = json.loads(json.dumps({**self.body, "stream": stream}))
        place = body
        for name in self.limit[:-1]:
            place = place.setdefault(name, {})
        place[self.limit[-1]] = n_tokens
        return json.dumps(body).encode()


CASES: Mapping[str, Case] = {
    BASE: Case("/v1/chat/completions", _CHAT),
    "completions": Case("/v1/completions", {"model": "demo", "prompt": _MESSAGE}),
    "anthropic": Case("/v1/messages", _CHAT, headers=((b"anthropic-version", b"2023-06-01"),)),
    "responses": Case("/v1/responses", {"model": "demo", "input": _MESSAGE, "store": False}, ("max_output_tokens",)),
    "ollama": Case("/api/chat", _CHAT, ("options", "num_predict")),
}


class ReadyModel:
    """A `ModelPort` whose tokens take no time."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        n = request.max_tokens or 0
        for i in range(n):
            await asyncio.sleep(0)  # a message from a replica is a turn of the loop
            yield [Tokens((100 + i % 10,), PIECES[i % len(PIECES)])]
        n_prompt = len(request.prompt_tokens)
        stats = RequestStats(n_prompt, n, 0, 0.1, 1.0, 1.0, CacheHitKind.COLD, FinishReason.LENGTH)
        yield [Done(stats, "key")]

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        raise NotImplementedError

    async def ready(self) -> bool | None:
        return True

    async def model_info(self) -> ModelInfo:
        raise NotImplementedError

    def end_all(self, error: ErllamaError) -> None:
        raise NotImplementedError


async def _ask(app: Any, case: Case, body: bytes) -> None:
    """One request to its end. Raises `ValueError` unless it is answered with 200."""
    status = 0
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": case.path, "raw_path": case.path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), *case.headers], "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    inbox = iter([{"type": "http.request", "body": body, "more_body": False}])
    gone = asyncio.Event()

    async def receive() -> Any:
        message = next(inbox, None)
        if message is None:
            await gone.wait()
        return message

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    if status != 200:
        raise ValueError(f"{case.path}: HTTP {status}")


def _cost_us(app: Any, case: Case, body: bytes, n: int) -> float:
    """CPU microseconds of one of `n` requests, one after another."""

    async def work() -> float:
        begun = time.process_time_ns()
        for _ in range(n):
            await _ask(app, case, body)
        return (time.process_time_ns() - begun) / 1e3 / n

    return asyncio.run(work())


def measure_dialects(figures: Figures, rounds: int) -> None:
    """`dialect.NAME.token_us`, `.stream_us` (a stream of few tokens) and `.request_us` (not streamed), the
    least of all rounds: whatever else runs on the machine only adds. Rounds go through all dialects
    in turn.
    """
    logging.getLogger("deployments").setLevel(logging.WARNING)
    source = PromptSource(EngineConfig(path="demo"), root=transcript_root("demo", ""), book=TranscriptBook())
    source.load()
    app = make_http_app([ServedModel("demo", ReadyModel(), source, created=0)])
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, case in CASES.items():
            short = _cost_us(app, case, case.request(SHORT, stream=True), 20)
            long = _cost_us(app, case, case.request(LONG, stream=True), 2)
            whole = _cost_us(app, case, case.request(SHORT, stream=False), 20)
            for what, value in (("token", (long - short) / (LONG - SHORT)), ("stream", short), ("request", whole)):
                found.setdefault((name, what), []).append(value)
    source.close()
    for (name, what), values in found.items():
        figures.add(f"dialect.{name}.{what}_us", min(values), "us")
    for name in CASES:
        for what in ("token", "stream", "request"):
            if name != BASE:
                least, base = figures.get(f"dialect.{name}.{what}_us"), figures.get(f"dialect.{BASE}.{what}_us")
                figures.add_ratio(f"ratio.{name}.{what}", least, base)
