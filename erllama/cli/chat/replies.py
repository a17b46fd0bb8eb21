"""Replies as they come: from a server, or from a model in this process."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from erllama.agents.listing import listed_models
from erllama.cli.server import Server
from erllama.errors import ErllamaError, InvalidParameter
from erllama.events import Done, Failed, RequestStats, Tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a reply, or what a model thinks before it."""

    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply cost. `ttft_s` is the time to its first piece as it was seen here; `tokens_per_s`
    is the model's own measure, or by the clock here.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_s: float
    tokens_per_s: float
    finish_reason: str = ""

    @property
    def prefilled_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    def line(self) -> str:
        return (
            f"{self.prompt_tokens} prompt tokens, {self.cached_tokens} cached, {self.prefilled_tokens} computed · "
            f"{self.completion_tokens} tokens, {self.tokens_per_s:.1f}/s · first after {self.ttft_s:.2f} s"
        )


Messages = Sequence[Mapping[str, str]]
Reply = Generator[Piece | Usage, None, None]
"""Pieces, then what they cost. Closing it stops the reply."""


class Replies(Protocol):
    """Where replies come from. Close it."""

    model: str

    def reply(self, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        """The settings have the names of OpenAI's API. Raises `ErllamaError`."""

    def complete(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        """A text goes on, without a chat template."""

    def close(self) -> None:
        """Idempotent."""


@dataclass(slots=True)
class _Watch:
    """Times as the user sees them."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None

    def note(self) -> None:
        if self.first is None:
            self.first = time.monotonic()

    def ttft_s(self) -> float:
        return (self.first or time.monotonic()) - self.began

    def rate(self, n_tokens: int) -> float:
        return n_tokens / max(1e-3, time.monotonic() - (self.first or self.began))


class ServerReplies:
    """Over OpenAI's API. `server` is closed with it."""

    def __init__(self, server: Server, model: str | None) -> None:
        """Without a name, the server's only model. Raises `InvalidParameter` where there are others, and
        `NoServer` at once instead of with the first reply.
        """
        server.get("/health")
        self._server = server
        self.model = model or _only_model(server)

    def reply(self, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        return self._streamed("/v1/chat/completions", {"messages": list(messages)}, settings)

    def complete(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        return self._streamed("/v1/completions", {"prompt": prompt}, settings)

    def close(self) -> None:
        self._server.close()

    def _streamed(self, path: str, asked: Mapping[str, Any], settings: Mapping[str, Any]) -> Reply:
        body = {"model": self.model, **asked, **settings, "stream": True, "stream_options": {"include_usage": True}}
        watch, usage, timings, reason = _Watch(), dict[str, Any](), dict[str, Any](), ""
        with closing(self._server.events(path, body)) as events:
            for event in events:
                usage, timings = event.get("usage") or usage, event.get("timings") or timings
                for choice in event.get("choices", ()):
                    reason = choice.get("finish_reason") or reason
                    delta = choice.get("delta", choice)
                    if thought := delta.get("reasoning_content"):
                        watch.note()
                        yield Piece(thought, reasoning=True)
                    if text := delta.get("content") or delta.get("text"):
                        watch.note()
                        yield Piece(text)
        n_tokens = usage.get("completion_tokens", 0)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        rate = timings.get("predicted_per_second") or watch.rate(n_tokens)
        yield Usage(usage.get("prompt_tokens", 0), cached or 0, n_tokens, watch.ttft_s(), rate, reason)


class LocalReplies:
    """A model in this process: "demo", the path of a GGUF, or a name of the hub."""

    def __init__(self, model: str, hub_dir: Path | None, **settings: Any) -> None:
        """Raises `ErllamaError` when it cannot be loaded."""
        from erllama.model import Model

        self.model = model
        self._loaded = Model(path=local_path(model, hub_dir), n_parallel=1, **settings)

    def reply(self, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        return self._streamed(self._loaded.apply_chat_template(messages), settings)

    def complete(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        return self._streamed(self._loaded.tokenize(prompt), settings)

    def close(self) -> None:
        self._loaded.shutdown()

    def _streamed(self, tokens: Sequence[int], settings: Mapping[str, Any]) -> Reply:
        params = {("response_tokens" if name == "max_tokens" else name): value for name, value in settings.items()}
        watch = _Watch()
        with self._loaded.infer(tokens, params) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Tokens) and event.text:
                    watch.note()
                    yield Piece(event.text)
                if isinstance(event, Done):
                    yield _usage(event.stats, watch)


def _usage(stats: RequestStats, watch: _Watch) -> Usage:
    rate = stats.completion_tokens / max(1e-3, stats.generation_ms / 1e3)
    counts = (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens)
    return Usage(*counts, watch.ttft_s(), rate, str(stats.finish_reason))


def local_path(model: str, hub_dir: Path | None) -> str:
    """The file of a model on this machine. Raises `ModelNotFound` with near names of the hub."""
    from erllama.demo import demo_model_path
    from erllama.hub.config import HubConfig
    from erllama.hub.hub import Hub

    if model == "demo":
        return str(demo_model_path())
    if Path(model).is_file():
        return model
    return str(Hub(HubConfig(dir=hub_dir)).path_of(model))


def model_names(server: Server) -> list[str]:
    return [model.id for model in listed_models(server.get("/v1/models"))]


def _only_model(server: Server) -> str:
    names = model_names(server)
    if len(names) == 1:
        return names[0]
    raise InvalidParameter(f"which model? The server has {', '.join(names[:20]) or 'none'}", param="model")


def whole(reply: Reply) -> tuple[str, str, Usage]:
    """Text, reasoning and cost of a reply, once it is there."""
    texts: dict[bool, list[str]] = {False: [], True: []}
    for item in reply:
        if isinstance(item, Usage):
            return "".join(texts[False]), "".join(texts[True]), item
        texts[item.reasoning].append(item.text)
    raise ErllamaError("the reply ended in the middle")
